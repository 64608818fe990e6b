package event_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// wheel is a clock that the test turns.
type wheel struct{ ahead atomic.Int64 }

func (c *wheel) now() time.Time        { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *wheel) turn(d time.Duration)  { c.ahead.Add(int64(d)) }
func (c *wheel) days(n int)            { c.turn(time.Duration(n) * 24 * time.Hour) }
func (c *wheel) id(n byte) (id string) { return idAt(c.now(), n) }
func inbox(w *world) (n int)           { w.query(w.to, &n, `SELECT count(*) FROM inbox`); return n }
func outbox(w *world) (n int)          { w.query(w.from, &n, `SELECT count(*) FROM outbox`); return n }
func waits(w *world) (n int) {
	w.query(w.from, &n, `SELECT count(*) FROM outbox WHERE published_at IS NULL`)
	return n
}
func publishedSince(w *world, at time.Time) (n int) {
	w.query(w.from, &n, fmt.Sprintf(`SELECT count(*) FROM outbox WHERE published_at >= %d`, db.FromTime(at)))
	return n
}
func (w *world) published(t *testing.T) {
	w.eventually("all is published", func() bool { return waits(w) == 0 })
}

// idAt is a UUIDv7 made at that time.
func idAt(at time.Time, n byte) string {
	var u uuid.UUID
	binary.BigEndian.PutUint64(u[:8], uint64(at.UnixMilli())<<16)
	u[6], u[8], u[15] = 0x70, 0x80, n
	return u.String()
}

func (w *world) relayAt(c *wheel) (stop func()) {
	w.t.Helper()
	r, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "issuer", Log: servicetest.Log(w.t), Now: c.now})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.spawn(r.Run)
}

// own is the consuming service's relay, which looks after its inbox.
func (w *world) ownAt(c *wheel) (stop func()) {
	w.t.Helper()
	r, err := event.NewRelay(event.RelayConfig{DB: w.to, JS: w.js, Service: "deployer", Log: servicetest.Log(w.t), Now: c.now})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.spawn(r.Run)
}

