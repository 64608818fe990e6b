package event

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// interrupted is a broker behind which something happens as soon as it has stored a message, before its publisher goes on.
type interrupted struct {
	jetstream.JetStream
	then func()
}

func (i interrupted) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := i.JetStream.PublishMsg(ctx, m, opts...)
	if err == nil {
		i.then()
	}
	return ack, err
}

// outboxOf is a store with one event that waits, and a broker.
type outboxOf struct {
	t  *testing.T
	db *db.DB
	js jetstream.JetStream
}

func newOutbox(t *testing.T, c db.Config) outboxOf {
	t.Helper()
	js, err := jetstream.New(servicetest.NATS(t))
	if err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(t.Context(), c, WithSchema(db.Merge()), "issuer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	w := outboxOf{t, d, js}
	w.ensure()
	w.write(func(ctx context.Context, tx db.Tx) error {
		return Emit(ctx, tx, &eventv1.Event{Type: "issuer.request.issued", Subject: "requests/1"})
	})
	return w
}

func (w outboxOf) write(fn func(context.Context, db.Tx) error) {
	w.t.Helper()
	if err := w.db.Write(w.t.Context(), fn); err != nil {
		w.t.Error(err)
	}
}

func (w outboxOf) ensure() {
	w.t.Helper()
	if err := EnsureStreams(w.t.Context(), w.js, StreamLimits{}); err != nil {
		w.t.Error(err)
	}
}

// lose has the broker lose what it has.
func (w outboxOf) lose() {
	w.t.Helper()
	if err := w.js.DeleteStream(w.t.Context(), StreamName); err != nil {
		w.t.Error(err)
	}
	w.ensure()
}

func (w outboxOf) messages() uint64 {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), StreamName)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// count gives how many rows a query finds.
func (w outboxOf) count(query string, args ...any) (n int) {
	w.t.Helper()
	err := w.db.Read(w.t.Context(), func(ctx context.Context, tx db.Tx) error { return tx.QueryRow(ctx, query, args...).Scan(&n) })
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w outboxOf) relay(js jetstream.JetStream, now func() time.Time) *upkeep {
	w.t.Helper()
	r, err := NewRelay(RelayConfig{DB: w.db, JS: js, Service: "issuer", Log: servicetest.Log(w.t), Now: now})
	if err != nil {
		w.t.Fatal(err)
	}
	return &upkeep{Relay: r, answered: map[string]bool{}}
}

// leased runs fn as a relay does.
func (w outboxOf) leased(fn func(context.Context)) {
	w.t.Helper()
	err := lease.Run(w.t.Context(), w.db, "outbox", time.Hour, func(ctx context.Context) error {
		fn(ctx)
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
}

// turn is one of a relay's.
func turn(ctx context.Context, r *upkeep) error {
	r.pass(ctx)
	_, err := r.Relay.pass(ctx)
	return err
}

// TestMarkOfOneWhoLostTheLease: between the publication and the mark of it a relay loses the lease, the broker its data, and the next
// relay has published again what was marked.
func TestMarkOfOneWhoLostTheLease(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		next, over := make(chan context.Context), make(chan struct{})
		quick := w.relay(w.js, time.Now)
		var quickly context.Context
		var holding sync.WaitGroup
		slow := w.relay(interrupted{w.js, func() {
			w.write(func(ctx context.Context, tx db.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE lease SET holder = ''`) // as if it had run out
				return err
			})
			holding.Go(func() { w.leased(func(ctx context.Context) { next <- ctx; <-over }) })
			quickly = <-next
			w.lose()
			quick.pass(quickly)
		}}, time.Now)
		w.leased(func(ctx context.Context) { t.Logf("who has lost the lease: %v", turn(ctx, slow)) })
		if err := turn(quickly, quick); err != nil {
			t.Error(err)
		}
		close(over)
		holding.Wait()
		if n := w.messages(); n != 1 {
			t.Errorf("%d messages in the new stream", n)
		}
	})
}

// TestLateMark: the store is slow to take the mark of a publication, and the broker loses its data meanwhile.
func TestLateMark(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		now := time.Now()
		lost := false
		r := w.relay(interrupted{w.js, func() {
			if !lost {
				lost = true
				w.lose()
				now = now.Add(2 * examineEach)
			}
		}}, func() time.Time { return now })
		w.leased(func(ctx context.Context) {
			for range 2 {
				if err := turn(ctx, r); err != nil {
					t.Error(err)
				}
			}
		})
		if n := w.messages(); n != 1 {
			t.Errorf("%d messages in the new stream", n)
		}
	})
}
