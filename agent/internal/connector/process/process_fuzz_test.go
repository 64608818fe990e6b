package process

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// FuzzPIDFile: no file leads to a signal for init, for a group, or for everybody (kill(2): 1, 0, -1), nor to one for a process whose id
// the kernel would make of a greater number.
func FuzzPIDFile(f *testing.F) {
	for _, s := range []string{"1234\n", "1", "0", "-1", "-1234", " 12 \n13", "0x10", "99999999999999999999", "4294967295", "4194305", "", "1e3", strings.Repeat("\n", 70) + "12"} {
		f.Add([]byte(s))
	}
	first := regexp.MustCompile(`^\+?0*([1-9][0-9]{0,6})$`)
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "pid")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		pid, err := (Server{PIDFile: file}).pid()
		if err != nil {
			return
		}
		if line := strings.TrimSpace(strings.Split(strings.TrimSpace(string(data)), "\n")[0]); pid < 2 || pid > maxPID || len(data) > maxPIDFile || !first.MatchString(line) {
			t.Fatalf("%q is %d", data, pid)
		}
	})
}
