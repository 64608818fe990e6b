package db

import (
	"context"
	"errors"
	"sync"

	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// distrust begins when the disk has failed to sync. The kernel tells of that once and takes the lost pages for clean, so a sync
// that succeeds later proves nothing about what was written before: only a process that begins with what is on the disk knows.
type distrust struct {
	mu    sync.Mutex
	why   error
	begun chan struct{}
}

// unsynced says whether SQLite could not sync a file or its folder.
func unsynced(err error) bool {
	var lite *sqlite.Error
	return errors.As(err, &lite) && (lite.Code() == lib.SQLITE_IOERR_FSYNC || lite.Code() == lib.SQLITE_IOERR_DIR_FSYNC)
}

func (d *distrust) begin(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == nil {
		d.why = why
		close(d.channel())
	}
}

// channel is to be called with mu held.
func (d *distrust) channel() chan struct{} {
	if d.begun == nil {
		d.begun = make(chan struct{})
	}
	return d.begun
}

func (d *distrust) reason() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.why
}

// Watch returns when ctx ends, with nil, or when the disk has failed to sync, with the error. From then on every Write is
// refused: the process is to end, and another to begin with what is on the disk.
func (d *DB) Watch(ctx context.Context) error {
	d.distrust.mu.Lock()
	begun := d.distrust.channel()
	d.distrust.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil
	case <-begun:
		return d.classify(ctx, d.distrust.reason())
	}
}