func (w *world) consumeAt(c *wheel, change func(*event.ConsumerConfig)) (stop func()) {
	w.t.Helper()
	cfg := event.ConsumerConfig{DB: w.to, JS: w.js, Durable: "deployer", Filter: []string{event.FactsOf("issuer")}, Handle: event.Each(note), Log: servicetest.Log(w.t), Now: c.now}
	if change != nil {
		change(&cfg)
	}
	consumer, err := event.NewConsumer(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.spawn(consumer.Run)
}

func (w *world) emitAs(c *wheel, n byte, subject string) {
	w.t.Helper()
	err := w.from.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
		e := issued(subject)
		e.Id, e.Time = c.id(n), timestamppb.New(c.now())
		return event.Emit(ctx, tx, e)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// upkept has the relays of both sides run until they have had their turn at the clock's time.
func (w *world) upkept(c *wheel, outboxes, inboxes int) {
	w.t.Helper()
	for _, d := range []*db.DB{w.from, w.to} { // the time was lived through, day by day
		err := d.Write(w.t.Context(), func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE event_mark SET at = $1 WHERE name = 'clock'`, db.FromTime(c.now()))
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	stops := []func(){w.relayAt(c), w.ownAt(c)}
	w.eventually("the boxes are as they should be", func() bool { return outbox(w) == outboxes && inbox(w) == inboxes })
	time.Sleep(300 * time.Millisecond) // for what would be pruned too early
	if o, i := outbox(w), inbox(w); o != outboxes || i != inboxes {
		w.t.Fatalf("%d events in the outbox, %d in the inbox, want %d and %d", o, i, outboxes, inboxes)
	}
	for _, stop := range stops {
		stop()
	}
}

// TestNothingIsForgottenThatCanComeAgain: an outbox keeps an event for as long as it may have to be published again, and an
// inbox for as long as it may come again, both counted from the last time.
func TestNothingIsForgottenThatCanComeAgain(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		w.emitAs(clock, 1, "one")
		stop := w.relayAt(clock)
		heard := w.consumeAt(clock, nil)
		w.arrives("one")
		w.published(t)
		stop()
		heard()
		clock.days(34)
		w.upkept(clock, 1, 1) // it may have to be published again
		// It is, since the broker has lost it, and the consumer hears it a second time.
		w.broker.Stop()
		w.broker.Lose()
		w.broker.Start()
		w.ensure(event.StreamLimits{})
		w.emitAs(clock, 2, "two") // so that the first is known to have come
		stop = w.relayAt(clock)
		heard = w.consumeAt(clock, nil)
		w.arrives("one", "two") // "one" was there already
		w.eventually("both are in the new stream", func() bool { return publishedSince(w, clock.now().Add(-24*time.Hour)) == 2 })
		w.eventually("the broker has delivered everything", w.idle)
		stop()
		heard()
		clock.days(34)
		w.upkept(clock, 2, 2) // 68 days after the first time, 34 after the last
		clock.days(2)
		w.upkept(clock, 0, 2) // out of the outbox, and perhaps in the stream yet
		clock.days(33)
		w.upkept(clock, 0, 2)
		clock.days(2)
		w.upkept(clock, 0, 0) // 71 days after the last time
	})
}

func TestWhatWaitsIsNeverForgotten(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		w.ensure(event.StreamLimits{MaxBytes: 50}) // full
		w.emitAs(clock, 1, "one")
		clock.days(400)
		w.upkept(clock, 1, 0)
		w.ensure(event.StreamLimits{})
		w.relayAt(clock)
		w.consumeAt(clock, nil)
		w.arrives("one")
	})
}

func TestSkippedIsKept(t *testing.T) {
	t.Parallel()
	w, clock := newWorld(t, servicetest.SQLite(t)), &wheel{}
	w.emitAs(clock, 1, "poison")
	stops := []func(){w.relayAt(clock), w.consumeAt(clock, func(c *event.ConsumerConfig) {
		c.Handle = event.Each(func(context.Context, db.Tx, *eventv1.Event) error {
			return fault.New(fault.Permanent, "NEVER", "this will never do")
		})
	})}
	w.eventually("it is skipped", func() bool { return inbox(w) == 1 })
	w.published(t)
	for _, stop := range stops {
		stop()
	}
	clock.days(400)
	w.upkept(clock, 0, 1)
}

// TestManyAreForgotten in parts.
func TestManyAreForgotten(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		w.emit(names("r", 1700)...)
		stop := w.relayAt(clock)
		w.published(t)
		stop()
		clock.days(36)
		w.upkept(clock, 0, 0)
	})
}

// TestBrokerThatLostEverything: what its stores have published comes again, and each consumer handles once what it had not.
func TestBrokerThatLostEverything(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		stop := w.relay()
		heard := w.consume(note)
		first := names("heard", 700)
		w.emit(first...)
		w.arrives(first...)
		heard()
		second := names("unheard", 700)
		w.emit(second...)
		w.published(t)
		stop()
		time.Sleep(11 * time.Second) // for longer than the clocks of broker and store may be apart
		w.broker.Stop()
		w.broker.Lose()
		w.broker.Start()
		w.ensure(event.StreamLimits{})
		w.consume(note)
		stop = w.relay()
		w.arrives(append(first, second...)...)
		w.eventually("nothing waits", func() bool { return waits(w) == 0 && w.idle() })
		stop()
		// Once is enough: a relay that starts again finds the stream it knows.
		var before, after uint64
		before = w.last()
		w.relay()
		w.emit("last")
		w.eventually("the last is published", func() bool { after = w.last(); return after > before })
		w.published(t)
		if after = w.last(); after != before+1 {
			t.Errorf("%d messages for one event", after-before)
		}
	})
}

// TestBrokerThatLostEverythingUnderLoad: that new events keep coming does not keep a relay from noticing.
func TestBrokerThatLostEverythingUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	var clock wheel
	w.relayAt(&clock)
	unheard := names("unheard", 10)
	w.emit(unheard...)
	w.published(t)
	load, stop := context.WithCancel(t.Context())
	var emitting sync.WaitGroup
	for e := range 8 {
		emitting.Go(func() {
			for n := 0; load.Err() == nil; n++ {
				w.emit(fmt.Sprintf("load-%d-%d", e, n))
				time.Sleep(time.Millisecond)
			}
		})
	}
	defer emitting.Wait()
	defer stop()
	first := w.last()
	w.eventually("the relay is at work", func() bool { return w.last() > first+3 })
	if err := w.js.DeleteStream(t.Context(), event.StreamName); err != nil {
		t.Fatal(err)
	}
	w.ensure(event.StreamLimits{})
	clock.turn(2 * time.Minute)
	w.consume(note)
	w.eventually("what was not heard comes again", func() bool {
		heard := w.noted()
		return !slices.ContainsFunc(unheard, func(s string) bool { return heard[s] == 0 })
	})
}

func (w *world) last() uint64 {
	w.t.Helper()
	s, err := w.js.Stream(context.Background(), event.StreamName)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

// TestConsumerThatWasAwayForTooLong notices it, says it, and gets what it has missed.
func TestConsumerThatWasAwayForTooLong(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		w.ensure(event.StreamLimits{MaxAge: 15 * time.Second})
		stop := w.relay()
		heard := w.consumeAt(clock, nil)
		w.emit("before")
		w.arrives("before")
		w.eventually("until when it has heard is noted", func() bool {
			var n int
			w.query(w.to, &n, `SELECT count(*) FROM event_mark WHERE name = 'consumer/deployer'`)
			return n == 1
		})
		heard()
		missed := names("missed", 100)
		w.emit(missed...)
		w.published(t)
		w.eventually("the stream has forgotten", func() bool {
			s, err := w.js.Stream(t.Context(), event.StreamName)
			return err == nil && s.CachedInfo().State.Msgs == 0
		})
		stop()
		w.emit("after")
		w.consumeAt(clock, nil)
		w.eventually("it says what it has missed", func() bool {
			var n int
			w.query(w.to, &n, `SELECT count(*) FROM outbox`)
			return n == 1
		})
		w.relay()
		w.arrives(slices.Concat([]string{"before", "after"}, missed)...)
	})
}

// stuckAmong has the consumer fail at one event, as long as that is told to, and handle another that came later.
func (w *world) stuckAmong(clock *wheel) (failing *atomic.Bool, stop func()) {
	w.t.Helper()
	w.emit("stuck")
	w.published(w.t)
	w.emit("later")
	w.published(w.t)
	failing = new(atomic.Bool)
	failing.Store(true)
	stop = w.consumeAt(clock, func(c *event.ConsumerConfig) {
		c.Handle = event.Each(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
			if e.GetSubject() == "stuck" && failing.Load() {
				return errors.New("not yet")
			}
			return note(ctx, tx, e)
		})
	})
	w.arrives("later")
	return failing, stop
}

// TestWhatFailsIsNotHeard: of what is handled after an event that fails it is not concluded that the event was heard.
func TestWhatFailsIsNotHeard(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		w.relay()
		w.stuckAmong(clock)
		var heard int64
		w.eventually("until when it has heard is noted", func() bool {
			w.query(w.to, &heard, `SELECT coalesce(max(at), 0) FROM event_mark WHERE name = 'consumer/deployer'`)
			return heard > 0
		})
		s, err := w.js.Stream(t.Context(), event.StreamName)
		if err != nil {
			t.Fatal(err)
		}
		stuck, err := s.GetMsg(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if db.Time(heard).After(stuck.Time) {
			t.Errorf("everything is said to be heard until %s, and what came at %s is not", db.Time(heard), stuck.Time)
		}
	})
}

// TestWhatFailsUntilItIsForgotten by the stream comes again. The store does not take what is to be postponed.
func TestWhatFailsUntilItIsForgotten(t *testing.T) {
	t.Parallel()
	w, clock := newWorld(t, servicetest.SQLite(t)), &wheel{}
	w.ensure(event.StreamLimits{MaxAge: 15 * time.Second})
	stop := w.relay()
	must(t, w.to.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TRIGGER full BEFORE INSERT ON postponed BEGIN SELECT RAISE(ABORT, 'full'); END`)
		return err
	}))
	failing, _ := w.stuckAmong(clock)
	w.eventually("the stream has forgotten", func() bool {
		s, err := w.js.Stream(t.Context(), event.StreamName)
		return err == nil && s.CachedInfo().State.Msgs == 0
	})
	failing.Store(false)
	stop()
	w.eventually("it says what it has missed", func() bool {
		var n int
		w.query(w.to, &n, `SELECT count(*) FROM outbox`)
		return n > 0
	})
	w.relay()
	w.arrives("stuck", "later")
}

// TestObservationsLeaveNothing behind, neither where they were made nor where they were handled.
func TestObservationsLeaveNothing(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		w.relay()
		tries := 0
		w.consumeAt(clock, func(c *event.ConsumerConfig) {
			c.Filter, c.Repeatable = []string{event.ObservationsOf("issuer")}, true
			c.Handle = event.Each(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
				if tries++; tries == 1 {
					return errors.New("not yet")
				}
				return note(ctx, tx, e)
			})
		})
		err := w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error { return event.Observe(ctx, tx, issued("seen")) })
		if err != nil {
			t.Fatal(err)
		}
		w.arrives("seen")
		w.eventually("the broker has delivered everything", w.idle)
		w.eventually("the outbox is empty", func() bool { return outbox(w) == 0 })
		if n := inbox(w); n != 0 {
			t.Errorf("%d rows in the inbox", n)
		}
	})
}
