package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// refuses expects a start to fail with one line that says what to do.
func (w *world) refuses(reason, want string) {
	w.t.Helper()
	s, err := audit.New(w.t.Context(), w.config, w.deps())
	if err == nil {
		w.t.Fatalf("it started (closing: %v); want %q", s.Close(), want)
	}
	if f := fault.Of(err); f.Reason != reason || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		w.t.Errorf("got %s: %v\nwant %s: %q", f.Reason, err, reason, want)
	}
}

// filled is a world whose log has n records.
func filled(t *testing.T, c db.Config, n int) *world {
	t.Helper()
	w := newWorld(t, c)
	r := w.start()
	w.publish(w.facts(n)...)
	r.await(t, n)
	r.stop()
	return w
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(to, "checkpoint.key"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRefusesToStart(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := filled(t, c, 300)
		dir := w.config.Directory
		good := filepath.Join(t.TempDir(), "good")
		copyDir(t, dir, good)

		// The log is gone, and its key with it.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		w.refuses("INDEX_REFUSED", "this log has key")

		// The log is gone, the key is there: an empty log with a full index.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		copyDir(t, good, dir)
		if err := os.RemoveAll(filepath.Join(dir, "log")); err != nil {
			t.Fatal(err)
		}
		w.refuses("LOG_REFUSED", "the index knows 300 records")

		// An older backup of the log.
		older := filled(t, servicetest.SQLite(t), 100)
		copyDir(t, older.config.Directory, dir)
		w.refuses("INDEX_REFUSED", "give this log a database of its own")

		// The right one again: everything is well, and nothing was lost on the way.
		copyDir(t, good, dir)
		r := w.start()
		w.publish(w.facts(5)...)
		r.await(t, 305)
		r.stop()

		// The backup is now older than the index.
		copyDir(t, good, dir)
		w.refuses("LOG_REFUSED", "restore its directory from a newer backup")

		// Somebody went on with the backup and another database: as long, but not the same.
		w.config.Database = servicetest.SQLite(t)
		r = w.start()
		r.await(t, 300)
		w.publish(w.facts(5)...)
		r.await(t, 305)
		r.stop()
		w.config.Database = c
		w.refuses("LOG_REFUSED", "the log is not the one that was indexed")
	})
}

// TestIndexIsMadeAgain: the index can be thrown away.
func TestIndexIsMadeAgain(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := filled(t, servicetest.SQLite(t), 5000)
		w.config.Database = c
		r := w.start()
		r.await(t, 5000) // before anything is consumed
		w.publish(w.facts(1)...)
		r.await(t, 5001)
	})
}

func TestSecondProcessIsRefused(t *testing.T) {
	w := filled(t, servicetest.SQLite(t), 1)
	w.start()
	first := w.config.Database
	w.config.Database = servicetest.SQLite(t)
	w.refuses("LOG_REFUSED", "another process has the audit log")
	w.config.Database = first
}

func TestConfigValidates(t *testing.T) {
	good := audit.Config{Database: db.Config{Driver: db.SQLite, DSN: "x"}, Directory: "x"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for field, change := range map[string]func(*audit.Config){
		"directory":           func(c *audit.Config) { c.Directory = "" },
		"database.driver":     func(c *audit.Config) { c.Database.Driver = "mysql" },
		"checkpoint_interval": func(c *audit.Config) { c.CheckpointInterval = config.Duration(1) },
	} {
		c := good
		change(&c)
		if f := fault.Of(c.Validate()); f == nil || f.Field != field {
			t.Errorf("%s: %v", field, f)
		}
	}
}
