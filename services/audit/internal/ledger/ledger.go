// Package ledger is the append-only log: a Tessera tile log on a local file system, and the key that signs its checkpoints.
//
// It guarantees that a record whose position Add has given is on disk for ever, that one process at a time has the log open,
// and that a log that is not what its key signed is refused at opening: another log's, a cut-off one, one with tiles that do not
// give the signed root. A proof is checked before it is handed out. It knows nothing of what the records say; one record per
// event is its caller's business.
//
// Tessera's three states of an entry are two here: its POSIX driver sequences and integrates a batch in one step, with fsync of
// bundles, tiles and state, before it gives out the positions. So a record that has a position is integrated: the next
// checkpoint, at most two checkpoint intervals later, covers it ("published"), after a crash too. An addition is done with the position
// and not with the checkpoint, because nothing that happens in between can lose the record. Tessera's antispam is not used: it
// forgets, or lags behind, and is no promise.
//
// The directory holds
//
//	log/            what auditors may copy: checkpoint, tile/ (c2sp.org/tlog-tiles); .state/ is Tessera's own
//	checkpoint.key  the signing key, mode 0600
//	verifier        the public key as a note verifier
//	lock            held by the process that has the log open
package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

const (
	// BatchSize is how many records Tessera integrates at once: one batch costs about the same whatever its size.
	BatchSize = 1024
	// batchAge is how long a batch that is not full waits for more.
	batchAge = 5 * time.Millisecond
	// shutdownBound is how long Close waits for the last checkpoint.
	shutdownBound = 10 * time.Second
	// awaitPoll is how often a wait for a checkpoint looks.
	awaitPoll = 20 * time.Millisecond
)

// Config says where a log is and whose.
type Config struct {
	// Dir is created if it does not exist. It must be on a local file system.
	Dir string
	// Origin names the log for ever: it stands in every checkpoint.
	Origin string
	// CheckpointInterval is the least time between two checkpoints; at least 100 ms.
	CheckpointInterval time.Duration
	Log                *slog.Logger
}

// Ledger is an open log. Add must not be called concurrently, everything else may.
type Ledger struct {
	dir      string
	logDir   string
	verifier string
	key      note.Verifier
	log      *slog.Logger
	lock     *os.File
	files    client.FileFetcher
	reader   tessera.LogReader
	add      tessera.AddFn
	shutdown func(context.Context) error
	stop     context.CancelFunc

	mu      sync.Mutex
	trouble error // of the last Addition
	size    uint64
	grown   chan struct{} // closed and replaced when size grows
}

// Open opens the log, or begins a new one in an empty directory. Every refusal says what to do.
func Open(ctx context.Context, c Config) (*Ledger, error) {
	if c.Dir == "" || c.Origin == "" || c.CheckpointInterval < 100*time.Millisecond || c.Log == nil {
		return nil, errors.New("ledger.Open: Dir, Origin, CheckpointInterval (at least 100 ms) and Log are required")
	}
	l := &Ledger{dir: c.Dir, logDir: filepath.Join(c.Dir, "log"), log: c.Log, grown: make(chan struct{})}
	l.files = client.FileFetcher{Root: l.logDir}
	if err := l.acquire(); err != nil {
		return nil, err
	}
	if err := l.open(ctx, c); err != nil {
		return nil, errors.Join(err, l.lock.Close())
	}
	return l, nil
}

func (l *Ledger) open(ctx context.Context, c Config) error {
	signer, err := l.loadKey(c.Origin)
	if err != nil {
		return err
	}
	if err := l.check(ctx); err != nil {
		return err
	}
	if err := l.writeVerifier(); err != nil {
		return err
	}
	captureKlog()
	tesseraLog.Store(c.Log)
	driver, err := posix.New(ctx, posix.Config{Path: l.logDir})
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	// Tessera's goroutines live until Close, whatever becomes of ctx.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	appender, shutdown, reader, err := tessera.NewAppender(life, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(c.CheckpointInterval).
		WithCheckpointRepublishInterval(0).
		WithBatching(BatchSize, batchAge).
		WithPushback(4*BatchSize).
		WithShutdownTimeout(shutdownBound))
	if err != nil {
		stop()
		return refuse("the log in %s cannot be opened: if it is damaged, restore the directory from a backup: %w", l.logDir, err)
	}
	l.add, l.shutdown, l.reader, l.stop = appender.Add, shutdown, reader, stop
	if l.size, err = reader.IntegratedSize(ctx); err != nil {
		stop()
		return refuse("the state of the log in %s cannot be read: restore the directory from a backup: %w", l.logDir, err)
	}
	return nil
}

// Close waits for the checkpoint that covers the last record and lets go of the directory.
func (l *Ledger) Close() error {
	err := l.shutdown(context.Background())
	if err != nil {
		err = fmt.Errorf("waiting for the last checkpoint: %w", err)
	}
	l.stop()
	tesseraLog.CompareAndSwap(l.log, nil)
	return errors.Join(err, l.lock.Close())
}

// ErrDisk is what Add's errors wrap when the disk has failed for another reason than that it is full. What was written then may seem
// to be there, and be lost with the next power cut, so it must not be built on: the process is to end, and another to begin with
// what is on the disk.
var ErrDisk = errors.New("the disk does not work (see the kernel log)")

// Addition is records on their way into the log.
type Addition struct {
	ledger    *Ledger
	positions []uint64
	err       error
	done      chan struct{}
}

