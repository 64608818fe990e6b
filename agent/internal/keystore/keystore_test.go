package keystore

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	f, err := disk.OpenFolder(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return New(f)
}

func names(t *testing.T, dns ...string) pki.Names {
	t.Helper()
	n, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSameKeyAndCSR(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	id := ID{"a", 1, 1}
	for _, kt := range []pki.KeyType{pki.ECDSAP256, pki.ECDSAP384, pki.RSA2048} {
		p, err := open(t, dir).Make(t.Context(), id, kt, names(t, "x.test"))
		if err != nil {
			t.Fatal(err)
		}
		csr, err := pki.CheckCSR(p.CSR)
		if err != nil || csr.KeyType != kt || csr.SPKIHash != pki.SPKIHash(p.Key.Public()) || !csr.Names.Equal(names(t, "x.test")) {
			t.Fatalf("%+v, %v", csr, err)
		}
		again, err := open(t, dir).Make(t.Context(), id, kt, names(t, "x.test")) // in the next process
		if err != nil || !bytes.Equal(again.CSR, p.CSR) {
			t.Fatalf("another CSR, %v", err)
		}
		found, err := open(t, dir).Find(t.Context(), "a", csr.SPKIHash)
		if err != nil || found.ID != id {
			t.Fatalf("%+v, %v", found.ID, err)
		}
	}
	p, err := open(t, dir).Make(t.Context(), id, pki.RSA2048, names(t, "y.test"))
	if err != nil {
		t.Fatal(err)
	}
	if csr, err := pki.CheckCSR(p.CSR); err != nil || !csr.Names.Equal(names(t, "y.test")) {
		t.Errorf("%v, %v", csr.Names, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	if fi, err := entries[0].Info(); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

func TestForget(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"))
	ids := []ID{{"a", 1, 1}, {"a", 1, 2}, {"a", 2, 1}, {"a", 10, 1}, {"b", 1, 1}}
	for _, id := range ids {
		if _, err := s.Make(t.Context(), id, pki.ECDSAP256, names(t, "x.test")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Forget("a", 2); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		_, err := s.Get(t.Context(), id)
		if gone := errors.Is(err, fs.ErrNotExist); gone != (i < 3) {
			t.Errorf("%v: %v", id, err)
		}
	}
	if n, err := s.Count(); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := s.Find(t.Context(), "b", "nonsense"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"))
	for attempt := range int32(20) {
		if _, err := s.Make(t.Context(), ID{"a", 1, attempt + 1}, pki.ECDSAP256, names(t, "x.test")); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Count(); err != nil || n != maxPending {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := s.Get(t.Context(), ID{"a", 1, 20}); err != nil {
		t.Error(err)
	}
}

func TestDamagedKeyIsLost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := open(t, dir)
	id := ID{"a", 1, 1}
	if _, err := s.Make(t.Context(), id, pki.ECDSAP256, names(t, "x.test")); err != nil {
		t.Fatal(err)
	}
	// Damaged, under another's name, and well sealed but no key.
	if err := os.WriteFile(filepath.Join(dir, id.name()), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := s.Make(t.Context(), id, pki.ECDSAP256, names(t, "x.test")); err != nil {
		t.Fatal(err)
	}
	other := ID{"a", 1, 2}
	if err := os.Rename(filepath.Join(dir, id.name()), filepath.Join(dir, other.name())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), other); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, record := range []string{"{}", "nonsense", `{"Assignment":"a","Generation":1,"Attempt":1,"Key":"AAAA"}`} {
		if err := s.folder.Put(id.name(), []byte(record)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", record, err)
		}
	}
}

// An agent that was killed, or stopped, when an assignment went must not keep its keys for ever.
func TestKeep(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"))
	for _, id := range []ID{{"kept", 1, 1}, {"kept", 2, 1}, {"gone", 1, 1}, {"gone", 7, 3}} {
		if _, err := s.Make(t.Context(), id, pki.ECDSAP256, names(t, "x.test")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.folder.Put("a-stranger", nil); err != nil {
		t.Fatal(err)
	}
	if erased, err := s.Keep(map[string]bool{"kept": true, "other": true}); err != nil || erased != 2 {
		t.Errorf("erased %d: %v", erased, err)
	}
	if left, err := s.Count(); err != nil || left != 3 {
		t.Errorf("%d left: %v", left, err)
	}
	if _, err := s.Get(t.Context(), ID{"kept", 2, 1}); err != nil {
		t.Error(err)
	}
}
