package datadir

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func open(path string, now time.Time) (*Dir, error) {
	return Open(Options{Path: path, DefaultTrustDomain: "sallyport.local", Now: at(now)})
}

// made gives a directory that was set up and closed.
func made(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	d, err := open(path, noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Complete(); err != nil {
		t.Fatal(err)
	}
	if err := d.NoteClock(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFirstAndSecondOpening(t *testing.T) {
	path := made(t)
	for p, want := range map[string]os.FileMode{path: 0o700, filepath.Join(path, FileMarker): 0o600} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", p, info.Mode().Perm(), want)
		}
	}
	d, err := open(path, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if want := (Marker{Format: 1, TrustDomain: "sallyport.local", Created: noon, Complete: true}); d.Marker != want {
		t.Errorf("marker is %+v, want %+v", d.Marker, want)
	}
}

func TestFirstStartThatWasCutOffIsTakenUpAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d, err := open(path, noon)
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.Join("kek"), "half")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = open(path, noon)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if d.Marker.Complete {
		t.Error("complete without being completed")
	}
}

// TestBadSurroundings: each ends in one line with its code, and the directory
// is as it was.
func TestBadSurroundings(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		now   time.Time
		td    string
		code  exit.Code
		want  string
	}{
		"foreign": {
			spoil: func(t *testing.T, path string) {
				if err := os.Remove(filepath.Join(path, FileMarker)); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(path, "photo.jpg"), "")
			},
			code: exit.Data, want: "not a data directory of Sallyport",
		},
		"corrupt marker": {
			spoil: func(t *testing.T, path string) { write(t, filepath.Join(path, FileMarker), `{"format":1,`) },
			code:  exit.Data, want: "damaged: restore the data directory",
		},
		"empty marker": {
			spoil: func(t *testing.T, path string) { write(t, filepath.Join(path, FileMarker), "") },
			code:  exit.Data, want: "damaged: restore the data directory",
		},
		"marker of another program": {
			spoil: func(t *testing.T, path string) {
				write(t, filepath.Join(path, FileMarker), `{"format":1,"trust_domain":"x","flavour":"y"}`)
			},
			code: exit.Data, want: "damaged",
		},
		"newer format": {
			spoil: func(t *testing.T, path string) {
				write(t, filepath.Join(path, FileMarker), `{"format":2,"trust_domain":"sallyport.local","shards":3}`)
			},
			code: exit.Data, want: "has format 2 and this program knows up to 1: start the newer version",
		},
		"other trust domain": {
			spoil: func(*testing.T, string) {},
			td:    "other.example",
			code:  exit.Data, want: `belongs to the trust domain "sallyport.local", not "other.example"`,
		},
		"open to others": {
			spoil: func(t *testing.T, path string) {
				if err := os.Chmod(path, 0o755); err != nil {
					t.Fatal(err)
				}
			},
			code: exit.Data, want: "chmod 700",
		},
		"a file": {
			spoil: func(t *testing.T, path string) {
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				write(t, path, "")
			},
			code: exit.Data, want: "is not a directory",
		},
		"clock before the last time known": {
			spoil: func(*testing.T, string) {},
			now:   noon.Add(-ClockSlack - time.Second),
			code:  exit.Clock, want: "the clock says 2026-11-21T11:57:59Z, but this data directory was in use at 2026-11-21T12:00:00Z",
		},
		"damaged clock file": {
			spoil: func(t *testing.T, path string) { write(t, filepath.Join(path, FileClock), "noon") },
			code:  exit.Data, want: "is damaged",
		},
		"in use": {
			spoil: func(t *testing.T, path string) {
				d, err := open(path, noon)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = d.Close() })
			},
			code: exit.Data, want: "is in use by another process (pid ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := made(t)
			c.spoil(t, path)
			before := snapshot(t, path)
			now := c.now
			if now.IsZero() {
				now = noon.Add(time.Minute)
			}
			d, err := Open(Options{Path: path, TrustDomain: c.td, DefaultTrustDomain: "x", Now: at(now)})
			if err == nil {
				_ = d.Close()
				t.Fatal("opened")
			}
			if got := exit.Of(err); got != c.code {
				t.Errorf("code %d, want %d", got, c.code)
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line with %q", err, c.want)
			}
			if after := snapshot(t, path); after != before {
				t.Errorf("the directory changed from %s to %s", before, after)
			}
		})
	}
}

// snapshot is what the directory holds, but for the lock.
func snapshot(t *testing.T, path string) string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(path, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == FileLock {
			return err
		}
		b, err := os.ReadFile(p)
		files[p] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSlackOfTheClock(t *testing.T) {
	path := made(t)
	d, err := open(path, noon.Add(-ClockSlack))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	path := made(t)
	d, err := open(path, noon)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	d.free = func(string) (uint64, error) { return MinFree - 1, nil }
	err = d.CheckSpace()
	if exit.Of(err) != exit.Space || !strings.Contains(err.Error(), "63 MiB are free, at least 64 are needed") {
		t.Errorf("got %v", err)
	}
}

func TestInspectNothing(t *testing.T) {
	_, err := Inspect(filepath.Join(t.TempDir(), "none"))
	if err == nil || exit.Of(err) != exit.Data || !strings.Contains(err.Error(), "--data") {
		t.Errorf("%v", err)
	}
}
