package event_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func (w *world) postponed() (n int) {
	w.t.Helper()
	w.query(w.to, &n, `SELECT count(*) FROM postponed`)
	return n
}

// failing fails at events that are called bad or worse, until it is to be good; then at the worse ones for ever.
func failing(good *atomic.Bool) handler {
	return func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
		kind, _, _ := strings.Cut(e.GetSubject(), "-")
		switch {
		case (kind == "bad" || kind == "worse") && !good.Load():
			return errors.New("not yet")
		case kind == "worse":
			return fault.New(fault.Permanent, "NEVER", "this will never do")
		}
		return note(ctx, tx, e)
	}
}

// TestPostponed: what fails again and again is acknowledged and kept, and handled once when it can be, whoever is first: the broker,
// which brings it again, or one of two replicas. What then can never be handled is skipped.
func TestPostponed(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		stop := w.relay()
		var good atomic.Bool
		w.consume(failing(&good))
		w.emit("bad-0", "fine", "bad-1", "worse")
		w.eventually("the message is acknowledged, and what failed is postponed", func() bool { return w.postponed() == 3 && w.idle() })
		w.arrives("fine")
		stop()
		w.eventually("it is tried", func() bool {
			var tries int
			w.query(w.to, &tries, `SELECT max(tries) FROM postponed`)
			return tries > 0
		})
		must(t, w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error { // as when the broker has lost it
			_, err := tx.Exec(ctx, `UPDATE outbox SET published_at = NULL`)
			return err
		}))
		w.emit("later")
		w.relay()
		replica := *w
		if c.Driver == db.Postgres {
			replica.to = w.open(c, "deployer")
		}
		replica.consume(failing(&good))
		good.Store(true)
		w.arrives("bad-0", "bad-1", "fine", "later")
		w.eventually("nothing is postponed", func() bool { return w.postponed() == 0 && w.idle() })
		w.arrives("bad-0", "bad-1", "fine", "later")
		var skipped int
		w.query(w.to, &skipped, `SELECT count(*) FROM inbox WHERE error <> ''`)
		if skipped != 1 {
			t.Errorf("%d events are skipped", skipped)
		}
	})
}
