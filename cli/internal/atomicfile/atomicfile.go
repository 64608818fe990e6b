// Package atomicfile writes small files whole or not at all. It guarantees
// that the file has exactly the mode asked for, whatever it had before and
// whatever the umask is, that nobody can read it meanwhile who may not read
// it then, and that it is on disk when Write returns.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// Write replaces or makes the file.
func Write(path string, data []byte, mode fs.FileMode) error {
	f, err := Create(path, mode)
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // nothing to do after a success
	if _, err := f.Write(data); err != nil {
		return err
	}
	return Commit(f, path)
}

// Create begins a file that appears under its name with Commit.
func Create(path string, mode fs.FileMode) (*renameio.PendingFile, error) {
	// The folder is named because the default, TMPDIR, may be a place where others list files.
	return renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(mode), renameio.WithStaticPermissions(mode))
}

// Commit gives the file its name.
func Commit(f *renameio.PendingFile, path string) error {
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Move gives a file that is whole and on disk its name, in the same file system.
func Move(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncDir has the names in a directory on disk.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
