package event

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const (
	examineEach = time.Minute
	// skew is how far the clocks of broker and service may be apart.
	skew = 10 * time.Second
	// lead is how long before the broker has an event it may be said to have been published.
	lead = 3 * ackTimeout
)

// upkeep looks after the outbox beside publishing: it notices what the other side has lost, and forgets what is old.
type upkeep struct {
	*Relay
	examined time.Time       // when the stream was last looked at
	pruned   time.Time       // when to prune next
	compared bool            // the stream with the outbox
	answered map[string]bool // gaps that consumers told of
	trust    trust           // in the clock
}

// begin asks the broker what it has, until it is known whether the store was set back. What is published before that would be the last
// that the stream has from here, and hide it; and what comes again would be dropped as a double.
func (k *upkeep) begin(ctx context.Context) {
	for failures := 0; ctx.Err() == nil && !k.compared; failures++ {
		err := k.examine(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		pause := min(firstPause<<min(failures, 10), longPause)
		k.c.Log.WarnContext(ctx, "events wait in the outbox: the broker does not say what it has", "service", k.c.Service, "attempt", failures+1, "retry_in", pause, "error", err)
		sleep(ctx, pause/2+rand.N(pause/2))
	}
}

// pass does what is due and says when to come again at the latest.
func (k *upkeep) pass(ctx context.Context) time.Duration {
	now := k.c.Now()
	if now.Sub(k.examined) >= examineEach || now.Before(k.examined) {
		if err := k.examine(ctx); err != nil {
			k.trouble(ctx, "asking the broker what it has", err)
			return lookEvery // nothing may be forgotten that is still to be published again
		}
	}
	trusted, err := k.trust.look(ctx, k.Relay)
	k.trouble(ctx, "noting the time", err)
	if !trusted || now.Before(k.pruned) && k.pruned.Sub(now) <= pruneEach {
		return lookEvery
	}
	more, err := prune(ctx, k.c.DB, now)
	k.trouble(ctx, "forgetting old events", err)
	if more {
		return pruneRest
	}
	k.pruned = now.Add(pruneEach)
	return lookEvery
}

func (k *upkeep) trouble(ctx context.Context, doing string, err error) {
	if err != nil && ctx.Err() == nil {
		k.c.Log.WarnContext(ctx, "upkeep of events", "service", k.c.Service, "doing", doing, "error", err)
	}
}

// examine publishes again what the stream, or a consumer, cannot have.
func (k *upkeep) examine(ctx context.Context) error {
	if !k.c.JS.Conn().IsConnected() {
		return errAway
	}
	asking, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	stream, err := k.c.JS.Stream(asking, StreamName)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	begun, err := k.remembered(asking, stream)
	if err != nil {
		return err
	}
	if !k.compared {
		if begun, err = k.compare(ctx, stream, begun); err != nil {
			return err
		}
		k.compared = true
	}
	k.salt = ""
	if begun.After(info.Created) {
		k.salt = "@" + strconv.FormatInt(begun.UnixMicro(), 10)
	}
	told, err := k.told(asking, stream)
	if err != nil {
		return err
	}
	if err := k.stream(ctx, info.Created, begun); err != nil {
		return err
	}
	if err := k.gaps(ctx, told); err != nil {
		return err
	}
	k.examined = k.c.Now()
	return nil
}

// remembered is when the stream has begun. That it began anew it may have forgotten: a daemon that starts can write its metadata as they
// were a moment before, and one of an older version leaves none. Then it is told once more.
func (k *upkeep) remembered(ctx context.Context, stream jetstream.Stream) (time.Time, error) {
	info := stream.CachedInfo()
	begun := latest(info.Created, setBack(info.Config))
	known, made, err := marksOfStream(ctx, k.c.DB)
	if err != nil || !made.Equal(info.Created.Truncate(time.Microsecond)) || !known.After(begun) {
		return begun, err
	}
	k.c.Log.WarnContext(ctx, "the event stream has forgotten that it began anew: it is told again", "service", k.c.Service, "stream_begun", known)
	return setStreamBack(ctx, k.c.JS, stream, known)
}

// stream notices a stream that was made anew, or is to be taken for a new one: the broker has lost its data, or a store was restored
// from a backup. What was published before that is in no stream, or its consumers are said to have had what they have lost.
func (k *upkeep) stream(ctx context.Context, made, begun time.Time) error {
	made, begun = made.Truncate(time.Microsecond), begun.Truncate(time.Microsecond)
	known, its, err := marksOfStream(ctx, k.c.DB)
	if err != nil || known.Equal(begun) && its.Equal(made) {
		return err
	}
	if !known.Equal(begun) {
		now := k.c.Now()
		if err := renew(ctx, k.c.DB, begun, now); err != nil {
			return err
		}
		n := 0
		// What is said to be published later than now was, while the clock was wrong.
		for _, g := range []gap{{time.Time{}, begun.Add(skew)}, {latest(begun, now).Add(skew), farAway}} {
			more, err := again(ctx, k.c.DB, g.from, g.until)
			if err != nil {
				return err
			}
			n += more
		}
		if n > 0 {
			k.c.Log.WarnContext(ctx, "the event stream is a new one: what is kept of the events is published again, and who has them drops them",
				"service", k.c.Service, "events", n, "stream_begun", begun)
		}
	}
	return k.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error { // last: cut off before this, all of it is done again
		if err := setMarkIn(ctx, tx, markMade, made); err != nil {
			return err
		}
		return setMarkIn(ctx, tx, markStream, begun)
	})
}

