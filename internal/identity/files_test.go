package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// set mints an identity and writes it to dir.
func set(t *testing.T, a *Authority, dir string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t)
	chain, err := a.Mint(web1, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFiles(dir, chain, key, a.Bundle()); err != nil {
		t.Fatal(err)
	}
	return chain[0], key
}

func openFiles(t *testing.T, dir string, log *slog.Logger) *files {
	t.Helper()
	f, err := newFiles(dir, log, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, f) })
	return f
}

func closed(t *testing.T, src Source) {
	t.Helper()
	if err := src.Close(); err != nil {
		t.Error(err)
	}
}

func shows(t *testing.T, src Source, c *x509.Certificate) bool {
	t.Helper()
	s, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return s.Certificates[0].Equal(c)
}

func TestFiles(t *testing.T) {
	a, dir := authority(t, nil), filepath.Join(t.TempDir(), "identity")
	first, _ := set(t, a, dir)
	var log syncBuffer
	f := openFiles(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	if !shows(t, f, first) {
		t.Fatal("another SVID")
	}
	if b, err := f.GetX509BundleForTrustDomain(td); err != nil || !b.Equal(a.Bundle()) {
		t.Fatalf("got %v, %v", b, err)
	}
	for name, mode := range map[string]os.FileMode{FileKey: 0o600, FileSVID: 0o644, FileBundle: 0o644} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
	second, _ := set(t, a, dir)
	for !shows(t, f, second) {
		time.Sleep(time.Millisecond)
	}

	// Half-written: a new key alone keeps the old pair, and is said once.
	other := filepath.Join(t.TempDir(), "other")
	third, _ := set(t, a, other)
	warned := func() int { return strings.Count(log.String(), "keeping the old identity") }
	before := warned() // the second set may have been met half-written, too
	move(t, other, dir, FileKey)
	for warned() == before {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	if n := warned() - before; n != 1 || !shows(t, f, second) {
		t.Fatalf("warned %d times, %s", n, log.String())
	}
	move(t, other, dir, FileSVID)
	for !shows(t, f, third) {
		time.Sleep(time.Millisecond)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func move(t *testing.T, from, to, name string) {
	t.Helper()
	if err := os.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
		t.Fatal(err)
	}
}

// A writer may stop after each of its steps.
func TestFilesAfterCrash(t *testing.T) {
	a := authority(t, nil)
	for steps := range 4 {
		dir, next := filepath.Join(t.TempDir(), "old"), filepath.Join(t.TempDir(), "next")
		before, _ := set(t, a, dir)
		after, key := set(t, a, next)
		if steps >= 1 {
			pem, err := os.ReadFile(filepath.Join(next, FileKey))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, fileNextKey), pem, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if steps >= 2 {
			move(t, next, dir, FileSVID)
		}
		if steps >= 3 {
			move(t, next, dir, FileKey)
		}
		want := before
		if steps >= 2 {
			want = after
		}
		f := openFiles(t, dir, nil)
		if !shows(t, f, want) {
			t.Errorf("after %d steps: the wrong SVID", steps)
		}
		if s, _ := f.GetX509SVID(); steps >= 2 && !key.PublicKey.Equal(s.PrivateKey.Public()) {
			t.Errorf("after %d steps: the wrong key", steps)
		}
		last, _ := set(t, a, dir) // and the next write goes well
		for !shows(t, f, last) {
			time.Sleep(time.Millisecond)
		}
	}
}

func TestFilesRefused(t *testing.T) {
	a, b := authority(t, nil), authority(t, nil)
	for name, tt := range map[string]struct {
		damage func(dir string) error
		wants  string
	}{
		"no directory": {os.RemoveAll, "no such file"},
		"no key":       {func(d string) error { return os.Remove(filepath.Join(d, FileKey)) }, FileKey},
		"other bundle": {func(d string) error {
			pem, _ := b.Marshal()
			return os.WriteFile(filepath.Join(d, FileBundle), pem, 0o600)
		}, "does not verify"},
		"empty bundle": {func(d string) error { return os.WriteFile(filepath.Join(d, FileBundle), nil, 0o600) }, FileBundle},
		"garbage":      {func(d string) error { return os.WriteFile(filepath.Join(d, FileSVID), []byte("hello"), 0o600) }, FileSVID},
		"a huge file":  {func(d string) error { return os.Truncate(filepath.Join(d, FileSVID), filesMaxSize+1) }, "larger than"},
	} {
		dir := filepath.Join(t.TempDir(), "id")
		set(t, a, dir)
		if err := tt.damage(dir); err != nil {
			t.Fatal(err)
		}
		if f, err := NewFiles(dir, nil); err == nil {
			closed(t, f)
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteFilesRefuses(t *testing.T) {
	a, b := authority(t, nil), authority(t, nil)
	dir := filepath.Join(t.TempDir(), "id")
	kept, key := set(t, a, dir)
	chain := []*x509.Certificate{kept}
	if err := WriteFiles(dir, chain, newKey(t), a.Bundle()); err == nil {
		t.Error("a key of another pair: no error")
	}
	if err := WriteFiles(dir, chain, key, b.Bundle()); err == nil {
		t.Error("a bundle of another domain: no error")
	}
	if !shows(t, openFiles(t, dir, nil), kept) {
		t.Error("what was refused has done harm")
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFiles(filepath.Join(dir, "file"), chain, key, a.Bundle()); err == nil {
		t.Error("a file for a directory: no error")
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
