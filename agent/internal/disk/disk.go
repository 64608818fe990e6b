// Package disk keeps small files so that they survive a crash and a power cut:
// after either, a file has its old content or its new one, whole, or it is
// known to be damaged and set aside. All paths stay inside the folder they
// were opened in.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Keep is Replace, but that a name which is not there yet is made as it is, in
// one go: a crash before Keep returns may leave it empty or in part.
func Keep(root *os.Root, name string, data []byte, perm fs.FileMode) error {
	err := Create(root, name, data, perm, nil)
	if errors.Is(err, fs.ErrExist) {
		return Replace(root, name, data, perm)
	}
	if err != nil {
		return err
	}
	return SyncDir(root, filepath.Dir(name))
}

// Replace puts data into the file name below root, made with perm if it was
// not there. It is durable when Replace returns.
func Replace(root *os.Root, name string, data []byte, perm fs.FileMode) error {
	tmp := filepath.Join(filepath.Dir(name), tempPrefix+filepath.Base(name))
	if err := root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := Create(root, tmp, data, perm, nil); err != nil {
		return err
	}
	if err := root.Rename(tmp, name); err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return SyncDir(root, filepath.Dir(name))
}

const tempPrefix = ".tmp-"

// Create makes the file name below root with data; it must not be there yet.
// dress, if given, sets what else the file needs before it is synced. A file
// that could not be completed is removed. The folder is not synced.
func Create(root *os.Root, name string, data []byte, perm fs.FileMode, dress func(*os.File) error) error {
	f, err := Begin(root, name, data, perm, dress)
	if err != nil {
		return err
	}
	if err := Finish(f); err != nil {
		return errors.Join(err, root.Remove(name))
	}
	return nil
}

// Begin is Create up to the sync, which is left to Finish: of several files
// that are begun before the first is finished, all reach the disk at once.
func Begin(root *os.Root, name string, data []byte, perm fs.FileMode, dress func(*os.File) error) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(data)
	if err == nil && dress != nil {
		err = dress(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), root.Remove(name))
	}
	return f, nil
}

// Finish syncs and closes.
func Finish(f *os.File) error { return errors.Join(f.Sync(), f.Close()) }

// Read gives the content of a plain file of at most limit bytes. It does not
// wait on a pipe or a device somebody put in its place.
func Read(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	return readPlain(f, name, limit)
}

// ReadPath is Read for a file anywhere.
func ReadPath(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	return readPlain(f, path, limit)
}

func readPlain(f *os.File, name string, limit int64) ([]byte, error) {
	data, err := plainContent(f, name, limit)
	return data, errors.Join(err, f.Close())
}

func plainContent(f *os.File, name string, limit int64) ([]byte, error) {
	fi, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a plain file")}
	case fi.Size() > limit:
		return nil, larger(name, limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1)) // it may have grown, and what the kernel makes up has no size
	if err == nil && int64(len(data)) > limit {
		return nil, larger(name, limit)
	}
	return data, err
}

func larger(name string, limit int64) error {
	return &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", limit)}
}

// Full says whether the error means that the file system, or the quota, has no
// room left.
func Full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, errQuota)
}

// Refused says whether the error means that the folder or file may not be
// written.
func Refused(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}
