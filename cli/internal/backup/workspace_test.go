package backup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// inWorkspace has this program make a workspace in a folder, leave things in it, and remove it.
const inWorkspace = "SALLYPORT_TEST_WORKSPACE"

func TestMain(m *testing.M) {
	for name, do := range map[string]func(string) error{inWorkspace: passThrough, inRestore: putElsewhere} {
		if in := os.Getenv(name); in != "" {
			if err := do(in); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// traced has this program do one of these under strace.
func traced(t *testing.T, do, in string, options ...string) ([]byte, error) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v: make tools", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), strace, append(append([]string{"-f", "-qq"}, options...), "--", self)...)
	cmd.Env = append(os.Environ(), do+"="+in)
	return cmd.CombinedOutput()
}

func passThrough(in string) error {
	w, err := newWorkspace(in, "x.tar.gz", ofBackups)
	if err != nil {
		return err
	}
	for _, name := range []string{"backup", "issuer.db", "zz"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(name), 0o600); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(w.dir, "restoring", "audit"), 0o700); err != nil {
		return err
	}
	w.remove()
	return nil
}

// TestKilledAtEachStep: whatever a workspace is killed at, also while it is removed or removes another, the next removes all that
// it has left.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"mkdirat", "flock", "renameat", "unlinkat"} {
		for _, before := range []bool{false, true} { // in a folder where one was killed before
			killed := 0
			for n := 1; ; n++ {
				if n > 100 {
					t.Fatalf("%s: there is no end to it", call)
				}
				in := t.TempDir()
				if before {
					leave(t, in)
				}
				out, err := traced(t, inWorkspace, in, "-o", os.DevNull, "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n))
				if err == nil {
					break // it has no so many steps
				}
				var ended *exec.ExitError
				if !errors.As(err, &ended) || len(out) > 0 {
					t.Fatalf("%v: %s", err, out)
				}
				killed++
				w, err := newWorkspace(in, "next", ofBackups)
				if err != nil {
					t.Fatal(err)
				}
				if found := names(t, in); len(found) != 1 || found[0] != filepath.Base(w.dir) {
					t.Errorf("killed at %s %d, with one killed before: %t: there is %v", call, n, before, found)
				}
				w.remove()
				if found := names(t, in); len(found) > 0 {
					t.Errorf("it leaves %v", found)
				}
			}
			if want := map[string]int{"mkdirat": 1, "flock": 1, "renameat": 1, "unlinkat": 6}[call]; killed < want {
				t.Errorf("%s: killed %d times, want %d at least", call, killed, want)
			}
		}
	}
}

// leave leaves what one that was killed at its work does.
func leave(t *testing.T, in string) {
	t.Helper()
	w, err := newWorkspace(in, "before", ofBackups)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(w.dir, "backup"), []byte("x"), 0o600), w.lock.Close()); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// TestNobodysWorkspaceIsTaken by those that begin at the same time, nor what is none.
func TestNobodysWorkspaceIsTaken(t *testing.T) {
	t.Parallel()
	in := t.TempDir()
	foreign := filepath.Join(in, ".photos.part-1", "one.jpg")
	if err := errors.Join(os.Mkdir(filepath.Dir(foreign), 0o700), os.WriteFile(foreign, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				w, err := newWorkspace(in, "x", ofBackups)
				if err != nil {
					t.Error(err)
					return
				}
				mine := filepath.Join(w.dir, "backup")
				if err := os.WriteFile(mine, nil, 0o600); err != nil {
					t.Errorf("removed while it was at work: %v", err)
				}
				if _, err := os.Stat(mine); err != nil {
					t.Errorf("removed while it was at work: %v", err)
				}
				w.remove()
			}
		})
	}
	all.Wait()
	if found := names(t, in); len(found) != 1 || found[0] != ".photos.part-1" {
		t.Errorf("left: %v", found)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
}
