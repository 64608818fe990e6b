package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Volume is a small ext4 file system of its own, in a file, on which the power can be cut. It needs root and a mount namespace
// of the test's own (Jail).
type Volume struct {
	// Path is where it is mounted.
	Path  string
	image string
}

// NewVolume makes a file system of size bytes in dir, which must not be on disk for long: a file system in memory is best.
func NewVolume(dir string, size int64) (*Volume, error) {
	v := &Volume{Path: filepath.Join(dir, "volume"), image: filepath.Join(dir, "volume.img")}
	if os.Geteuid() != 0 || aloneInNamespace() {
		return nil, errors.New("mounting a file system of its own needs root: run these tests as root")
	}
	if err := os.Mkdir(v.Path, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(v.image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	if err := run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", v.image); err != nil {
		return nil, err
	}
	return v, v.Mount()
}

// Mount mounts it, again after a Cut: the journal is replayed as after a real one.
func (v *Volume) Mount() error { return run("mount", "-t", "ext4", "-o", "loop", v.image, v.Path) }

// Unmount waits until nobody has a file open on it any more.
func (v *Volume) Unmount() error {
	var err error
	for range 1200 {
		if err = unix.Unmount(v.Path, 0); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("unmounting %s: %w: a process that was not ended has files open there", v.Path, err)
}

// Sync writes everything to the disk.
func (v *Volume) Sync() error {
	dir, err := os.Open(v.Path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
}

// From the kernel's fs/ext4/ext4.h: EXT4_IOC_SHUTDOWN is _IOR('X', 125, __u32), which XFS has too.
const (
	shutdown          = 0x8004587d
	shutdownNoLogSync = 2
)

// Cut takes the power away: what is neither on the disk nor in its journal is lost, and from now on every call that would
// reach the disk fails. The processes that use it are the caller's to kill.
func (v *Volume) Cut() error {
	dir, err := os.Open(v.Path)
	if err != nil {
		return err
	}
	defer dir.Close()
	how := uint32(shutdownNoLogSync)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), shutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return fmt.Errorf("cutting the power of %s: %w", v.Path, errno)
	}
	return nil
}

// Scatter writes back some pages of some files, as a kernel does at moments of its own: after a Cut what was not synced is then
// partly there and partly not.
func (v *Volume) Scatter(r *rand.Rand) error {
	return filepath.WalkDir(v.Path, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || r.IntN(2) == 0 {
			return nil //nolint:nilerr // files come and go
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil //nolint:nilerr // gone
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || info.Size() == 0 {
			return err
		}
		const page = 4096
		pages := info.Size()/page + 1
		from := r.Int64N(pages)
		n := 1 + r.Int64N(pages-from)
		return unix.SyncFileRange(int(f.Fd()), from*page, n*page, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: install the packages in scripts/packages.txt (make tools)", err)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
