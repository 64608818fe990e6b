package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera/api/layout"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// probeSize takes a new block of the disk.
const probeSize = 4096

// Writable finds out whether the log can take records: the last ones were taken, and the disk takes something into the lock
// file, which holds nothing otherwise.
func (l *Ledger) Writable(ctx context.Context) error {
	l.mu.Lock()
	err := l.trouble
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = l.lock.WriteAt(make([]byte, probeSize), 0)
	if err := errors.Join(err, l.lock.Truncate(0)); err != nil {
		return fault.New(fault.Transient, "LOG_UNAVAILABLE", "writing to %s: is the disk full or read-only? %w", l.dir, err)
	}
	return nil
}

// noteAdded remembers how the last Addition ended.
func (l *Ledger) noteAdded(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = err
}

// CheckpointTime is when the newest checkpoint was written.
func (l *Ledger) CheckpointTime() (time.Time, error) {
	info, err := os.Stat(filepath.Join(l.logDir, layout.CheckpointPath))
	if err != nil {
		return time.Time{}, fmt.Errorf("looking at the checkpoint: %w", err)
	}
	return info.ModTime(), nil
}
