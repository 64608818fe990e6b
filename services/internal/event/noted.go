package event

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// metaNoted is the metadata by which a consumer says what its store has noted last. A store notes first and tells then, each time a later
// time than before, whatever the clock says; so one that does not know what was told was set back. Then it lacks what its consumer
// has heard since, and all is published again (decision 14).
const metaNoted = "sallyport-noted"

var errSetBack = errors.New("the store does not know what it has told the broker: it was set back")

// notedIn is zero where nothing is noted, as by the version before.
func notedIn(metadata map[string]string) time.Time {
	micros, err := strconv.ParseInt(metadata[metaNoted], 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(micros)
}

func (a *Attendance) noted() string { return "noted/" + a.Durable }

// count notes until when everything was heard, and gives what was noted. told was told before.
func (a *Attendance) count(ctx context.Context, heard, told time.Time) (noted time.Time, err error) {
	err = a.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		before, err := markIn(ctx, tx, a.noted())
		if err != nil {
			return err
		}
		if told.After(before) {
			return errSetBack
		}
		noted = latest(a.Now().Truncate(time.Microsecond), before.Add(time.Microsecond))
		if err := setMarkIn(ctx, tx, a.noted(), noted); err != nil {
			return err
		}
		return setMarkIn(ctx, tx, a.name(), heard)
	})
	return noted, err
}

// show tells the broker what was noted.
func (a *Attendance) show(ctx context.Context, c jetstream.ConsumerConfig, noted time.Time) error {
	c.Metadata = maps.Clone(c.Metadata)
	if c.Metadata == nil {
		c.Metadata = map[string]string{}
	}
	c.Metadata[metaNoted] = strconv.FormatInt(noted.UnixMicro(), 10)
	if _, err := a.JS.UpdateConsumer(ctx, StreamName, c); err != nil {
		return fmt.Errorf("telling the broker what was noted: %w", err)
	}
	return nil
}

// compare looks whether the store knows what was told from here, and has the stream begin anew if not. It gives what is to be told.
func (a *Attendance) compare(ctx context.Context, stream jetstream.Stream, c jetstream.ConsumerConfig, metadata map[string]string) (string, error) {
	told := notedIn(metadata)
	known, err := mark(ctx, a.DB, a.noted()) // after what was told was read: a replica may be noting
	if err != nil || !told.After(known) {
		return metadata[metaNoted], err
	}
	if !hearsFacts(c) {
		return metadata[metaNoted], setMark(ctx, a.DB, a.noted(), told)
	}
	a.Log.ErrorContext(ctx, "the store does not know how far its consumer has come: the store was restored from a backup or another was put in its place, or another deployment uses this broker. All services publish again what they keep, and who has it drops it",
		"consumer", a.Durable, "known", known, "told", told)
	begun, now := setBack(stream.CachedInfo().Config), a.Now()
	// Nobody has noted here since the stream began anew: then it did for the same reason.
	if begun.Before(told.Add(2*attendEach)) || begun.After(now.Add(skew)) {
		if _, err := setStreamBack(ctx, a.JS, stream, latest(now, begun.Add(time.Microsecond))); err != nil {
			return "", err
		}
	}
	service, _, _ := strings.Cut(a.Durable, "-")
	a.ground = ground{} // the place is given up below
	return metadata[metaNoted], a.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		err := Emit(ctx, tx, &eventv1.Event{
			Type: service + ".store.set_back", Subject: "stores/" + service, Result: eventv1.Result_RESULT_FAILED,
			Reason: "the store does not know how far its consumer has come: it was restored from a backup, or another was put in its place",
			Facts:  map[string]string{"consumer": a.Durable, "known": known.UTC().Format(time.RFC3339), "told": told.UTC().Format(time.RFC3339)},
		})
		if err != nil {
			return err
		}
		// What it has heard since comes again from who keeps it, and the events of the lost time do not (decision 14).
		if _, err := tx.Exec(ctx, `DELETE FROM event_mark WHERE name = $1`, a.place(stream.CachedInfo())); err != nil {
			return err
		}
		return setMarkIn(ctx, tx, a.noted(), told)
	})
}
