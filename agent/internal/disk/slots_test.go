package disk

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func get(t *testing.T, f *Folder, want []byte) {
	t.Helper()
	if got, err := f.Get(t.Context(), "a"); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d: %v", len(got), len(want), err)
	}
}

func update(t *testing.T, f *Folder, payload []byte) {
	t.Helper()
	if err := f.Update("a", payload); err != nil {
		t.Fatal(err)
	}
	get(t, f, payload)
}

func inode(t *testing.T, f *Folder) os.FileInfo {
	t.Helper()
	fi, err := os.Stat(filepath.Join(f.Path(), "a"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", fi, err)
	}
	return fi
}

// A record that is updated stays in its file while it fits, whatever way it was kept before.
func TestUpdate(t *testing.T) {
	f := folder(t)
	if err := f.Put("a", []byte("kept as before")); err != nil {
		t.Fatal(err)
	}
	update(t, f, []byte("first"))
	before := inode(t, f)
	for n := range 50 {
		update(t, f, bytes.Repeat([]byte{byte(n)}, n*50))
	}
	if !os.SameFile(before, inode(t, f)) || inode(t, f).Size() != before.Size() {
		t.Error("it was not written in place")
	}
	update(t, f, bytes.Repeat([]byte("z"), 10_000)) // more than there is room for
	update(t, f, bytes.Repeat([]byte("y"), maxSlot))
	update(t, f, bytes.Repeat([]byte("x"), maxSlot+1))
	update(t, f, nil)
	if err := f.Put("a", []byte("put")); err != nil {
		t.Fatal(err)
	}
	get(t, f, []byte("put"))
	update(t, f, []byte("last"))
	if entries, err := os.ReadDir(f.Path()); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// However little or much of an update has reached the disk, the content is the old one or the new one.
func TestCutUpdate(t *testing.T) {
	f := folder(t)
	old, fresh := []byte("what it was"), []byte("what it is to be")
	path := filepath.Join(f.Path(), "a")
	for _, more := range []int{0, 1, 2} { // either slot is written
		if err := f.Remove("a"); err != nil {
			t.Fatal(err)
		}
		for range more {
			update(t, f, []byte("long ago, and of another length"))
		}
		update(t, f, old)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		update(t, f, fresh)
		after, err := os.ReadFile(path)
		if err != nil || len(after) != len(before) {
			t.Fatalf("%d bytes after %d, %v", len(after), len(before), err)
		}
		for i := range before {
			if before[i] == after[i] {
				continue
			}
			for _, mixed := range [][]byte{append(bytes.Clone(after[:i]), before[i:]...), append(bytes.Clone(before[:i]), after[i:]...)} {
				if err := os.WriteFile(path, mixed, 0o600); err != nil {
					t.Fatal(err)
				}
				got, err := f.Get(t.Context(), "a")
				if err != nil || !bytes.Equal(got, old) && !bytes.Equal(got, fresh) {
					t.Fatalf("cut at %d: %q, %v", i, got, err)
				}
				update(t, f, []byte("and it goes on"))
			}
		}
	}
}

// After an update that has failed, none is written in place again: what the kernel holds of the file proves nothing.
func TestFailedUpdate(t *testing.T) {
	f := folder(t)
	update(t, f, []byte("old"))
	f.trusted["a"] = false
	anew(t, f, func() error { return f.Update("a", []byte("new")) })
	if err := f.root.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Update("a", nil); err == nil || f.trusted["a"] {
		t.Errorf("%v", err)
	}
}

// What a process before has left may never have reached the disk, whatever is read of it: it is made anew before anybody acts on it, and
// never written in place.
func TestLeftByAnother(t *testing.T) {
	for name, begin := range map[string]func(*Folder) error{
		"read":    func(f *Folder) error { get(t, f, []byte("its sync may have failed")); return nil },
		"updated": func(f *Folder) error { return f.Update("a", []byte("without having read")) },
	} {
		t.Run(name, func(t *testing.T) {
			before := folder(t)
			for _, text := range []string{"first", "second", "its sync may have failed"} {
				update(t, before, []byte(text))
			}
			f, err := OpenFolder(before.Path(), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer close(t, f)
			anew(t, f, func() error { return begin(f) })
		})
	}
	// Where it cannot be made anew, it is read all the same.
	f := folder(t)
	update(t, f, []byte("read"))
	f.trusted["a"] = false
	obstacle := filepath.Join(f.Path(), tempPrefix+"a")
	if err := os.MkdirAll(filepath.Join(obstacle, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	get(t, f, []byte("read"))
	if err := f.Update("a", nil); err == nil || f.trusted["a"] {
		t.Errorf("%v", err)
	}
	if err := os.RemoveAll(obstacle); err != nil {
		t.Fatal(err)
	}
	anew(t, f, func() error { get(t, f, []byte("read")); return nil })
}

// anew wants do to put another file in the place of the record's, and what comes then to be written in place.
func anew(t *testing.T, f *Folder, do func() error) {
	t.Helper()
	before := inode(t, f)
	if err := do(); err != nil {
		t.Fatal(err)
	}
	made := inode(t, f)
	if os.SameFile(before, made) {
		t.Error("it was written in place")
	}
	update(t, f, []byte("and then"))
	if !os.SameFile(made, inode(t, f)) {
		t.Error("a file that was made anew is not trusted")
	}
}

// A file that was about to be made when the power went is as if it had never been, without a word about damage.
func TestEmptyFile(t *testing.T) {
	f := folder(t)
	if err := os.WriteFile(filepath.Join(f.Path(), "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(t.Context(), "a"); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(f.Path()); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	update(t, f, []byte("made"))
}

func FuzzSlots(f *testing.F) {
	two := append(slot(1, []byte("one")), slot(2, []byte("one more"))...)
	f.Add(two)
	f.Add(slot(7, nil))
	f.Add(append(slot(3, []byte("left")), make([]byte, slotLine+4)...))
	f.Add([]byte(slotHeader + strings.Repeat("0", 200)))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := newest(data)
		if err != nil {
			return
		}
		half := data[:len(data)/2]
		if !got.first {
			half = data[len(data)/2:]
		}
		if !bytes.HasPrefix(half, slot(got.count, got.payload)) {
			t.Errorf("%q was taken for whole", data)
		}
	})
}
