package ledger

import (
	"context"
	"errors"

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
