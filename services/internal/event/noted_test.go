package event

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// telling is a broker before which something happens when it is told what was noted.
type telling struct {
	jetstream.JetStream
	first func() error
}

func (b telling) UpdateConsumer(ctx context.Context, stream string, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	if err := b.first(); err != nil {
		return nil, err
	}
	return b.JetStream.UpdateConsumer(ctx, stream, c)
}

// around is a broker before and after which something happens when it tells what it knows of a consumer.
type around struct {
	jetstream.JetStream
	do func()
}

type aroundStream struct {
	jetstream.Stream
	do func()
}

func (a around) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := a.JetStream.Stream(ctx, name)
	return aroundStream{s, a.do}, err
}

func (a aroundStream) Consumer(ctx context.Context, name string) (jetstream.Consumer, error) {
	a.do()
	defer a.do()
	return a.Stream.Consumer(ctx, name)
}

var heardBy = jetstream.ConsumerConfig{Durable: "issuer", FilterSubject: FactsOf("*"), AckPolicy: jetstream.AckExplicitPolicy}

// attends is a consumer of the store that begins, and then notes how far it is.
func (w outboxOf) attends(js jetstream.JetStream, now func() time.Time) (note func() error) {
	w.t.Helper()
	a := &Attendance{DB: w.db, JS: js, Durable: "issuer", Log: servicetest.Log(w.t), Now: now}
	consumer, err := a.Begin(w.t.Context(), heardBy)
	if err != nil {
		w.t.Fatal(err)
	}
	return func() error {
		_, err := a.note(w.t.Context(), consumer)
		return err
	}
}

func (w outboxOf) notes(note func() error) {
	w.t.Helper()
	if err := note(); err != nil {
		w.t.Error(err)
	}
}

// TestStoreThatGoesWithItsConsumer is not taken for one that was set back, whoever is killed, overtaken or older.
func TestStoreThatGoesWithItsConsumer(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		note := w.attends(w.js, time.Now)
		w.notes(note)
		again := func(what string) {
			w.notes(w.attends(w.js, time.Now))
			if got := w.begunAnew(); got != "" || w.count(`SELECT count(*) FROM outbox`) != 1 {
				t.Fatalf("%s: the store is taken for one that was set back", what)
			}
		}
		again("started again")
		killed := errors.New("killed")
		if err := w.attends(telling{w.js, func() error { return killed }}, time.Now)(); !errors.Is(err, killed) {
			t.Error(err)
		}
		again("killed when it has noted and not told")
		w.notes(w.attends(telling{w.js, func() error { return note() }}, time.Now))
		again("a replica has noted and told between the two")
		w.attends(around{w.js, func() { w.notes(note) }}, time.Now)
		again("a replica has noted and told while it began")
		yesterday := func() time.Time { return time.Now().Add(-day) }
		if err := w.attends(telling{w.js, func() error { return killed }}, yesterday)(); !errors.Is(err, killed) {
			t.Error(err)
		}
		again("killed so when the clock had gone back")
		w.notes(w.attends(w.js, yesterday))
		again("the clock went back")
		if _, err := w.js.CreateOrUpdateConsumer(t.Context(), StreamName, heardBy); err != nil {
			t.Error(err)
		}
		again("the version before has begun")
	})
}

// TestStoreIsSetBackUnderItsConsumer: a store is restored while its consumer runs, as by a failover of the database. It notices and
// tells once.
func TestStoreIsSetBackUnderItsConsumer(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		note := w.attends(w.js, time.Now)
		w.notes(note)
		w.write(func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE event_mark SET at = at - 1 WHERE name = 'noted/issuer'`)
			return err
		})
		if err := note(); !errors.Is(err, errSetBack) {
			t.Errorf("it notes: %v", err)
		}
		for range 2 {
			w.notes(w.attends(w.js, time.Now))
		}
		if w.begunAnew() == "" {
			t.Error("the stream does not begin anew")
		}
		if n := w.count(`SELECT count(*) FROM outbox`); n != 2 {
			t.Errorf("it is told %d times", n-1)
		}
	})
}

// TestTwoToldOfAStream that begins anew: the later time stands.
func TestTwoToldOfAStream(t *testing.T) {
	t.Parallel()
	w := newOutbox(t, servicetest.SQLite(t))
	later := time.Now().Add(time.Hour)
	w.beginAnew(later)
	told := w.begunAnew()
	w.beginAnew(later.Add(-time.Minute))
	if got := w.begunAnew(); got != told {
		t.Errorf("told was %s, and now it is %s", told, got)
	}
}
