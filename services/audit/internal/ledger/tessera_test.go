package ledger

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger/tiles"
)

// byTessera appends records in one batch by Tessera's own driver, which then waits for its checkpoint, as the version before did.
func byTessera(t *testing.T, dir string, all [][]byte) {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(key)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	a, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithCheckpointInterval(100*time.Millisecond).WithCheckpointRepublishInterval(0).WithBatching(uint(len(all)), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range all {
		future := a.Add(ctx, tessera.NewEntry(r))
		if i == len(all)-1 {
			if _, err := future(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}

// byLedger does the same by ours.
func byLedger(t *testing.T, dir string, all [][]byte) {
	t.Helper()
	l := open(t, dir)
	appendAll(t, l, all)
	closeLedger(t, l)
}

// TestAsTessera writes the same records by Tessera's driver, by ours, and by the two in turn. Every file is the same, byte for byte.
func TestAsTessera(t *testing.T) {
	sizes := []int{1, 2, 253, 1, 254, 1, 256, 300, 1024, 4096, 3, 60000, 37}
	first := t.TempDir()
	closeLedger(t, open(t, first)) // makes the key
	contents := map[string]map[string]string{}
	total := 0
	for _, n := range sizes {
		total += n
	}
	all := records(t, 0, total)
	for name, writers := range map[string][]func(*testing.T, string, [][]byte){
		"Tessera": {byTessera}, "ours": {byLedger}, "in turn": {byTessera, byLedger}, "in the other turn": {byLedger, byTessera},
	} {
		dir := t.TempDir()
		if err := os.Link(filepath.Join(first, keyFile), filepath.Join(dir, keyFile)); err != nil {
			t.Fatal(err)
		}
		rest := all
		for i, n := range sizes {
			writers[i%len(writers)](t, dir, rest[:n:n])
			rest = rest[n:]
		}
		contents[name] = logFiles(t, dir)
		l := open(t, dir)
		closeLedger(t, l)
		if err := tiles.Collect(t.Context(), l.Dir(), uint64(total)); err != nil {
			t.Fatal(err)
		}
		l = open(t, dir)
		verify(t, l, uint64(total))
		closeLedger(t, l)
	}
	want := contents["Tessera"]
	if len(want) < 2*258 {
		t.Fatalf("Tessera has written only %d files", len(want))
	}
	for name, got := range contents {
		for path, data := range want {
			if other, ok := got[path]; !ok || other != data {
				t.Errorf("%s: %s is not as by Tessera: there %v, %d bytes for %d", name, path, ok, len(other), len(data))
			}
		}
		for path := range got {
			if _, ok := want[path]; !ok {
				t.Errorf("%s: %s is not by Tessera", name, path)
			}
		}
	}
}

// logFiles are all files of a log but Tessera's locks, which are empty.
func logFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	root := os.DirFS(filepath.Join(dir, "log"))
	err := fs.WalkDir(root, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		data, err := fs.ReadFile(root, path)
		info, _ := e.Info()
		files[path] = info.Mode().String() + " " + string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
