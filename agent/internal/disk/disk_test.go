package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func folder(t *testing.T) *Folder {
	t.Helper()
	f, err := OpenFolder(filepath.Join(t.TempDir(), "state"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(t, f) })
	return f
}

func close(t *testing.T, f *Folder) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeepsRecords(t *testing.T) {
	f := folder(t)
	for _, payload := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("y\n"), 10_000)} {
		if err := f.Put("a", payload); err != nil {
			t.Fatal(err)
		}
		got, err := f.Get(t.Context(), "a")
		if err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	fi, err := os.Stat(filepath.Join(f.Path(), "a"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if err := f.Put("b", nil); err != nil {
		t.Fatal(err)
	}
	if names, err := f.Names(); err != nil || fmt.Sprint(names) != "[a b]" {
		t.Errorf("%v, %v", names, err)
	}
	for range 2 {
		if err := f.Remove("a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Get(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// Every damage is noticed: each byte, each truncation, a foreign file.
func TestDamageIsNoticed(t *testing.T) {
	f := folder(t)
	if err := f.Put("a", []byte("some payload")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.Path(), "a")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var bad [][]byte
	for i := range good {
		flipped := bytes.Clone(good)
		flipped[i] ^= 0x20
		bad = append(bad, flipped, good[:i])
	}
	bad = append(bad, append(bytes.Clone(good), '\n'), []byte("hello\nworld"))
	for i, data := range bad {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := f.Get(t.Context(), "a"); !errors.Is(err, ErrDamaged) || !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("damage %d gave %q, %v", i, got, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal("it was not set aside")
		}
	}
	if names, err := f.Names(); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
	entries, err := os.ReadDir(f.Path())
	if err != nil || len(entries) == 0 || len(entries) > maxDamaged+1 {
		t.Errorf("%d files set aside, %v", len(entries), err)
	}
}

func TestFolderOfOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFolder(dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Error(err)
	}
}

func TestInterruptedPut(t *testing.T) {
	f := folder(t)
	if err := f.Put("a", []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path(), tempPrefix+"a"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Put("a", []byte("new")); err != nil { // in the same process
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path(), tempPrefix+"b"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := OpenFolder(f.Path(), slog.New(slog.DiscardHandler)) // in the next
	if err != nil {
		t.Fatal(err)
	}
	defer close(t, g)
	entries, err := os.ReadDir(f.Path())
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if got, err := g.Get(t.Context(), "a"); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestViewTouchesNothing(t *testing.T) {
	f := folder(t)
	if err := f.Put("a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path(), "b"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := ViewFolder(f.Path(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer close(t, v)
	if got, err := v.Get(t.Context(), "a"); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := v.Get(t.Context(), "b"); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if v.Put("a", nil) == nil || v.Remove("a") == nil {
		t.Error("changed what it was only to look at")
	}
	if entries, err := os.ReadDir(f.Path()); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	none, err := ViewFolder(filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if names, err := none.Names(); err != nil || len(names) != 0 || none.Close() != nil {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := none.Get(context.Background(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TakeLock(dir); err == nil {
		t.Error("taken twice")
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	l, err = TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}

// Looking whether a lock is held makes nothing, and keeps nobody from taking it.
func TestHeld(t *testing.T) {
	dir := t.TempDir()
	held := func(want bool) {
		t.Helper()
		if got, err := Held(dir); err != nil || got != want {
			t.Errorf("held: %v, %v", got, err)
		}
	}
	held(false)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("looking has made %v, %v", entries, err)
	}
	for range 10 {
		l, err := TakeLock(dir)
		if err != nil {
			t.Fatal(err)
		}
		held(true)
		if err := l.Unlock(); err != nil {
			t.Fatal(err)
		}
		look, err := os.Open(filepath.Join(dir, lockFile))
		if err != nil {
			t.Fatal(err)
		}
		if others, err := locked(look); err != nil || others {
			t.Fatal(others, err)
		}
		held(false) // by those who look
		taken := make(chan error)
		go func() {
			l, err := TakeLock(dir)
			if err == nil {
				err = l.Unlock()
			}
			taken <- err
		}()
		time.Sleep(5 * time.Millisecond) // most often it is tried meanwhile
		if err := look.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-taken; err != nil {
			t.Fatal(err)
		}
	}
	held(false)
}

// TestFoldersOfState keeps several folders in one state folder, by one open file.
func TestFoldersOfState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	log := slog.New(slog.DiscardHandler)
	l, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Unlock(); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b", tempPrefix+"x"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	var folders []*Folder
	for _, name := range []string{"a", "b", "c"} {
		f, err := l.Folder(name, log)
		if err != nil {
			t.Fatal(err)
		}
		folders = append(folders, f)
		if err := f.Put("x", []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if now := openFiles(t); now != before {
		t.Errorf("three folders keep %d files open", now-before)
	}
	for _, f := range folders {
		name := filepath.Base(f.Path())
		if got, err := os.ReadFile(filepath.Join(dir, name, "x")); err != nil || string(got) != string(seal([]byte(name))) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if names, err := f.Names(); err != nil || len(names) != 1 {
			t.Errorf("%s: %v, %v", name, names, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	a, b := folders[0], folders[1]
	if err := a.Remove("x"); err != nil { // the others stay open when one is closed
		t.Fatal(err)
	}
	if _, err := a.Get(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b", "x"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), "x"); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "b")); err != nil || len(entries) != 1 || entries[0].Name() != damagedPrefix+"x" {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestFolderElsewhere takes no folder of the state that leads out of it, or that others may read.
func TestFolderElsewhere(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	l, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Unlock() }()
	if err := os.Symlink(elsewhere, filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Folder("keys", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("keys would be kept outside of the state")
	}
	if err := os.Mkdir(filepath.Join(dir, "open"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "open"), 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Folder("open", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Error(err)
	}
	// One that is put there later is not followed either.
	f, err := l.Folder("spool", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f.Path()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, f.Path()); err != nil {
		t.Fatal(err)
	}
	if err := f.Put("x", nil); err == nil {
		t.Error("it was kept outside of the state")
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func FuzzUnseal(f *testing.F) {
	f.Add(seal(nil))
	f.Add(seal([]byte("payload")))
	f.Add([]byte("sallyport 1 \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := unseal(data)
		if err == nil && !bytes.Equal(seal(payload), data) {
			t.Errorf("%q was taken for sealed", data)
		}
	})
}

// What has no size before it is read, as a file of /proc, is bounded too, and never cut.
func TestReadOfNoSize(t *testing.T) {
	const status = "/proc/self/status"
	if all, err := ReadPath(status, 1<<20); err != nil || !bytes.Contains(all, []byte("\nSigCgt:")) {
		t.Errorf("%q, %v", all, err)
	}
	if part, err := ReadPath(status, 100); err == nil || !strings.Contains(err.Error(), "larger than 100 bytes") {
		t.Errorf("%q, %v", part, err)
	}
}
