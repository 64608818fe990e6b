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
