package process

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzPIDFile: no file leads to a signal for init, for a group, or for everybody (kill(2): 1, 0, -1).
func FuzzPIDFile(f *testing.F) {
	for _, s := range []string{"1234\n", "1", "0", "-1", "-1234", " 12 \n13", "0x10", "99999999999999999999", "", "1e3"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "pid")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if pid, err := (Server{PIDFile: file}).pid(); err == nil && pid < 2 {
			t.Fatalf("%q is %d", data, pid)
		}
	})
}
