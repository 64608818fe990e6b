package pemfile

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// FuzzStaged goes on with whatever list of staged files a journal may hold, forwards, backwards and to its end: each refusal has a
// reason for the operator, and nothing outside the folder is touched, whatever the names.
func FuzzStaged(f *testing.F) {
	folder := f.TempDir()
	pair := connectortest.NewCA(f).Pair(f, "x.test")
	for _, paths := range []map[Part]string{
		{Certificate: filepath.Join(folder, "site.crt"), Key: filepath.Join(folder, "site.key")}, {Combined: filepath.Join(folder, "site.pem")},
	} {
		set, err := NewSet(Rules{Allow: connector.Allow{folder}, Owner: -1, Group: -1, KeyMode: 0o600}, paths)
		if err != nil {
			f.Fatal(err)
		}
		for range 2 { // at first there are no files to be replaced
			staged, err := set.Stage(pair)
			if err != nil {
				f.Fatal(err)
			}
			f.Add([]byte(staged), uint8(0b00_01_10))
			f.Add([]byte(strings.ReplaceAll(string(staged), "site.", "../outside/")), uint8(0b01_10_00))
			if err := Swap(staged); err != nil {
				f.Fatal(err)
			}
		}
	}
	f.Add([]byte(`[{"name":""},{"name":"."},{"name":"tls"},{"name":"a\u0000"}]`), uint8(0b10_01_00))
	f.Add([]byte("null"), uint8(0))
	f.Add([]byte(`[{"name":1}]`), uint8(0))
	f.Add([]byte(`[{"name":"site.crt"}`), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, order uint8) {
		files, err := decode(data)
		if err != nil {
			if fault.KindOf(err) != fault.Permanent || fault.Of(err).Reason != connector.ReasonInstallFailed {
				t.Fatal(err)
			}
			return
		}
		whole := t.TempDir()
		inside, outside := filepath.Join(whole, "inside"), filepath.Join(whole, "outside")
		for _, dir := range []string{inside, outside, filepath.Join(inside, "tls")} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"site.crt", ".site.crt.sallyport-new", ".site.key.sallyport-new", "crt", "key", ".crt.sallyport-new", ".crt.sallyport-old"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range files {
			files[i].Folder = inside
		}
		staged, err := json.Marshal(files)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decode(staged); err != nil || !slices.Equal(again, files) {
			t.Fatalf("%v, %v, after %v", again, err, files)
		}
		for range 3 {
			err := []func(connector.Staged) error{Swap, Back, Drop, Swap}[order&3](staged)
			order >>= 2
			if err != nil && (fault.Of(err) == nil || fault.Of(err).Reason == fault.ReasonInternal) {
				t.Fatalf("no reason is given: %v", err)
			}
		}
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) != 7 {
			t.Fatalf("outside there are %v, %v", entries, err)
		}
		for _, e := range entries {
			if data, err := os.ReadFile(filepath.Join(outside, e.Name())); err != nil || string(data) != e.Name() {
				t.Fatalf("%s holds %q, %v", e.Name(), data, err)
			}
		}
	})
}
