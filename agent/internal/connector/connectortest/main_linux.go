package connectortest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

const inside = "SALLYPORT_TEST_MOUNTS"

// Main is the TestMain of a package whose tests mount file systems or look at
// listeners: it runs the tests in mount and network namespaces of their own, so
// that they need not be root, meet nobody else and leave nothing behind.
func Main(m *testing.M) {
	if dir := os.Getenv(inside); dir != "" && dir == os.Getenv("TMPDIR") {
		os.Exit(m.Run()) // it works for a fuzz target, whose process has prepared all
	}
	if os.Getenv(inside) != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "making mounts private:", err)
			os.Exit(1)
		}
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "bringing up loopback (make tools): %v %s\n", err, out)
			os.Exit(1)
		}
		if err := errors.Join(inMemory(os.Getenv(inside)), besideOthers()); err != nil {
			fmt.Fprintln(os.Stderr, "preparing the tests:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	temp, err := os.MkdirTemp("", "sallyport-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+temp)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = errors.Join(cmd.Run(), os.Remove(temp)) // what was mounted on it is gone
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		fmt.Fprintln(os.Stderr, "starting the tests in namespaces of their own:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inMemory has the tests' own folders on a tmpfs at dir: a disk that others use too may take a tenth of a second for each sync. That
// all is on the disk when the power goes is for those tests to try that take the power away.
func inMemory(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mounting a tmpfs: %w", err)
	}
	return errors.Join(os.Setenv("GOTMPDIR", os.TempDir()), os.Setenv("TMPDIR", dir))
}

// besideOthers lets more tests run at once than there are CPUs, unless the command line says how many: they mostly wait for servers
// and disks.
func besideOthers() error {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if said {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
}

// Tmpfs mounts a file system of so many bytes on dir, which must not be in use,
// and gives a function that makes it read-only.
func Tmpfs(t testing.TB, dir string, size int) (readOnly func()) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return func() {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			t.Fatalf("making %s read-only: %v", dir, err)
		}
	}
}
