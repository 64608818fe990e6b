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

// process is one that consumes with a store, by hand.
type process struct {
	w outboxOf
	a *Attendance
	c jetstream.Consumer
}

func (w outboxOf) process() process {
	w.t.Helper()
	a := &Attendance{DB: w.db, JS: w.js, Durable: "issuer", Log: servicetest.Log(w.t), Now: time.Now}
	heardBy := heardBy
	heardBy.AckWait = time.Hour
	c, err := a.Begin(w.t.Context(), heardBy)
	if err != nil {
		w.t.Fatal(err)
	}
	return process{w, a, c}
}

func (w outboxOf) publish(n int) {
	w.t.Helper()
	for range n {
		if _, err := w.js.Publish(w.t.Context(), FactsOf("deployer"), nil); err != nil {
			w.t.Fatal(err)
		}
	}
}

// hears takes that many messages, and acknowledges them but the first ones.
func (p process) hears(n, unanswered int) {
	p.w.t.Helper()
	batch, err := p.c.Fetch(n)
	if err != nil {
		p.w.t.Fatal(err)
	}
	for m := range batch.Messages() {
		n--
		if unanswered--; unanswered >= 0 {
			continue
		}
		if err := m.DoubleAck(p.w.t.Context()); err != nil {
			p.w.t.Error(err)
		}
	}
	if n != 0 {
		p.w.t.Fatalf("%d messages do not come", n)
	}
}

func (p process) notes() {
	p.w.t.Helper()
	if err := p.a.notePlace(p.w.t.Context(), p.c); err != nil {
		p.w.t.Error(err)
	}
}

// waits is how many messages are yet to be delivered.
func (p process) waits(what string, want uint64) {
	p.w.t.Helper()
	info, err := p.c.Info(p.w.t.Context())
	if err != nil {
		p.w.t.Fatal(err)
	}
	if info.NumPending != want {
		p.w.t.Fatalf("%s: %d messages are to be delivered, want %d", what, info.NumPending, want)
	}
}

// TestPlace: what was acknowledged since a store noted its consumer's place is delivered again, and nothing else is.
func TestPlace(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.publish(3)
		p := w.process()
		p.hears(3, 0)
		again := func(what string, want uint64) process {
			p = w.process()
			p.waits(what, want)
			return p
		}
		again("no place was noted but the first", 3).hears(3, 0)
		p.notes()
		again("all is noted", 0)
		w.publish(4)
		p.hears(2, 1)
		p.notes()
		again("one is not answered for, and one after it is", 4).hears(4, 0)
		p.notes()
		w.publish(2)
		p.hears(1, 1)
		again("one is not answered for, and none after it is", 1)
		p.hears(1, 0)
		p.notes()
		if _, err := w.js.Publish(t.Context(), ObservationsOf("deployer"), nil); err != nil {
			t.Fatal(err)
		}
		p.notes()
		again("others have passed", 2).hears(2, 0)

		p.a.ground.server = time.Unix(1, 0)
		p.notes()
		p.waits("another server of the database, and nothing noted since", 2)
		p.hears(2, 0)
		p.notes()
		p.waits("it was taken back once", 0)

		replica := w.process()
		w.publish(2)
		p.hears(1, 0)
		p.notes()
		replica.hears(1, 0)
		replica.notes()
		again("two replicas have noted", 0)
	})
}

// TestPlaceInAnotherStream says nothing.
func TestPlaceInAnotherStream(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.process()
		w.write(func(ctx context.Context, tx db.Tx) error { return setMarkIn(ctx, tx, "place/issuer-2/1", asTime(1)) })
		w.lose()
		w.publish(3)
		p := process{w, nil, nil}
		consumer, err := w.js.CreateOrUpdateConsumer(t.Context(), StreamName, heardBy) // as the version before
		if err != nil {
			t.Fatal(err)
		}
		p.c = consumer
		p.hears(3, 0)
		p = w.process()
		p.waits("the place is the one in the stream before", 0)
		w.publish(1)
		p.hears(1, 0)
		p = w.process()
		p.waits("the place was noted before it was heard", 1)
		if n := w.count(`SELECT count(*) FROM event_mark WHERE name LIKE 'place/%'`); n != 2 {
			t.Errorf("%d places, want that of the stream and another consumer's", n)
		}
	})
}

// late is a consumer of which something else asks before the answer is here.
type late struct {
	jetstream.Consumer
	then func()
}

func (l late) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	info, err := l.Consumer.Info(ctx)
	l.then()
	return info, err
}

