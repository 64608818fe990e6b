package trust

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// FuzzRoot takes any files for a trust domain's root and the key it is sealed with. What is refused is refused with an exit
// code, in one line.
func FuzzRoot(f *testing.F) {
	dir := f.TempDir()
	box, err := CreateBox(filepath.Join(dir, "kek"))
	if err != nil {
		f.Fatal(err)
	}
	if _, err := Create(filepath.Join(dir, "sealed"), td, box, time.Now); err != nil {
		f.Fatal(err)
	}
	if _, err := Create(filepath.Join(dir, "plain"), td, nil, time.Now); err != nil {
		f.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(read("kek"), read("sealed/"+FileRoot), read("sealed/"+FileKey))
	f.Add(read("kek"), read("plain/"+FileRoot), read("plain/"+FileKey))
	f.Add(read("kek"), read("sealed/"+FileRoot), read("plain/"+FileKey))
	f.Add([]byte(`{"primaryKeyId":1,"key":[]}`), read("plain/"+FileRoot), []byte("-----BEGIN "+sealedType+"-----\n-----END "+sealedType+"-----\n"))
	f.Fuzz(func(t *testing.T, kek, root, key []byte) {
		dir := t.TempDir()
		for name, data := range map[string][]byte{"kek": kek, FileRoot: root, FileKey: key} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		box, err := OpenBox(filepath.Join(dir, "kek"))
		if err == nil {
			_, err = Open(dir, box, time.Now)
		}
		if err != nil && (exit.Of(err) != exit.Data || strings.Contains(err.Error(), "\n")) {
			t.Fatalf("%d: %q", exit.Of(err), err)
		}
	})
}
