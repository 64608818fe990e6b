package event

import (
	"context"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const (
	// leap is how far the clock may have gone since it was last looked at and be believed at once. What outboxes keep beyond the
	// stream bears it.
	leap = 24 * time.Hour
	// doubt is for how long, while a daemon runs, nothing is forgotten after a greater leap. What inboxes keep beyond outbox and
	// stream bears it.
	doubt = 3 * 24 * time.Hour
	// noteEach is how often the time is noted.
	noteEach = 5 * time.Minute
)

// Names of marks: until when the clock was believed, and for how long it was not since, counted from 1970.
const (
	markBelieved = "clock"
	markDoubted  = "clock doubted"
)

// trust is what is thought of the clock, by which alone events grow old. One that leaps ahead was wrong for a while, or the daemon was
// away; so nothing is forgotten by it until the daemon has run for some days and it still says so.
type trust struct {
	believed, doubted time.Time
	seen              time.Time // when the process last looked, for the time that passed whatever the clock says
	noted             time.Time
	warned            bool
}

// look says whether the clock may be believed.
func (t *trust) look(ctx context.Context, r *Relay) (bool, error) {
	now, begun := r.c.Now(), time.Unix(0, 0)
	if t.seen.IsZero() {
		var err error
		if t.believed, err = mark(ctx, r.c.DB, markBelieved); err != nil {
			return false, err
		}
		if t.doubted, err = mark(ctx, r.c.DB, markDoubted); err != nil {
			return false, err
		}
		t.seen = time.Now()
	}
	passed := time.Since(t.seen)
	t.seen = t.seen.Add(passed)
	switch {
	case t.believed.IsZero() || now.Sub(t.believed) <= leap || t.doubted.Sub(begun) >= doubt:
		t.believed, t.doubted, t.warned = now, begun, false
	default:
		t.doubted = latest(t.doubted, begun).Add(passed)
		if !t.warned {
			r.c.Log.WarnContext(ctx, "the clock has gone ahead by more than a day since this service last looked: it was away, or the clock is wrong. No old event is forgotten before it has run on for three days",
				"service", r.c.Service, "clock", now, "before", t.believed)
			t.warned = true
		}
	}
	trusted := t.believed.Equal(now)
	if !t.noted.IsZero() && t.seen.Sub(t.noted) < noteEach {
		return trusted, nil
	}
	err := r.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := setMarkIn(ctx, tx, markBelieved, t.believed); err != nil {
			return err
		}
		return setMarkIn(ctx, tx, markDoubted, t.doubted)
	})
	if err == nil {
		t.noted = t.seen
	}
	return trusted, err
}
