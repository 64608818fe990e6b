// Package watch keeps the findings true: it judges subjects when something about them has changed, when time alone changes
// the answer, and all of them from time to time.
//
// It guarantees that one replica does so at a time, and that what an interruption leaves undone is done later. It asks nobody
// but the store. The rules are in package finding.
package watch

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
)

const (
	leaseName = "watch"
	leaseTTL  = 15 * time.Second
	// lookEvery is how soon what another replica touched, or what time alone changed, is judged.
	lookEvery = time.Second
	batch     = 200 // subjects in one transaction
	keepScans = 48 * time.Hour
	pause     = 2 * time.Second // after an error
)

// Config is what a Watch needs; all of it is required.
type Config struct {
	Store  *store.Store
	Limits finding.Limits
	// Review is the time between two passes over everything.
	Review time.Duration
	Now    func() time.Time
	Log    *slog.Logger
}

// Watch is the loop.
type Watch struct{ c Config }

// New validates c.
func New(c Config) (*Watch, error) {
	if c.Store == nil || c.Now == nil || c.Log == nil || c.Review <= 0 || c.Limits.Expiring <= 0 || c.Limits.Critical <= 0 || c.Limits.HostSilent <= 0 {
		return nil, fmt.Errorf("watch.New: Store, Limits, Review, Now and Log are required")
	}
	return &Watch{c: c}, nil
}

// Run works until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	touched := w.c.Store.DB().Listen(store.DueTopic)
	return lease.Run(ctx, w.c.Store.DB(), leaseName, leaseTTL, func(ctx context.Context) error {
		// The first pass is not at once: after a start consumers have catching up to do.
		review := time.After(time.Minute + rand.N(time.Minute))
		for ctx.Err() == nil {
			err := w.Drain(ctx)
			if w.failed(ctx, "judging what is due", err) {
				continue
			}
			select {
			case <-ctx.Done():
			case <-touched:
			case <-time.After(lookEvery):
			case <-review:
				begun := time.Now()
				err := w.ReviewAll(ctx)
				if !w.failed(ctx, "reviewing everything", err) {
					w.c.Log.DebugContext(ctx, "reviewed everything", "duration", time.Since(begun))
				}
				review = time.After(w.c.Review - w.c.Review/10 + rand.N(w.c.Review/5))
			}
		}
		return nil
	})
}

func (w *Watch) failed(ctx context.Context, doing string, err error) bool {
	if err == nil || ctx.Err() != nil {
		return false
	}
	level := slog.LevelError
	if fault.KindOf(err) == fault.Transient || fault.KindOf(err) == fault.Conflict {
		level = slog.LevelWarn
	}
	w.c.Log.Log(ctx, level, "findings may be out of date", "while", doing, "retry_in", pause, "error", err)
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
	return true
}

// Drain judges until nothing is due.
func (w *Watch) Drain(ctx context.Context) error {
	for ctx.Err() == nil {
		n, err := w.c.Store.JudgeDue(ctx, w.c.Limits, batch)
		if err != nil {
			return err
		}
		if n < batch {
			return nil
		}
	}
	return ctx.Err()
}

// ReviewAll looks at every subject once, and has judged again what is not as it should be: after a bug, a lost change or a
// clock that jumped.
func (w *Watch) ReviewAll(ctx context.Context) error {
	if err := w.c.Store.PruneScans(ctx, w.c.Now().Add(-keepScans)); err != nil {
		return fmt.Errorf("forgetting old scans: %w", err)
	}
	for _, kind := range store.SubjectKinds {
		for after := ""; ctx.Err() == nil; {
			subjects, err := w.c.Store.Subjects(ctx, kind, after, batch)
			if err != nil {
				return fmt.Errorf("listing %s: %w", kind, err)
			}
			if len(subjects) == 0 {
				break
			}
			after = subjects[len(subjects)-1]
			wrong, err := w.c.Store.Review(ctx, w.c.Limits, subjects)
			if err != nil {
				return fmt.Errorf("reviewing %s: %w", kind, err)
			}
			if wrong > 0 {
				w.c.Log.InfoContext(ctx, "subjects are judged again that should have been before", "kind", kind, "count", wrong)
			}
		}
	}
	return ctx.Err()
}
