package backup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
)

// elsewhere gives places of which all but the smallest files lie outside of the data directory, and a backup whose keys are none.
func elsewhere(t *testing.T) (dir, file string, p datadir.Places) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "backup.tar.gz")
	if err := os.WriteFile(file, sample(t, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	p = datadir.Places{Data: filepath.Join(dir, "data"), Audit: filepath.Join(dir, "log", "audit"), Databases: map[string]string{}}
	p.KEK, p.Secrets = filepath.Join(p.Data, datadir.FileKEK), filepath.Join(p.Data, datadir.DirSecrets)
	for _, service := range append([]string{index}, order...) {
		p.Databases[service] = filepath.Join(dir, "databases", service, "store.db")
	}
	if err := os.Mkdir(filepath.Join(dir, "databases"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, file, p
}

func restoreTo(t *testing.T, file string, p datadir.Places) error {
	t.Helper()
	_, err := Restore(t.Context(), RestoreOptions{File: file, Places: p, Progress: func(string, ...any) {}, Now: time.Now})
	return err
}

// TestRestoreBesideLeftovers: what lies beside the place of a database belongs to the one that was there, and would be played into
// the restored one.
func TestRestoreBesideLeftovers(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		_, file, p := elsewhere(t)
		left := p.Databases["issuer"] + suffix
		if err := errors.Join(os.Mkdir(filepath.Dir(left), 0o700), os.WriteFile(left, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := restoreTo(t, file, p); err == nil || !strings.Contains(err.Error(), left+" exists already: move it aside") {
			t.Errorf("beside %s: %v", filepath.Base(left), err)
		}
		if data, err := os.ReadFile(left); err != nil || string(data) != "x" {
			t.Errorf("it is not there any more: %q, %v", data, err)
		}
	}
}

// TestRefusedRestoreLeavesNothing, outside of the data directory neither: the next one would find that in its way.
func TestRefusedRestoreLeavesNothing(t *testing.T) {
	t.Parallel()
	dir, file, p := elsewhere(t)
	for range 2 {
		err := restoreTo(t, file, p)
		if err == nil || strings.Contains(err.Error(), "not empty") {
			t.Fatalf("restored with %v", err)
		}
		err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if path != dir && path != file && path != p.Data && path != filepath.Join(dir, "databases") {
				err = errors.Join(err, errors.New(path))
			}
			return err
		})
		if err != nil {
			t.Errorf("left behind: %v", err)
		}
	}
}
