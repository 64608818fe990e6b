package backup

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// elsewhere gives places of which all but the smallest files lie outside of the data directory, and a backup whose keys are none.
func elsewhere(t *testing.T) (dir, file string, p datadir.Places) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "backup.tar.gz")
	if err := os.WriteFile(file, sample(t, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	p = places(dir)
	if err := os.Mkdir(filepath.Join(dir, "databases"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, file, p
}

func places(dir string) datadir.Places {
	p := datadir.Places{Data: filepath.Join(dir, "data"), Audit: filepath.Join(dir, "log", "audit"), Databases: map[string]string{}}
	p.KEK, p.Secrets = filepath.Join(p.Data, datadir.FileKEK), filepath.Join(p.Data, datadir.DirSecrets)
	for _, service := range append([]string{index}, order...) {
		p.Databases[service] = filepath.Join(dir, "databases", service, "store.db")
	}
	return p
}

// inRestore has this program put files where a folder has its places elsewhere, as a restore does that found all in order.
const inRestore = "SALLYPORT_TEST_RESTORE"

func putElsewhere(dir string) error {
	p := places(dir)
	p.KEK, p.Secrets = filepath.Join(dir, "keys", "kek"), filepath.Join(dir, "secrets", "here")
	r := &restorer{RestoreOptions: RestoreOptions{Places: p, Now: time.Now}, stage: filepath.Join(p.Data, staging)}
	if err := os.MkdirAll(r.stage, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"databases/audit.db", "audit/log/checkpoint", "audit/log/tile/0/000", fileVerifier, "databases/issuer.db", datadir.FileKEK, "secrets/eab/one",
		"secrets/two", "trust/root.pem", datadir.FileMarker} {
		if err := r.put(name, strings.NewReader(name)); err != nil {
			return err
		}
	}
	return r.commit(&Manifest{Created: time.Now()})
}

// TestElsewhereIsOnDisk, by content and by name, before the data directory counts: a power cut could take it back otherwise, and
// nobody would restore it again.
func TestElsewhereIsOnDisk(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	if out, err := traced(t, inRestore, dir, "-y", "-o", trace, "-e", "trace=openat,mkdirat,fsync,renameat"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	made := regexp.MustCompile(`^(?:openat|mkdirat)\([^"]*"([^"]*)", (?:.*O_CREAT.*|07\d\d\)) += \d`)
	synced := regexp.MustCompile(`^fsync\(\d+<([^>]*)>\) += 0`)
	awaited, elsewhere := map[string]string{}, 0 // what is to be synced, for what
	for _, call := range calls(string(text)) {
		if m := made.FindStringSubmatch(call); m != nil && strings.HasPrefix(m[1], dir) && !strings.HasPrefix(m[1]+"/", data+"/") {
			elsewhere++
			awaited[filepath.Dir(m[1])] = m[1]
			if strings.HasPrefix(call, "openat") {
				awaited[m[1]] = m[1]
			}
		}
		if m := synced.FindStringSubmatch(call); m != nil {
			delete(awaited, m[1])
		}
		if strings.HasPrefix(call, "renameat") && strings.Contains(call, filepath.Join(data, datadir.FileMarker)+`"`) {
			for path, of := range awaited {
				t.Errorf("%s is not synced when the data directory counts, which was changed for %s", path, of)
			}
			if elsewhere != 20 { // 8 files and 12 folders
				t.Errorf("%d files and folders elsewhere", elsewhere)
			}
			return
		}
	}
	t.Errorf("the marker is never put in its place:\n%s", text)
}

// calls are the lines of a trace, without process ids, each where the call had ended.
func calls(trace string) (all []string) {
	begun := map[string]string{}
	for line := range strings.Lines(trace) {
		pid, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if head, ok := strings.CutSuffix(call, "<unfinished ...>"); ok {
			begun[pid] = strings.TrimSpace(head)
			continue
		}
		if _, tail, ok := strings.Cut(call, " resumed>"); ok && strings.HasPrefix(call, "<... ") {
			call = begun[pid] + tail
		}
		all = append(all, call)
	}
	return all
}

func restoreTo(t *testing.T, file string, p datadir.Places) error {
	t.Helper()
	return restoreAt(t, file, p, begun.Add(time.Hour))
}

func restoreAt(t *testing.T, file string, p datadir.Places, now time.Time) error {
	t.Helper()
	_, err := Restore(t.Context(), RestoreOptions{File: file, Places: p, Progress: func(string, ...any) {}, Now: func() time.Time { return now }})
	return err
}

// TestRestoreBeforeTheBackup: by a clock that stands before the backup nothing could be told about the time that was lost.
func TestRestoreBeforeTheBackup(t *testing.T) {
	t.Parallel()
	_, file, p := elsewhere(t)
	if err := restoreAt(t, file, p, begun.Add(-datadir.ClockSlack-time.Second)); exit.Of(err) != exit.Clock || !strings.Contains(err.Error(), "set the clock right, then restore again") {
		t.Errorf("restored with %v", err)
	}
	if err := restoreAt(t, file, p, begun.Add(-datadir.ClockSlack)); err == nil || exit.Of(err) == exit.Clock {
		t.Errorf("a clock that is a little behind: %v", err)
	}
}

// TestNotedTime is not before the backup, and a clock that is set back after the restore is noticed by it.
func TestNotedTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ now, want time.Time }{{begun.Add(time.Hour), begun.Add(time.Hour)}, {begun.Add(-time.Minute), begun}} {
		p := places(t.TempDir())
		r := &restorer{RestoreOptions: RestoreOptions{Places: p, Now: func() time.Time { return c.now }}, stage: filepath.Join(p.Data, staging)}
		err := os.MkdirAll(r.stage, 0o700)
		if err == nil {
			err = r.put(datadir.FileMarker, strings.NewReader("{}"))
		}
		if err == nil {
			err = r.commit(&Manifest{Created: begun})
		}
		if err != nil {
			t.Fatal(err)
		}
		var noted datadir.Restored
		text, err := os.ReadFile(filepath.Join(p.Data, datadir.FileRestored))
		if err == nil {
			err = json.Unmarshal(text, &noted)
		}
		if err != nil || !noted.Backup.Equal(begun) || !noted.At.Equal(c.want) {
			t.Errorf("restored at %s: noted %+v, %v", c.now, noted, err)
		}
		if clock, err := os.ReadFile(filepath.Join(p.Data, datadir.FileClock)); err != nil || string(clock) != c.want.Format(time.RFC3339) {
			t.Errorf("restored at %s: the clock says %s, %v", c.now, clock, err)
		}
	}
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
