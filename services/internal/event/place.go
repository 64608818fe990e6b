package event

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// placeEach is how often a store notes its consumer's place, and so how much at most comes again after a crash.
const placeEach = 30 * time.Second

const (
	resetBound = 2 * time.Second // an older broker does not answer, and a consumer that begins does not wait for long
	leaveBound = finishBound
)

// errSetBackUnder ends a subscription, so that the next Begin looks how far the store was set back.
var errSetBackUnder = errors.New("the store does not know a place that was noted there: it was set back")

// ground is what a place was found to be right for: a run of the store's server, and a row, which names the stream.
type ground struct {
	server time.Time
	row    string
}

// place names the row that says which message of a stream is the first that the store may not have had. A stream that was made anew
// counts from the beginning.
func (a *Attendance) place(stream *jetstream.StreamInfo) string {
	return "place/" + a.Durable + "/" + strconv.FormatInt(stream.Created.UnixMicro(), 10)
}

// sequenceOf reads a sequence from where others note a time; 0, which no message has, is none.
func sequenceOf(noted time.Time) uint64 {
	if noted.IsZero() {
		return 0
	}
	return uint64(noted.UnixMicro())
}

func asTime(sequence uint64) time.Time { return time.UnixMicro(int64(sequence)) }

// hearsFacts is not so of a consumer of observations alone, which come again by themselves.
func hearsFacts(c jetstream.ConsumerConfig) bool {
	return slices.ContainsFunc(append(slices.Clone(c.FilterSubjects), c.FilterSubject), func(s string) bool { return strings.HasSuffix(s, "."+facts) })
}

// notePlace notes how far the consumer has come: all before that was acknowledged, and so committed here before. When the process begins,
// and when the store is another server's than before, it first looks whether the store's own place is behind that. Then it may have been set
// back by a moment, and the consumer is taken back to its place. Mostly there was a crash, or a replica goes on: who has the events drops them.
// A place only ever grows. One that is less than this process knows was restored under it: errSetBackUnder.
func (a *Attendance) notePlace(ctx context.Context, consumer jetstream.Consumer) error {
	if !hearsFacts(consumer.CachedInfo().Config) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	stream, err := a.JS.Stream(ctx, StreamName) // before the consumer, or its place may be one in the stream before
	if err != nil {
		return err
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return err
	}
	now := ground{row: a.place(stream.CachedInfo())}
	heard := info.AckFloor.Stream + 1
	var place uint64
	var doubtful, under bool
	err = a.DB.Write(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		if now.server, err = a.DB.ServerStarted(ctx, tx); err != nil {
			return err
		}
		noted, err := markIn(ctx, tx, now.row)
		if err != nil {
			return err
		}
		place = sequenceOf(noted)
		doubtful = now != a.ground && place != 0
		under = now == a.ground && place != 0 && place < a.last
		switch {
		case place == 0 && now.row == a.ground.row: // not even its first place is left
			place, doubtful = 1, true
			return setMarkIn(ctx, tx, now.row, asTime(place))
		case under:
			return nil
		case doubtful && place > heard: // another consumer of that name, or the stream is older than the store
			place = heard
			return setMarkIn(ctx, tx, now.row, asTime(heard))
		case doubtful || place >= heard:
			return nil
		case place == 0:
			if err := a.forgetPlaces(ctx, tx, now.row); err != nil {
				return err
			}
		}
		return raiseMarkIn(ctx, tx, now.row, asTime(heard))
	})
	if err != nil {
		return err
	}
	if under {
		a.ground = ground{}
		return errSetBackUnder
	}
	if doubtful && acknowledgedBeyond(info, place) && !a.takeBack(ctx, place) {
		return nil // and nothing is noted before it was
	}
	if !doubtful {
		place = max(place, heard)
	}
	a.ground, a.last = now, place
	return nil
}

// forgetPlaces drops the consumer's places in streams that were made before that row's. A replica may not know the new stream yet.
func (a *Attendance) forgetPlaces(ctx context.Context, tx db.Tx, row string) error {
	prefix := "place/" + a.Durable + "/"
	_, err := tx.Exec(ctx, `DELETE FROM event_mark WHERE substr(name, 1, $1) = $2 AND name < $3`, len(prefix), prefix, row)
	return err
}

// acknowledgedBeyond says whether the consumer may have acknowledged that message or a later one.
func acknowledgedBeyond(info *jetstream.ConsumerInfo, place uint64) bool {
	return info.AckFloor.Stream >= place ||
		info.Delivered.Stream >= place && info.Delivered.Consumer-info.AckFloor.Consumer > uint64(info.NumAckPending)
}

// takeBack has the broker deliver again from a place on.
func (a *Attendance) takeBack(ctx context.Context, place uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, resetBound)
	defer cancel()
	info, err := a.JS.ResetConsumerToSequence(ctx, StreamName, a.Durable, place)
	if err != nil {
		if !a.refused {
			a.Log.InfoContext(ctx, "the broker does not deliver again what was acknowledged since the store last noted its consumer's place; nats-server before 2.14 cannot. Should the store have been set back since, it lacks that",
				"consumer", a.Durable, "from", place, "error", err)
		}
		a.refused = true
		return false
	}
	a.refused = false
	a.Log.InfoContext(ctx, "what was delivered since the store last noted its consumer's place is delivered again; what the store has of it is dropped",
		"consumer", a.Durable, "from", place, "messages", info.NumPending)
	return true
}

// Leave notes the place at an orderly stop, when nothing is being handled any more: then nothing comes again. It takes at most five seconds.
func (a *Attendance) Leave(ctx context.Context, consumer jetstream.Consumer) {
	if ctx.Err() == nil || !a.JS.Conn().IsConnected() {
		return
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveBound)
	defer cancel()
	if err := a.notePlace(leaving, consumer); err != nil {
		a.Log.InfoContext(ctx, "the consumer's place is not noted at the stop: some of what it has heard comes again", "consumer", a.Durable, "error", err)
	}
}
