package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// workspace is a folder beside the backup for what is made on the way. Its maker holds a lock on a file in it for as long as it
// lives, so that what a killed one has left can be told from the work of another, and removed.
type workspace struct {
	dir  string
	lock *os.File
}

var workspaceName = regexp.MustCompile(`^\..+\.part-[0-9]+$`)

const workspaceLock = "lock"

// newWorkspace makes one for the backup out, after removing those beside it whose makers are dead.
func newWorkspace(out string) (*workspace, error) {
	beside := filepath.Dir(out)
	if err := removeLeft(beside); err != nil {
		return nil, fmt.Errorf("removing what a backup that was broken off has left: %w", err)
	}
	dir, err := os.MkdirTemp(beside, "."+filepath.Base(out)+".part-")
	if err != nil {
		return nil, err
	}
	w := &workspace{dir: dir}
	if w.lock, err = takeLock(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return w, nil
}

// takeLock makes a file that is locked before it has its name: nobody sees it free.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "new"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
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
	_ = os.RemoveAll(w.dir) // the next backup tries again
	_ = w.lock.Close()
}

func removeLeft(beside string) error {
	entries, err := os.ReadDir(beside)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && workspaceName.MatchString(e.Name()) {
			if err := removeDead(filepath.Join(beside, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeDead removes a workspace, unless its maker lives, or it is none, or somebody else's.
func removeDead(dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, workspaceLock), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil //nolint:nilerr // nothing that we could take for ours
	}
	defer func() { _ = lock.Close() }() // nothing was written
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil //nolint:nilerr // at work
	}
	return os.RemoveAll(dir)
}
