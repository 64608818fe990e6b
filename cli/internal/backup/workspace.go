package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// workspace is a folder for what is made on the way, beside the backup or where there is room to look into one. Its maker holds a
// lock on a file in it for as long as it lives, so that what a killed one has left can be told from the work of another, and
// removed. The lock is the first thing in it and the last to go: what has none is empty, and nobody misses it.
type workspace struct {
	dir  string
	lock *os.File
}

// Which workspaces are removed when their makers are dead. Where backups are looked into others have theirs too.
var (
	ofBackups = regexp.MustCompile(`^\..+\.part-[0-9]+$`)
	ofVerify  = regexp.MustCompile(`^\.sallyport-verify\.part-[0-9]+$`)
)

// The lock has its first name as long as it is not held.
const (
	workspaceLock = "lock"
	workspaceNew  = "new"
)

// newWorkspace makes one in a folder for the file of that name, after removing those there whose makers are dead.
func newWorkspace(in, name string, left *regexp.Regexp) (*workspace, error) {
	if err := removeLeft(in, left); err != nil {
		return nil, fmt.Errorf("removing what was left when one before was broken off: %w", err)
	}
	for {
		dir, err := os.MkdirTemp(in, "."+name+".part-")
		if err != nil {
			return nil, err
		}
		w := &workspace{dir: dir}
		w.lock, err = takeLock(dir)
		switch {
		case err == nil:
			return w, nil
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EWOULDBLOCK): // one that begins too took this for left
			continue
		}
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
}

// takeLock makes a file that is locked before it has its name.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, workspaceNew), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, workspaceLock))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (w *workspace) remove() {
	_ = dispose(w.dir) // the next backup tries again
	_ = w.lock.Close()
}

func removeLeft(in string, left *regexp.Regexp) error {
	entries, err := os.ReadDir(in)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && left.MatchString(e.Name()) && ours(e) {
			if err := removeDead(filepath.Join(in, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// ours says that it belongs to this user: in a folder for all, others may lay out anything.
func ours(e fs.DirEntry) bool {
	info, err := e.Info()
	if err != nil {
		return false // gone
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// removeDead removes a workspace, unless its maker lives, or it is none.
func removeDead(dir string) error {
	lock, err := openLock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(dir) // what has something in it is none
		return nil
	}
	if err != nil {
		return nil //nolint:nilerr // nothing that we could take for ours
	}
	defer func() { _ = lock.Close() }() // nothing was written
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil //nolint:nilerr // at work
	}
	if err := dispose(dir); !errors.Is(err, fs.ErrNotExist) { // another was quicker
		return err
	}
	return nil
}

func openLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, workspaceLock), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(filepath.Join(dir, workspaceNew), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	}
	return f, err
}

// dispose removes a workspace, its lock last.
func dispose(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != workspaceLock && e.Name() != workspaceNew {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}
