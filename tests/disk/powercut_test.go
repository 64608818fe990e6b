// Package disk takes the power from the whole system while it works: a loop device plays the disk, everything that was not
// synced is gone, and everything starts again. Nothing that was acknowledged may be lost.
package disk

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestPowerCuts cuts the power at random moments.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.powerCuts(t, *rounds, 1)
	s.stop(t)
}

// powerCuts cuts the power so often, and wants nothing to be lost each time. stream makes its moments others than those of other
// tests.
func (s *site) powerCuts(t *testing.T, rounds int, stream uint64) {
	t.Helper()
	w := newWitness(t, s)
	must(t, s.volume.Sync()) // the site was set up long ago
	t.Logf("seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, stream))
	for round := range rounds {
		s.round(t, w, r, round)
		w.keeps(t.Context(), t, s)
		w.tells(t)
		if t.Failed() {
			t.FailNow()
		}
		t.Logf("round %d: all is there: %s", round, w.count())
	}
	s.settles(t.Context(), t, w)
}

// TestUnsynced is TestPowerCuts with a disk that only says that it has synced: the test must notice.
func TestUnsynced(t *testing.T) {
	t.Parallel()
	prefix := ok(lab.Fault{Calls: "fsync,fdatasync", Do: "retval=0"}.Prefix())(t)
	s := newSite(t, prefix...)
	w := newWitness(t, s)
	must(t, s.volume.Sync())
	r := rand.New(rand.NewPCG(*seed, 1))
	w.works(t, s, time.Duration(1000+r.IntN(1000))*time.Millisecond)
	w.cut(t, s)
	if err := s.plane.Start(t.Context()); err != nil {
		t.Logf("noticed: it does not start: %v", err)
		return
	}
	w.keeps(t.Context(), t, s)
	if len(w.broken) == 0 {
		t.Errorf("nothing was synced and nothing is missed: the test shows nothing: %s", w.count())
	}
	for _, promise := range w.broken[:min(3, len(w.broken))] {
		t.Logf("noticed: %s", promise)
	}
}

// works lets all work for a while, and until enough was acknowledged for a loss to be noticed.
func (w *witness) works(t *testing.T, s *site, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	working := w.work(ctx, t, s, 0)
	defer working.Wait()
	defer cancel()
	pause(ctx, d)
	w.promises(ctx, t, s, 10, 2)
}

// promises waits until so many tokens and deployments are acknowledged, in all: on a slow machine a moment may have none.
func (w *witness) promises(ctx context.Context, t *testing.T, s *site, tokens, deployments int) {
	t.Helper()
	s.await(ctx, t, "something to be acknowledged", func() (err error) {
		w.note(func() {
			if len(w.hosts) < tokens || len(w.deployments) < deployments {
				err = fmt.Errorf("%d tokens, %d deployments", len(w.hosts), len(w.deployments))
			}
		})
		return err
	})
}

// round works for a while, cuts the power in the middle of it, and starts all again.
func (s *site) round(t *testing.T, w *witness, r *rand.Rand, round int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var before int
	w.note(func() { before = len(w.hosts) })
	working := w.work(ctx, t, s, round)
	w.promises(ctx, t, s, before+10, 0)
	time.Sleep(time.Duration(300+r.IntN(1500)) * time.Millisecond) // the random moment is what is tested
	if r.IntN(2) == 0 {
		must(t, s.volume.Scatter(r))
	}
	w.cut(t, s)
	cancel()
	working.Wait()
	s.start(t)
}
