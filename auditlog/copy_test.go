package auditlog

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// state writes what a writer goes on from.
func (s *sample) state(records [][]byte) {
	root := rootOver(records)
	raw, err := json.Marshal(map[string]any{"size": len(records), "root": root[:]})
	if err != nil {
		s.t.Fatal(err)
	}
	s.file(statePath, raw)
	s.file(versionPath, []byte("1"))
}

// copyTo copies the log as it is now.
func (s *sample) copyTo(dir string) (Copied, error) {
	return CopyDir(s.t.Context(), s.dir, func(path string, data []byte) error {
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		if err != nil {
			return err
		}
		return f.Close()
	}, nil)
}

// TestCopyDir: a copy verifies, and has no file that does not belong to it, wherever checkpoint, state and tiles are.
func TestCopyDir(t *testing.T) {
	t.Parallel()
	const all = 66000 // three levels of tiles
	s := newSample(t, all)
	for _, c := range []struct{ signed, size, tiled int }{
		{1, 1, 1}, {255, 256, 257}, {256, 256, 300}, {256, 300, 300}, {300, 300, 511}, {300, 511, 512}, {513, 600, 600}, {65536, 65537, 65540}, {65792, all, all},
	} {
		dir := t.TempDir()
		s := &sample{t: t, dir: t.TempDir(), signer: s.signer, key: s.key, records: s.records}
		s.write(s.records[:c.tiled], s.records[:c.tiled])
		s.file(checkpointPath, s.checkpoint(s.records[:c.signed]))
		s.state(s.records[:c.size])
		got, err := s.copyTo(dir)
		if err != nil || got.Size != uint64(c.size) || got.Signed != uint64(c.signed) || got.Root != rootOver(s.records[:c.size]) {
			t.Fatalf("%+v: copied %+v, %v", c, got, err)
		}
		copied := &sample{t: t, dir: dir, signer: s.signer, key: s.key, records: s.records}
		if err := copied.verifyDir(copied.options()); err != nil {
			t.Errorf("%+v: the copy: %v", c, err)
		}
		copied.file(checkpointPath, s.checkpoint(s.records[:c.size]))
		if err := copied.verifyDir(copied.options()); err != nil {
			t.Errorf("%+v: the copy up to its state: %v", c, err)
		}
	}
}

// TestCopyDirRefuses what cannot be gone on from.
func TestCopyDirRefuses(t *testing.T) {
	t.Parallel()
	for what, spoil := range map[string]func(*sample){
		"no checkpoint":              func(s *sample) { s.gone(checkpointPath) },
		"no state":                   func(s *sample) { s.gone(statePath) },
		"no version":                 func(s *sample) { s.gone(versionPath) },
		"not a state":                func(s *sample) { s.file(statePath, []byte("{")) },
		"not a checkpoint":           func(s *sample) { s.file(checkpointPath, []byte("x\ny\n")) },
		"a state of less":            func(s *sample) { s.state(s.records[:10]) },
		"a bundle is missing":        func(s *sample) { s.gone("tile/entries/000") },
		"a bundle is short":          func(s *sample) { s.file("tile/entries/000", []byte{0, 9, 1}) },
		"a tile is missing":          func(s *sample) { s.gone("tile/0/000") },
		"a tile is short":            func(s *sample) { s.file("tile/0/000", make([]byte, 32)) },
		"the tile above is missing":  func(s *sample) { s.gone("tile/1/000.p/1") },
		"the last bundle is missing": func(s *sample) { s.gone("tile/entries/001.p/44") },
	} {
		s := newSample(t, 300)
		s.write(s.records, s.records)
		s.file(checkpointPath, s.checkpoint(s.records))
		s.state(s.records)
		spoil(s)
		if _, err := s.copyTo(t.TempDir()); err == nil {
			t.Errorf("%s: copied", what)
		}
	}
}
