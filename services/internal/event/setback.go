package event

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// metaSetBack is the stream's metadata by which a relay tells all others that a store was set back, as by a backup, while the stream
// was not (decision 14). The stream is then taken for one that was made at that time.
const metaSetBack = "sallyport-set-back"

// setBack is zero for a stream that goes with its stores from the beginning.
func setBack(c jetstream.StreamConfig) time.Time {
	micros, err := strconv.ParseInt(c.Metadata[metaSetBack], 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(micros)
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// compare looks whether the stream goes with the store: whether what it was last told from here, since it has begun, is known here.
// If it is not, or the store was restored after the stream has begun, all relays are told that it begins now.
func (k *upkeep) compare(ctx context.Context, stream jetstream.Stream, begun time.Time) (time.Time, error) {
	last, err := stream.GetLastMsgForSubject(ctx, FactsOf(k.c.Service))
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return begun, err
	}
	at := latest(latest(k.c.Now(), k.c.Restored), begun.Add(time.Microsecond))
	if last != nil && last.Time.After(begun) && k.c.Now().Sub(last.Time) < keepStream { // or the outbox may have forgotten it
		foreign, err := k.foreign(ctx, last.Data)
		if err != nil {
			return begun, err
		}
		if foreign != "" {
			k.c.Log.ErrorContext(ctx, "the event stream holds events of this service that its store does not have: the store was restored from a backup or another was put in its place, or another deployment uses this broker. All services publish again what they keep, and who has it drops it",
				"service", k.c.Service, "event", foreign, "published", last.Time)
			if err := k.tell(ctx, foreign, last.Time); err != nil {
				return begun, err
			}
			return setStreamBack(ctx, k.c.JS, stream, latest(at, last.Time))
		}
	}
	if k.c.Restored.After(begun) {
		return setStreamBack(ctx, k.c.JS, stream, at)
	}
	return begun, nil
}

// foreign gives the id of an event of a message that the outbox does not know, if there is one. What cannot be read was not published
// from here, and says nothing of the store.
func (k *upkeep) foreign(ctx context.Context, message []byte) (string, error) {
	events, _, err := decode(message, nil)
	if err != nil {
		k.trouble(ctx, "reading the last message that the stream has of this service", err)
		return "", nil
	}
	ids := map[string]bool{}
	for _, e := range events {
		ids[e.GetId()] = true
	}
	var args []any
	in := db.In(&args, slices.Collect(maps.Keys(ids)))
	err = k.c.DB.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return eachText(ctx, tx, func(id string) { delete(ids, id) }, `SELECT id FROM outbox WHERE id IN `+in, args...)
	})
	if err != nil {
		return "", err
	}
	for id := range ids {
		return id, nil
	}
	return "", nil
}

// tell records, once, what was found.
func (k *upkeep) tell(ctx context.Context, foreign string, published time.Time) error {
	const name = "foreign"
	return k.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		known, err := markIn(ctx, tx, name)
		if err != nil || known.Equal(published.Truncate(time.Microsecond)) {
			return err
		}
		err = Emit(ctx, tx, &eventv1.Event{
			Type: k.c.Service + ".store.set_back", Subject: "stores/" + k.c.Service, Result: eventv1.Result_RESULT_FAILED,
			Reason: "the event stream holds events of this service that its store does not have: the store was restored from a backup, or another was put in its place",
			Facts:  map[string]string{"event": foreign, "published": published.UTC().Format(time.RFC3339)},
		})
		if err != nil {
			return err
		}
		return setMarkIn(ctx, tx, name, published)
	})
}

// setStreamBack has the stream begin at that time, or as late as somebody has told meanwhile.
func setStreamBack(ctx context.Context, js jetstream.JetStream, stream jetstream.Stream, at time.Time) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	info, err := stream.Info(ctx)
	if err != nil {
		return at, err
	}
	at = at.Truncate(time.Microsecond)
	if told := setBack(info.Config); told.After(at) {
		return told, nil
	}
	c := info.Config
	c.Metadata = maps.Clone(c.Metadata)
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	c.Metadata[metaSetBack] = strconv.FormatInt(at.UnixMicro(), 10)
	if _, err := js.UpdateStream(ctx, c); err != nil {
		return at, fmt.Errorf("telling that the stream is to begin anew: %w", err)
	}
	return at, nil
}
