package challenge

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// FuzzWritten goes on from whatever note there may be of files in a webroot: the answer wanted is put there, answers that were noted
// are removed, and nothing else is, whatever the names.
func FuzzWritten(f *testing.F) {
	log := slog.New(slog.DiscardHandler)
	open := func(t testing.TB) *disk.Folder {
		t.Helper()
		state, err := disk.OpenFolder(filepath.Join(t.TempDir(), "state"), log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := state.Close(); err != nil {
				t.Error(err)
			}
		})
		return state
	}
	const another = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
	state := open(f)
	w := &webroot{f.TempDir(), state}
	if err := w.serve(f.Context(), map[string]string{goodToken: goodKey, another: another}); err != nil {
		f.Fatal(err)
	}
	seed, err := state.Get(f.Context(), writtenName)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"../../index.html":true,"/index.html":true,"":true,".":true,"LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0":false}`))
	f.Add([]byte("null"))
	f.Add([]byte("[]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		state, root := open(t), t.TempDir()
		answers := filepath.Join(root, filepath.FromSlash(path))
		if err := os.MkdirAll(answers, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{filepath.Join(root, "index.html"), filepath.Join(answers, "index.html"), filepath.Join(answers, another)} {
			if err := os.WriteFile(file, []byte("there before"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := state.Put(writtenName, data); err != nil {
			t.Fatal(err)
		}
		noted, err := written(t.Context(), state)
		if err != nil {
			t.Fatal(err)
		}
		_, removed := noted[another]
		w := &webroot{root, state}
		for range 2 {
			if err := w.serve(t.Context(), map[string]string{goodToken: goodKey}); err != nil {
				t.Fatal(err)
			}
			have := map[string]bool{}
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					have[filepath.Base(path)] = true
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := 2; !have["index.html"] || !have[goodToken] || have[another] == removed || len(have) > want+1 {
				t.Fatalf("after %q there are %v", data, have)
			}
		}
		if err := w.serve(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if left, err := written(t.Context(), state); err != nil || left[goodToken] || left[another] {
			t.Fatalf("noted still: %v, %v", left, err)
		}
		for name, there := range map[string]bool{goodToken: false, another: !removed, "index.html": true} {
			if _, err := os.Stat(filepath.Join(answers, name)); (err == nil) != there {
				t.Fatalf("%s: %v", name, err)
			}
		}
	})
}
