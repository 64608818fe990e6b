package tiles

import (
	"errors"
	"io"
	"os"
)

// disk is what the writer does to a file system, so that a test can let each step fail, and cut the power after it.
type disk interface {
	mkdir(path string) error // with its parents
	create(path string) (writable, error)
	rename(from, to string) error
	remove(path string) error
	sync(dir string) error
}

// writable is a new file.
type writable interface {
	io.WriteCloser
	Sync() error
}

type realDisk struct{}

func (realDisk) mkdir(path string) error      { return os.MkdirAll(path, 0o755) }
func (realDisk) rename(from, to string) error { return os.Rename(from, to) }
func (realDisk) remove(path string) error     { return os.Remove(path) }

func (realDisk) create(path string) (writable, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
}

func (realDisk) sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
