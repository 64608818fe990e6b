package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestCommandFailures lets system calls of the command line fail where it writes files that are kept: the command fails and says
// why, and what was there before is there, whole.
func TestCommandFailures(t *testing.T) {
	s := newVolume(t)
	s.plane = ok(s.Serve(t.Context(), "control", lab.ServeOptions{Config: config}))(t)
	identity := filepath.Join(s.Dir, "alice")
	export := filepath.Join(s.Dir, "export.jsonl")
	issue := []string{"trust", "issue", "operator/alice", "--data", s.plane.Data, "--out", identity}
	write := []string{"audit", "export", "-o", export}
	ok(s.plane.Do(t.Context(), issue...))(t)
	ok(s.plane.Do(t.Context(), write...))(t)
	for name, c := range map[string]struct {
		args     []string
		dir      string
		calls    string
		do, says string
		code     int
	}{
		// Nor can it say so: standard error is written to as well.
		"an identity, no room":         {issue, identity, "write", "error=ENOSPC", "", 13},
		"an identity, a failed sync":   {issue, identity, "fsync", "error=EIO", "input/output error", 1},
		"an identity, a failed rename": {issue, identity, "renameat", "error=EIO", "input/output error", 1},
		"an export, no room":           {write, s.Dir, "", "", "no space left on device", 13},
		"an export, a failed sync":     {write, s.Dir, "fsync", "error=EIO", "input/output error", 1},
		"an export, a failed rename":   {write, s.Dir, "renameat", "error=EIO", "input/output error", 1},
	} {
		t.Run(name, func(t *testing.T) {
			before := contents(t, c.dir)
			prefix := ok(lab.Fault{Calls: c.calls, Do: c.do}.Prefix())(t)
			if c.calls == "" {
				ballast := filepath.Join(s.volume.Path, "ballast")
				fill(t, ballast)
				defer os.Remove(ballast)
				prefix = nil
			}
			got := ok(s.Run(t.Context(), lab.Command{
				Path: filepath.Join(s.Bin, "sallyport"), Args: c.args, Prefix: prefix,
				Env: []string{"SALLYPORT_CONFIG=" + filepath.Join(s.plane.Operator(), "config.yaml")},
			}))(t)
			if got.Code != c.code || !strings.Contains(got.Stderr, c.says) {
				t.Errorf("code %d: %s", got.Code, got.Stderr)
			}
			after := contents(t, c.dir)
			for path, data := range before {
				if !bytes.Equal(after[path], data) {
					t.Errorf("%s has changed", path)
				}
			}
			for path := range after {
				if _, was := before[path]; !was {
					t.Errorf("%s was left behind", path)
				}
			}
		})
	}
}

// contents are the plain files of a folder.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, e := range ok(os.ReadDir(dir))(t) {
		if e.Type().IsRegular() && e.Name() != "ballast" {
			all[e.Name()] = ok(os.ReadFile(filepath.Join(dir, e.Name())))(t)
		}
	}
	return all
}