// TestPlaceSetBack: a store is restored under a running process, and its server goes on. It begins anew, from its place.
func TestPlaceSetBack(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.publish(3)
		p := w.process()
		p.hears(3, 0)
		p.notes()
		w.publish(2)
		p.hears(2, 0)
		p.notes()
		restore := func(statement string) {
			w.write(func(ctx context.Context, tx db.Tx) error { _, err := tx.Exec(ctx, statement); return err })
		}
		restore(`UPDATE event_mark SET at = 4 WHERE name LIKE 'place/%'`)
		if err := p.a.notePlace(t.Context(), p.c); !errors.Is(err, errSetBackUnder) {
			t.Errorf("it notes: %v", err)
		}
		begin := func() {
			if _, err := p.a.Begin(t.Context(), p.c.CachedInfo().Config); err != nil {
				t.Fatal(err)
			}
		}
		begin()
		p.waits("it was restored", 2)
		p.hears(2, 0)
		p.notes()
		begin()
		p.waits("it was taken back once", 0)

		restore(`DELETE FROM event_mark WHERE name LIKE 'place/%'`)
		p.notes()
		p.waits("it was restored to before its first place", 5)
		p.hears(5, 0)
		p.notes()

		w.write(func(ctx context.Context, tx db.Tx) error {
			row := p.a.ground.row
			if err := raiseMarkIn(ctx, tx, row, asTime(3)); err != nil {
				return err
			}
			at, err := markIn(ctx, tx, row)
			if sequenceOf(at) != 6 {
				t.Errorf("the place went back to %d", sequenceOf(at))
			}
			return err
		})
		replica := w.process()
		w.publish(1)
		slow := process{w, replica.a, late{replica.c, func() { p.hears(1, 0); p.notes() }}}
		slow.notes()
		p.notes()
		p.waits("a replica has noted what was so before", 0)
	})
}

// TestPlaceOfAnotherConsumer of that name, which has heard less, is not its own.
func TestPlaceOfAnotherConsumer(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.publish(3)
		p := w.process()
		p.hears(3, 0)
		p.notes()
		if err := w.js.DeleteConsumer(t.Context(), StreamName, "issuer"); err != nil {
			t.Fatal(err)
		}
		p = w.process()
		p.hears(2, 0)
		w.process().waits("it is taken back to where the other began", 3)
	})
}

// TestPlaceBeforeTheStream: what the stream has forgotten is passed.
func TestPlaceBeforeTheStream(t *testing.T) {
	t.Parallel()
	w := newOutbox(t, servicetest.SQLite(t))
	w.publish(5)
	p := w.process()
	p.hears(5, 0)
	s, err := w.js.Stream(t.Context(), StreamName)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	p = w.process()
	p.waits("two are there yet", 2)
	p.hears(2, 0)
}

// TestObservationsHaveNoPlace: they come again by themselves.
func TestObservationsHaveNoPlace(t *testing.T) {
	t.Parallel()
	w := newOutbox(t, servicetest.SQLite(t))
	a := &Attendance{DB: w.db, JS: w.js, Durable: "issuer-observations", Log: servicetest.Log(t), Now: time.Now}
	_, err := a.Begin(t.Context(), jetstream.ConsumerConfig{Durable: a.Durable, FilterSubject: ObservationsOf("deployer"), AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	if n := w.count(`SELECT count(*) FROM event_mark WHERE name LIKE 'place/%'`); n != 0 {
		t.Errorf("%d places", n)
	}
}

// withoutReset is a broker of a version that cannot take a consumer back: it answers as to anything that it does not know.
type withoutReset struct{ jetstream.JetStream }

func (b withoutReset) ResetConsumerToSequence(ctx context.Context, stream, consumer string, _ uint64) (*jetstream.ConsumerResetResponse, error) {
	_, err := b.Conn().RequestWithContext(ctx, "$JS.API.CONSUMER.UNKNOWN."+stream+"."+consumer, nil)
	if err == nil {
		err = jetstream.ErrConsumerInvalidReset
	}
	return nil, err
}

// TestPlaceAtAnOlderBroker: the consumer goes on, and once the broker is a newer one it is taken back to where its place was.
func TestPlaceAtAnOlderBroker(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		newer := w.js
		w.js = withoutReset{newer}
		w.publish(3)
		w.process().hears(2, 0)
		p := w.process()
		p.waits("nothing comes again", 1)
		p.hears(1, 0)
		p.notes() // asks once more, and notes nothing
		w.js = newer
		p = w.process()
		p.waits("the broker is a newer one", 3)
		p.hears(3, 0)
		p.notes()
		w.process().waits("once", 0)
	})
}

// TestPlaceOfAnOlderBackup says nothing: all publish again what they keep, and what nobody keeps any more is not brought back.
func TestPlaceOfAnOlderBackup(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.publish(3)
		p := w.process()
		if _, err := p.a.note(t.Context(), p.c); err != nil {
			t.Fatal(err)
		}
		p.hears(3, 0)
		w.write(func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE event_mark SET at = at - 1 WHERE name = 'noted/issuer'`)
			return err
		})
		if _, err := p.a.Begin(t.Context(), p.c.CachedInfo().Config); err != nil { // as when that is noticed under a running process
			t.Fatal(err)
		}
		p.waits("the store was set back further", 0)
		if w.begunAnew() == "" {
			t.Error("the stream does not begin anew")
		}
		w.process().waits("it begins once more", 0)
	})
}
