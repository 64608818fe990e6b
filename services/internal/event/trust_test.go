package event

import (
	"context"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

const day = 24 * time.Hour

// clocked is a relay whose clock is set by the test.
type clocked struct {
	outboxOf
	now time.Time
	*upkeep
}

func newClocked(t *testing.T, c db.Config) *clocked {
	t.Helper()
	w := &clocked{outboxOf: newOutbox(t, c), now: time.Now()}
	w.start()
	return w
}

func (w *clocked) start() {
	w.t.Helper()
	w.upkeep = w.outboxOf.relay(w.js, func() time.Time { return w.now })
}

func (w *clocked) turn() {
	w.t.Helper()
	w.leased(func(ctx context.Context) {
		if err := turn(ctx, w.upkeep); err != nil {
			w.t.Error(err)
		}
	})
}

// boxes says how many events the outbox holds, and ids the inbox.
func (w *clocked) has(outbox, inbox int) {
	w.t.Helper()
	if o, i := w.count(`SELECT count(*) FROM outbox`), w.count(`SELECT count(*) FROM inbox`); o != outbox || i != inbox {
		w.t.Errorf("%d events in the outbox, %d ids in the inbox, want %d and %d", o, i, outbox, inbox)
	}
}

// TestClockAhead: a clock that is months ahead for a while has nothing forgotten that may come again, or may have to.
func TestClockAhead(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newClocked(t, c)
		w.write(func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO inbox (event_id, received) VALUES ($1, $2)`, firstID(w.now)+"-7000-8000-000000000000", db.FromTime(w.now))
			return err
		})
		w.turn()
		w.has(1, 1)
		w.now = w.now.Add(100 * day)
		w.turn()
		w.start() // a daemon that starts knows no more of it
		w.turn()
		w.has(1, 1)
		w.now = w.now.Add(-100 * day)
		w.turn()
		w.lose()
		w.now = w.now.Add(2 * examineEach)
		w.turn()
		if n := w.messages(); n != 1 {
			t.Errorf("%d messages in the new stream", n)
		}
	})
}

// TestClockThatGoesOn: a clock that has leapt and is right, because the daemon was away, is believed some days later, however often
// the daemon is started meanwhile.
func TestClockThatGoesOn(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newClocked(t, c)
		w.turn()
		w.now = w.now.Add(100 * day)
		for range 2 {
			w.start()
			w.turn()
			w.trust.seen, w.trust.noted = w.trust.seen.Add(-doubt/2), w.trust.noted.Add(-doubt/2) // so long ago
			w.turn()
		}
		w.turn()
		w.has(0, 0)
	})
}

// TestPublishedInTheFuture: what was published while the clock was ahead comes again when the broker has lost it.
func TestPublishedInTheFuture(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newClocked(t, c)
		w.now = w.now.Add(10 * day)
		w.turn()
		w.now = w.now.Add(-10 * day)
		w.lose()
		w.turn()
		if n := w.messages(); n != 1 {
			t.Errorf("%d messages in the new stream", n)
		}
	})
}
