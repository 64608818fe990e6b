package event

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const (
	attendEach = 5 * time.Minute
	// gapStands is how long a gap is told of: all services look every minute while they run.
	gapStands = 7 * 24 * time.Hour
)

// Attendance keeps the book on until when a durable consumer has heard everything, in its service's own store. The stream
// forgets what is older than its limit whether or not everybody has had it, and the broker does not tell.
type Attendance struct {
	DB      *db.DB
	JS      jetstream.JetStream
	Durable string
	Log     *slog.Logger
	Now     func() time.Time

	each    time.Duration // between two notes of the place; 0 is placeEach
	ground  ground        // what the place was last found to be right for
	last    uint64        // place that was seen there
	refused bool          // the broker has not taken the consumer back
}

func (a *Attendance) name() string { return "consumer/" + a.Durable }

// Begin makes the consumer at JetStream, or brings it up to date. If events may have gone by unheard since the last time, it
// says so in the log and as a fact, <service>.events.missed, and asks all services to publish them again as far as they
// still have them. What the store has lost since it last noted how far it was comes again.
func (a *Attendance) Begin(ctx context.Context, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	stream, err := a.JS.Stream(ctx, StreamName)
	if err != nil {
		return nil, err
	}
	// In this order: a replica that tells of a gap notes it when it has told.
	missed, err := a.missed(ctx, stream.CachedInfo().Config.MaxAge)
	if err != nil {
		return nil, err
	}
	metadata, err := a.metadata(ctx, stream)
	if err != nil {
		return nil, err
	}
	noted, err := a.compare(ctx, stream, c, metadata)
	if err != nil {
		return nil, err
	}
	told := metadata[metaGap]
	switch {
	case missed != nil:
		told = missed.String()
	case told == "":
	default:
		if g, err := parseGap(told); err != nil || a.Now().Sub(g.until) > keepStream+gapStands {
			told = ""
		}
	}
	c.Metadata = map[string]string{}
	if noted != "" {
		c.Metadata[metaNoted] = noted
	}
	if told != "" {
		c.Metadata[metaGap] = told
	}
	consumer, err := a.JS.CreateOrUpdateConsumer(ctx, StreamName, c)
	if err != nil {
		return nil, fmt.Errorf("creating the consumer: %w", err)
	}
	if missed != nil {
		if err := a.tell(ctx, *missed); err != nil {
			return nil, err
		}
	}
	if err := a.notePlace(ctx, consumer); err != nil { // before anything is heard
		return nil, fmt.Errorf("noting the consumer's place: %w", err)
	}
	return consumer, nil
}

// metadata is what the consumer tells already.
func (a *Attendance) metadata(ctx context.Context, stream jetstream.Stream) (map[string]string, error) {
	consumer, err := stream.Consumer(ctx, a.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return consumer.CachedInfo().Config.Metadata, nil
}

// missed is the gap since the last time, nil if there is none.
func (a *Attendance) missed(ctx context.Context, maxAge time.Duration) (*gap, error) {
	heard, err := mark(ctx, a.DB, a.name())
	if err != nil || !a.forgotten(heard, maxAge) {
		return nil, err
	}
	return &gap{heard.Add(-skew - lead), a.Now().Add(skew - maxAge)}, nil
}

// forgotten says whether a stream may have forgotten messages of that time.
func (a *Attendance) forgotten(t time.Time, maxAge time.Duration) bool {
	return !t.IsZero() && maxAge > 0 && t.Before(a.Now().Add(skew-maxAge))
}

// tell records a gap, and that it has been told of, in one.
func (a *Attendance) tell(ctx context.Context, g gap) error {
	service, _, _ := strings.Cut(a.Durable, "-")
	a.Log.ErrorContext(ctx, "events may have gone by unheard: this consumer did not handle them for longer than the stream keeps them; all services are asked to publish them again",
		"consumer", a.Durable, "published_from", g.from, "published_until", g.until)
	now := a.Now()
	return a.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		err := Emit(ctx, tx, &eventv1.Event{
			Type: service + ".events.missed", Subject: "consumers/" + a.Durable, Result: eventv1.Result_RESULT_FAILED,
			Reason: "the consumer did not handle them for longer than the stream keeps events; they are published again as far as outboxes hold them",
			Facts:  map[string]string{"published_from": g.from.UTC().Format(time.RFC3339), "published_until": g.until.UTC().Format(time.RFC3339)},
		})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE event_mark SET at = $1 WHERE name = $2`, db.FromTime(now), a.name())
		return err
	})
}

// errForgotten ends a subscription, so that the next Begin tells of the gap.
var errForgotten = errors.New("the stream has forgotten an event before it was handled")

// Run writes down now and then until when everything was heard, and how far that is, until ctx ends or the stream has forgotten what was not.
func (a *Attendance) Run(ctx context.Context, consumer jetstream.Consumer) error {
	for due := time.Now(); ; {
		if !time.Now().Before(due) {
			pause, err := a.note(ctx, consumer)
			switch {
			case errors.Is(err, errForgotten), errors.Is(err, errSetBack):
				return err
			case err != nil && ctx.Err() == nil:
				a.Log.WarnContext(ctx, "noting until when events were heard", "consumer", a.Durable, "error", err)
			}
			due = time.Now().Add(pause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(cmp.Or(a.each, placeEach), time.Until(due))):
		}
		err := a.notePlace(ctx, consumer)
		if errors.Is(err, errSetBackUnder) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "noting which events were heard", "consumer", a.Durable, "error", err)
		}
	}
}

// note says when to come again.
func (a *Attendance) note(ctx context.Context, consumer jetstream.Consumer) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	before, err := mark(ctx, a.DB, a.name()) // first: who tells of a gap has told when this is the later time
	if err != nil {
		return attendEach, err
	}
	now := a.Now()
	info, err := consumer.Info(ctx)
	if err != nil {
		return attendEach, err
	}
	stream, err := a.JS.Stream(ctx, StreamName)
	if err != nil {
		return attendEach, err
	}
	maxAge := stream.CachedInfo().Config.MaxAge
	pause := attendEach
	if maxAge > 0 {
		pause = min(attendEach, maxAge/10)
	}
	heard := now
	if info.NumPending > 0 || info.NumAckPending > 0 {
		if heard, err = oldest(ctx, stream, info, now); err != nil {
			return attendEach, err
		}
	}
	forgotten := a.forgotten(before, maxAge)
	if heard.After(before) && forgotten {
		return 0, errForgotten
	}
	noted, err := a.count(ctx, heard, notedIn(info.Config.Metadata))
	if err != nil || forgotten {
		return pause, err
	}
	return pause, a.show(ctx, info.Config, noted)
}

// oldest is when the first message was stored that may not have been handled, or now where the stream has none of them any more: what
// was before it and is there yet was acknowledged.
func oldest(ctx context.Context, stream jetstream.Stream, info *jetstream.ConsumerInfo, now time.Time) (time.Time, error) {
	at := now
	subjects := info.Config.FilterSubjects
	if info.Config.FilterSubject != "" {
		subjects = append(subjects, info.Config.FilterSubject)
	}
	for _, subject := range subjects {
		m, err := stream.GetMsg(ctx, info.AckFloor.Stream+1, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return at, err
		}
		if stored := m.Time.Truncate(time.Microsecond); stored.Before(at) { // as it is noted
			at = stored
		}
	}
	return at, nil
}
