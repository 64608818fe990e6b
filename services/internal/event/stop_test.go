package event_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestStopFinishes: at a stop what was fetched is handled. A broker in the same process, which stops too, would not know that
// it was handed back.
func TestStopFinishes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	defer w.relay()()
	subjects := names("m", 12)
	w.emitApart(subjects)
	begun, stopping := make(chan struct{}), make(chan struct{})
	var once sync.Once
	stop := w.consume(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
		once.Do(func() { close(begun) })
		<-stopping
		return note(ctx, tx, e)
	})
	<-begun
	consumer := w.fetched(len(subjects))
	var stopped sync.WaitGroup
	stopped.Go(stop)
	w.eventually("it asks for no more", func() bool {
		info, err := consumer.Info(t.Context())
		return err == nil && info.NumWaiting == 0
	})
	close(stopping)
	stopped.Wait()
	if n := len(w.noted()); n != len(subjects) {
		t.Fatalf("%d of %d events were handled when the consumer had stopped", n, len(subjects))
	}
}

// TestStopHandsBack: what cannot be handled before a stop comes to the next process at once, not after JetStream has given
// this one up for dead.
func TestStopHandsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	defer w.relay()()
	subjects := names("m", 12)
	w.emitApart(subjects)
	begun := make(chan struct{})
	var once sync.Once
	stop := w.consume(func(ctx context.Context, _ db.Tx, _ *eventv1.Event) error {
		once.Do(func() { close(begun) })
		<-ctx.Done()
		return ctx.Err()
	})
	var back atomic.Int64
	advice, err := w.js.Conn().Subscribe(server.JSAdvisoryConsumerMsgNakPre+".>", func(*nats.Msg) { back.Add(1) })
	must(t, err)
	must(t, w.js.Conn().Flush())
	<-begun
	w.fetched(len(subjects))
	stop()
	w.eventually("all that was fetched is handed back", func() bool { return back.Load() >= int64(len(subjects)) })
	must(t, advice.Unsubscribe())
	w.consume(note)
	w.arrives(subjects...)
}

// fetched waits until the consumer has that many messages. What JetStream has delivered may be under way yet, and would be lost where
// nobody takes it any more; but its answer to a message that is published after that comes behind it, on the same connection.
func (w *world) fetched(n int) jetstream.Consumer {
	w.t.Helper()
	consumer, err := w.js.Consumer(w.t.Context(), event.StreamName, "deployer")
	must(w.t, err)
	w.eventually("all is fetched", func() bool {
		info, err := consumer.Info(w.t.Context())
		return err == nil && info.Delivered.Consumer == uint64(n)
	})
	_, err = w.js.Publish(w.t.Context(), event.ObservationsOf("inventory"), nil)
	must(w.t, err)
	return consumer
}

// emitApart has each event published in a message of its own.
func (w *world) emitApart(subjects []string) {
	w.t.Helper()
	for _, s := range subjects { // one message each
		w.emit(s)
		var waiting int
		w.eventually("it is published", func() bool {
			w.query(w.from, &waiting, `SELECT count(*) FROM outbox WHERE published_at IS NULL`)
			return waiting == 0
		})
	}
}

// TestStopPublishes what was emitted just before: nothing waits for the next start.
func TestStopPublishes(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		r, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "issuer", Log: servicetest.Log(t), Linger: time.Hour})
		must(t, err)
		var n int
		for range 5 { // a machine that is busy may take too long for it
			stop := w.spawn(r.Run)
			w.eventually("it relays", func() bool {
				w.query(w.from, &n, `SELECT count(*) FROM event_mark WHERE name = 'stream'`)
				return n == 1
			})
			w.emit(names("last", 3)...)
			stop()
			if n = waits(w); n == 0 {
				return
			}
		}
		t.Errorf("%d events wait", n)
	})
}
