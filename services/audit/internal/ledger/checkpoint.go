package ledger

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger/tiles"
)

// publish signs a checkpoint whenever the log has grown, not more often than every interval, and a last one when life ends. Its error
// is that one's.
func (l *Ledger) publish(life context.Context, signed uint64, interval time.Duration) error {
	for {
		_, _ = l.Await(life, signed)
		last := life.Err() != nil
		l.mu.Lock()
		state := l.state
		l.mu.Unlock()
		var err error
		if state.Size > signed {
			if err = l.sign(state); err == nil {
				signed = state.Size
			}
		}
		if last {
			return err
		}
		if err != nil {
			l.log.WarnContext(life, "a checkpoint cannot be written: it will be tried again", "records", state.Size, "error", err)
		}
		select {
		case <-life.Done():
		case <-time.After(interval):
		}
	}
}

// sign puts a checkpoint over a state that is on disk in the place of the one before.
func (l *Ledger) sign(s tiles.State) error {
	text := fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), s.Size, base64.StdEncoding.EncodeToString(s.Root[:]))
	signed, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	return writeFile(filepath.Join(l.logDir, layout.CheckpointPath), signed, 0o644)
}

// collect has partial tiles erased until life ends.
func (l *Ledger) collect(life context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-life.Done():
			return
		case <-tick.C:
		}
		c, err := l.Checkpoint(life)
		if err == nil {
			err = tiles.Collect(life, l.logDir, c.Size)
		}
		if err != nil {
			l.log.WarnContext(life, "partial tiles that are of no use any more cannot be erased yet", "error", err)
		}
	}
}

// Checkpoint is the newest one, its signature verified.
func (l *Ledger) Checkpoint(ctx context.Context) (auditlog.Checkpoint, error) {
	signed, err := l.files.ReadCheckpoint(ctx)
	if err != nil {
		return auditlog.Checkpoint{}, fault.New(fault.Transient, "CHECKPOINT_UNAVAILABLE", "reading the checkpoint in %s: %w", l.logDir, err)
	}
	c, err := auditlog.ParseCheckpoint(signed, l.key)
	if err != nil {
		return c, l.damaged("%w", err)
	}
	return c, nil
}

// AwaitCheckpoint waits for a checkpoint that covers the first size records.
func (l *Ledger) AwaitCheckpoint(ctx context.Context, size uint64) (auditlog.Checkpoint, error) {
	tick := time.NewTicker(awaitPoll)
	defer tick.Stop()
	for {
		c, err := l.Checkpoint(ctx)
		if err == nil && c.Size >= size {
			return c, nil
		}
		if err != nil && fault.KindOf(err) != fault.Transient {
			return c, err
		}
		select {
		case <-ctx.Done():
			return c, fault.New(fault.Transient, "CHECKPOINT_BEHIND", "no checkpoint covers %d records yet", size).After(time.Second)
		case <-tick.C:
		}
	}
}

// CheckpointTime is when the newest checkpoint was written.
func (l *Ledger) CheckpointTime() (time.Time, error) {
	info, err := os.Stat(filepath.Join(l.logDir, layout.CheckpointPath))
	if err != nil {
		return time.Time{}, fmt.Errorf("looking at the checkpoint: %w", err)
	}
	return info.ModTime(), nil
}
