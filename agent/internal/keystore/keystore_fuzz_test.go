package keystore

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// FuzzRecord reads what may be in the record of a key: what is no key of its name is set aside, and is not found again.
func FuzzRecord(f *testing.F) {
	log := slog.New(slog.DiscardHandler)
	id := ID{"0192f0c1-7a3b-7def-8000-0123456789ab", 3, 1}
	dir := filepath.Join(f.TempDir(), "keys")
	for _, kt := range []pki.KeyType{pki.ECDSAP256, pki.ECDSAP384, pki.RSA2048} {
		folder, err := disk.OpenFolder(dir, log)
		if err != nil {
			f.Fatal(err)
		}
		names, err := pki.ParseNames([]string{"x.test"}, nil)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := New(folder).Make(f.Context(), id, kt, names); err != nil {
			f.Fatal(err)
		}
		seed, err := folder.Get(f.Context(), id.name())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
		f.Add(bytes.Replace(seed, []byte(`"Generation":3`), []byte(`"Generation":4`), 1))
	}
	f.Add([]byte(`{"Assignment":"a","Key":"AAAA"}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		folder, err := disk.OpenFolder(filepath.Join(t.TempDir(), "keys"), log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := folder.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := folder.Put(id.name(), data); err != nil {
			t.Fatal(err)
		}
		s := New(folder)
		p, err := s.Get(t.Context(), id)
		if err == nil && (p.ID != id || p.Key == nil || p.Key.Public() == nil) {
			t.Fatalf("%+v was taken", p.ID)
		}
		if n, countErr := s.Count(); countErr != nil || (n == 1) != (err == nil) {
			t.Fatalf("%d keys wait, %v, after %v", n, countErr, err)
		}
	})
}
