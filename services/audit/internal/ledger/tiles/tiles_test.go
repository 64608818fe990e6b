package tiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/auditlog"
)

// some are n records that tell their number.
func some(from, n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = fmt.Appendf(nil, "record %d %s", from+i, strings.Repeat("x", (from+i)%7))
	}
	return all
}

// need looks whether all that belongs to the first size records is in dir, byte for byte.
func need(t *testing.T, dir string, size uint64, when string) {
	t.Helper()
	if size == 0 {
		return
	}
	want, files, err := edge{}.grow(some(0, int(size)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if data, err := os.ReadFile(filepath.Join(dir, f.path)); err != nil || !bytes.Equal(data, f.data) {
			t.Errorf("%s: %s of %d records is not as it must be: %v", when, f.path, size, err)
		}
	}
	if root, err := Root(dir, size); err != nil || root != want.root() {
		t.Errorf("%s: the root of %d records is %x: %v", when, size, root, err)
	}
}

func TestCollect(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	quiet := &rig{}
	if err := create(dir, quiet); err != nil {
		t.Fatal(err)
	}
	w, err := open(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	partial := func() (found []string) {
		t.Helper()
		err := filepath.WalkDir(filepath.Join(dir, "tile"), func(path string, e fs.DirEntry, err error) error {
			if rel, _ := filepath.Rel(dir, path); err == nil && !e.IsDir() && strings.Contains(rel, ".p/") {
				found = append(found, filepath.ToSlash(rel))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	sizes := []int{}
	for size := 0; size < 700; size += 50 {
		if err := w.Append(some(size, 50)); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size+50)
	}
	// A published checkpoint keeps its own partial tiles, though the log has gone on and has the full ones.
	for _, published := range []uint64{0, 250, 500, 700} {
		if err := Collect(t.Context(), dir, published); err != nil {
			t.Fatal(err)
		}
		for _, size := range sizes {
			if uint64(size) >= published/width*width && size%width > 0 {
				need(t, dir, uint64(size), fmt.Sprintf("checkpoint of %d", published))
			}
		}
		for _, path := range partial() {
			if n := strings.Split(path, "/")[2][:3]; !strings.HasPrefix(path, "tile/1/") && n < fmt.Sprintf("%03d", published/width) {
				t.Errorf("checkpoint of %d: %s is still there", published, path)
			}
		}
	}
	if state, err := os.ReadFile(filepath.Join(dir, ".state/gcState")); err != nil || string(state) != `{"fromSize":512}` {
		t.Errorf("%s: %v", state, err)
	}
	// Above 256 bundles there is a tile that has been partial too.
	for size := 700; size < 65600; size += 8112 {
		if err := w.Append(some(size, min(8112, 65600-size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := Collect(t.Context(), dir, 65600); err != nil {
		t.Fatal(err)
	}
	for _, path := range partial() {
		if !strings.HasPrefix(path, "tile/entries/256.p/") && !strings.HasPrefix(path, "tile/0/256.p/") && path != "tile/2/000.p/1" {
			t.Errorf("%s is still there with a checkpoint of 65600", path)
		}
	}
	need(t, dir, 65600, "in the end")
}

func TestRefusesTooLarge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := create(dir, &rig{}); err != nil {
		t.Fatal(err)
	}
	w, err := open(dir, &rig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(some(0, 3)); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(append(some(3, 300), make([]byte, auditlog.MaxRecord+1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a record: %v", err)
	}
	if err := w.Append(some(3, 297)); err != nil {
		t.Fatal(err)
	}
	need(t, dir, 300, "after one that was too large")
}

// TestForeign: who has written the state meanwhile is noticed before anything is.
func TestForeign(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := create(dir, &rig{}); err != nil {
		t.Fatal(err)
	}
	var both [2]*Writer
	for i := range both {
		var err error
		if both[i], err = open(dir, &rig{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := both[0].Append(some(0, 3)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := both[1].Append(some(100, 3)); !errors.Is(err, ErrForeign) {
			t.Errorf("the second writer: %v", err)
		}
	}
	need(t, dir, 3, "the first writer's")
}

// FuzzOpen opens a log with any state, leaf tile and bundle: it is refused, or goes on with exactly what is in it.
func FuzzOpen(f *testing.F) {
	e, files, err := edge{}.grow(some(0, 5))
	if err != nil {
		f.Fatal(err)
	}
	state := State{5, e.root()}.encode()
	f.Add(state, files[1].data, files[0].data)
	f.Add(State{0, EmptyRoot}.encode(), []byte{}, []byte{})
	f.Add(state, files[1].data[:100], files[0].data)
	f.Add(state, files[1].data, files[0].data[:len(files[0].data)-1])
	f.Add(bytes.Replace(state, []byte("5"), []byte("18446744073709551615"), 1), files[1].data, files[0].data)
	f.Add([]byte(`{"size":5}`), files[1].data, files[0].data)
	f.Add([]byte("{"), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, state, tile, bundle []byte) {
		dir := filepath.Join(t.TempDir(), "log")
		if err := create(dir, &rig{}); err != nil {
			t.Fatal(err)
		}
		for path, data := range map[string][]byte{StatePath: state, "tile/0/000.p/5": tile, "tile/entries/000.p/5": bundle} {
			path = filepath.Join(dir, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		w, err := open(dir, &rig{})
		if err != nil {
			return
		}
		if w.State().Size != 0 && w.State().Size != 5 {
			t.Fatalf("opened with %d records", w.State().Size)
		}
		if err := w.Append(some(5, 300)); err != nil {
			t.Fatal(err)
		}
		again, err := open(dir, &rig{})
		if err != nil || again.State() != w.State() {
			t.Fatalf("after an append: %v", err)
		}
	})
}

// FuzzCollect erases by any note of how far that was done, with any checkpoint: what the log needs is untouched, only partial files
// that have full ones go, and the note never goes back. One that is damaged has nothing erased by it.
func FuzzCollect(f *testing.F) {
	e, files, err := edge{}.grow(some(0, 600))
	if err != nil {
		f.Fatal(err)
	}
	for _, note := range []string{"", `{"fromSize":0}`, `{"fromSize":256}`, `{"fromSize":300}`, `{"fromSize":18446744073709551615}`, `{"fromSize":-1}`, `{"fromSize":1e3}`, `null`, `{`} {
		f.Add([]byte(note), uint16(600))
	}
	f.Add([]byte(`{"fromSize":0}`), uint16(255))
	f.Add([]byte(`{"fromSize":0}`+strings.Repeat(" ", maxSmall)), uint16(600))
	partial := func(n uint64) []string {
		return []string{fmt.Sprintf("tile/0/%03d.p/7", n), fmt.Sprintf("tile/entries/%03d.p/7", n)}
	}
	f.Fuzz(func(t *testing.T, note []byte, published uint16) {
		dir := filepath.Join(t.TempDir(), "log")
		put := func(path string, data []byte) {
			t.Helper()
			path = filepath.Join(dir, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		size := uint64(published) % 601
		for _, file := range files {
			put(file.path, file.data)
		}
		for n := range uint64(3) {
			for _, path := range partial(n) {
				put(path, []byte("partial"))
			}
		}
		put(StatePath, State{600, e.root()}.encode())
		put(erasedPath, note)
		var before, after erased
		damaged := json.Unmarshal(note, &before) != nil || len(note) > maxSmall
		if err := Collect(t.Context(), dir, size); (err != nil) != damaged {
			t.Fatalf("%q: %v", note, err)
		}
		need(t, dir, 600, fmt.Sprintf("checkpoint of %d, erased %q", size, note))
		for n := range uint64(3) {
			for _, path := range partial(n) {
				gone := !damaged && n >= before.FromSize/width && n < size/width
				if _, err := os.Stat(filepath.Join(dir, path)); errors.Is(err, fs.ErrNotExist) != gone {
					t.Errorf("%s with a checkpoint of %d, erased %q: %v", path, size, note, err)
				}
			}
		}
		found, err := os.ReadFile(filepath.Join(dir, erasedPath))
		if err != nil || damaged && !bytes.Equal(found, note) {
			t.Fatalf("the damaged note is %q now: %v", found, err)
		}
		if !damaged && (json.Unmarshal(found, &after) != nil || after.FromSize != max(before.FromSize, size/width*width)) {
			t.Fatalf("%q after %q, with a checkpoint of %d", found, note, size)
		}
	})
}

// BenchmarkAppend is what package ledger's is without the waiting of one for the other.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 1024, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "log")
			if err := Create(dir); err != nil {
				b.Fatal(err)
			}
			w, err := Open(dir)
			if err != nil {
				b.Fatal(err)
			}
			all := some(0, n)
			for i := range all {
				all[i] = append(all[i], bytes.Repeat([]byte("x"), 700)...)
			}
			for b.Loop() {
				if err := w.Append(all); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