// metaGap is the metadata by which a consumer tells all services what it has missed.
const metaGap = "sallyport-missed"

// gap is the time in which events were published that a consumer has not seen.
type gap struct{ from, until time.Time }

func (g gap) String() string {
	return strconv.FormatInt(g.from.UnixMicro(), 10) + "-" + strconv.FormatInt(g.until.UnixMicro(), 10)
}

func parseGap(s string) (gap, error) {
	a, b, ok := strings.Cut(s, "-")
	from, err := strconv.ParseInt(a, 10, 64)
	if !ok || err != nil {
		return gap{}, fmt.Errorf("not a gap: %q", s)
	}
	until, err := strconv.ParseInt(b, 10, 64)
	if err != nil {
		return gap{}, fmt.Errorf("not a gap: %q", s)
	}
	return gap{time.UnixMicro(from), time.UnixMicro(until)}, nil
}

// told lists the gaps that consumers of this service's facts tell of, by consumer.
func (k *upkeep) told(ctx context.Context, stream jetstream.Stream) (map[string]string, error) {
	told := map[string]string{}
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		if text := info.Config.Metadata[metaGap]; text != "" && k.listens(info.Config) {
			told[info.Name] = text
		}
	}
	return told, list.Err()
}

// gaps publishes again what consumers have missed because they were away for longer than the stream keeps a message.
func (k *upkeep) gaps(ctx context.Context, told map[string]string) error {
	for consumer, text := range told {
		if k.answered[consumer+text] {
			continue
		}
		g, err := parseGap(text)
		if err != nil {
			k.trouble(ctx, "reading what "+consumer+" has missed", err)
			continue
		}
		n, err := again(ctx, k.c.DB, g.from, g.until)
		if err != nil {
			return err
		}
		k.answered[consumer+text] = true
		if n > 0 {
			k.c.Log.WarnContext(ctx, "a consumer was away for too long: what it missed is published again", "service", k.c.Service, "consumer", consumer,
				"published_from", g.from, "published_until", g.until, "events", n)
		}
	}
	return nil
}

// listens says whether a consumer takes the facts of this service.
func (k *upkeep) listens(c jetstream.ConsumerConfig) bool {
	subjects := append(slices.Clone(c.FilterSubjects), c.FilterSubject)
	return slices.Contains(subjects, FactsOf(k.c.Service)) || slices.Contains(subjects, FactsOf("*"))
}
