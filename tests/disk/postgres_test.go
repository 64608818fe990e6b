package disk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// newSiteOnPostgres is newSite with the services' data in PostgreSQL, on the same disk.
func newSiteOnPostgres(t *testing.T, settings ...string) *site {
	t.Helper()
	s := newVolume(t)
	for _, dir := range []string{filepath.Dir(s.volume.Path), s.volume.Path} {
		must(t, os.Chmod(dir, 0o711)) // PostgreSQL runs as its own user
	}
	s.database = ok(s.PostgresServerIn(t.Context(), "postgres", filepath.Join(s.volume.Path, "postgres"), settings...))(t)
	return s.begin(t, config+fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", s.database.DSN))
}

// TestPostgresPowerCuts takes the power from a PostgreSQL that syncs, as it does unless told otherwise, and from all that stands on
// it: what the services have acknowledged is kept.
func TestPostgresPowerCuts(t *testing.T) {
	t.Parallel()
	s := newSiteOnPostgres(t, "fsync=on")
	s.powerCuts(t, (*rounds+1)/3, 3)
	s.stop(t)
}

// TestPostgresUnsynced does it to a PostgreSQL that does not sync, on which the test must notice losses.
func TestPostgresUnsynced(t *testing.T) {
	t.Parallel()
	s := newSiteOnPostgres(t, "fsync=off")
	w := newWitness(t, s)
	must(t, s.volume.Sync())
	r := rand.New(rand.NewPCG(*seed, 3))
	w.works(t, s, time.Duration(1000+r.IntN(1000))*time.Millisecond)
	w.cut(t, s)
	if err := s.database.Start(t.Context()); err != nil {
		t.Logf("noticed: PostgreSQL does not start: %v", err)
		return
	}
	if err := s.plane.Start(t.Context()); err != nil {
		t.Logf("noticed: serve does not start: %v", err)
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