// Add has the records taken into the log, after those of the call before. It returns when most of them still wait, so that the
// next ones can be made meanwhile; what was added must be waited for. There must be some.
func (l *Ledger) Add(ctx context.Context, records [][]byte) *Addition {
	a := &Addition{ledger: l, positions: make([]uint64, len(records)), done: make(chan struct{})}
	futures := make([]tessera.IndexFuture, len(records))
	entries := make([]*tessera.Entry, 0, BatchSize)
	for from := 0; from < len(records); from += BatchSize {
		// Hashed first and then added without a pause, so that a batch is full before its age ends: one that is not costs
		// as much, and has the next ones end within bundles, which are then written twice.
		entries = entries[:0]
		for _, r := range records[from:min(from+BatchSize, len(records))] {
			entries = append(entries, tessera.NewEntry(r))
		}
		for i, e := range entries {
			futures[from+i] = l.add(ctx, e)
		}
	}
	go func() {
		defer close(a.done)
		_, _ = futures[len(futures)-1]() // the others then mostly are known, and nobody has to be woken for each
		for i, f := range futures {      // all of them, even after an error: none may still be on its way when this returns
			index, err := f()
			a.positions[i] = index.Index
			if err != nil && a.err == nil {
				a.err = l.failed(err)
			}
		}
		l.noteAdded(a.err)
	}()
	return a
}

// Done is closed when all of the records are in the log, on disk, or an error is known.
func (a *Addition) Done() <-chan struct{} { return a.done }

// Wait waits for Done and gives the positions. They are the next positions, each given once, nearly always in order; seldom some
// of them belong to an addition begun soon after, which got theirs. An error says nothing about what was added: before the next
// Add, Refresh must tell how far the log goes, and Read what stands there. After ErrDisk there is no next one.
func (a *Addition) Wait() ([]uint64, error) {
	<-a.done
	return a.positions, a.err
}

// failed says why records could not be added.
func (l *Ledger) failed(err error) error {
	if errors.Is(err, tessera.ErrPushback) {
		return fault.New(fault.Transient, "LOG_UNAVAILABLE", "appending to the log in %s: %w", l.logDir, err)
	}
	// The driver does not wrap all that it is told.
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return fault.New(fault.Transient, "LOG_UNAVAILABLE", "appending to the log in %s: disk full: free space there: %w", l.logDir, err)
	}
	return fault.New(fault.Transient, "LOG_UNAVAILABLE", "appending to the log in %s: %w", l.logDir, fmt.Errorf("%w: %w", ErrDisk, err))
}

// Refresh reads how far the log goes, which after a failed Add can be further than Size, and wakes those who wait for it to grow.
func (l *Ledger) Refresh(ctx context.Context) (uint64, error) {
	size, err := l.reader.IntegratedSize(ctx)
	if err != nil {
		return 0, fault.New(fault.Transient, "LOG_UNAVAILABLE", "reading the state of the log in %s: %w", l.logDir, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if size < l.size {
		return 0, fault.New(fault.Internal, "LOG_INCONSISTENT", "the log in %s had %d records and has %d now: does another program write to it?", l.logDir, l.size, size)
	}
	if size > l.size {
		l.size = size
		close(l.grown)
		l.grown = make(chan struct{})
	}
	return size, nil
}

// Size is the number of records.
func (l *Ledger) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Await waits until the log has more than size records and gives how many.
func (l *Ledger) Await(ctx context.Context, size uint64) (uint64, error) {
	for {
		l.mu.Lock()
		now, grown := l.size, l.grown
		l.mu.Unlock()
		if now > size {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-grown:
		}
	}
}

// Verifier is the public key as a note verifier.
func (l *Ledger) Verifier() string { return l.verifier }

// Dir is the log's own directory, which offline verification takes.
func (l *Ledger) Dir() string { return l.logDir }

// Read calls fn with each record from position from to before position to, in order. It stops without an error when fn
// returns io.EOF. The bytes are fn's to keep.
func (l *Ledger) Read(ctx context.Context, from, to uint64, fn func(position uint64, record []byte) error) error {
	if size := l.Size(); to > size || from > to {
		return fault.New(fault.NotFound, "POSITION_NOT_FOUND", "positions %d to %d: the log has %d records", from, to, size)
	}
	return l.Get(ctx, func(yield func(uint64) bool) {
		for ; from < to && yield(from); from++ {
		}
	}, fn)
}

// Get is Read for any positions in any order; neighbours are read together.
func (l *Ledger) Get(ctx context.Context, positions iter.Seq[uint64], fn func(position uint64, record []byte) error) error {
	const width = layout.EntryBundleWidth
	size := l.Size()
	var bundle api.EntryBundle
	index := uint64(math.MaxUint64) // of bundle
	for p := range positions {
		if p >= size {
			return notFound(p, size)
		}
		if p/width != index {
			var err error
			if bundle, err = client.GetEntryBundle(ctx, l.reader.ReadEntryBundle, p/width, size); err != nil {
				return l.damaged("reading position %d: %w", p, err)
			}
			index = p / width
		}
		if p%width >= uint64(len(bundle.Entries)) {
			return l.damaged("the entry bundle ends before position %d", p)
		}
		if err := fn(p, bundle.Entries[p%width]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Checkpoint is the newest one, its signature verified.
func (l *Ledger) Checkpoint(ctx context.Context) (auditlog.Checkpoint, error) {
	signed, err := l.reader.ReadCheckpoint(ctx)
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
