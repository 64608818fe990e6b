// Package ledger is the append-only log: tiles on a local file system, and the key that signs its checkpoints.
//
// It guarantees that a record whose position Add has given is on disk for ever, that one process at a time has the log open,
// and that a log that is not what its key signed is refused at opening: another log's, a cut-off one, one with tiles that do not
// give the signed root. A proof is checked before it is handed out. It knows nothing of what the records say; one record per
// event is its caller's business.
//
// An addition is done when package tiles has brought it to the disk. The next checkpoint, at most a checkpoint interval later, covers
// it, after a crash too. It does not wait for that, because nothing that happens in between can lose the record.
//
// The directory holds
//
//	log/            what auditors may copy: checkpoint, tile/ (c2sp.org/tlog-tiles); .state/ says how far it goes
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
	"sync"
	"syscall"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger/tiles"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
)

const (
	// BatchSize is how many records are worth an addition of their own while another is on its way: whole bundles, which then
	// need not be written again with more in them.
	BatchSize = 4 * layout.EntryBundleWidth
	// awaitPoll is how often a wait for a checkpoint looks.
	awaitPoll = 20 * time.Millisecond
	// collectEvery is how often partial tiles are erased that nobody needs any more.
	collectEvery = time.Minute
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
	signer   note.Signer
	verifier string
	key      note.Verifier
	log      *slog.Logger
	lock     *os.File
	files    client.FileFetcher
	writer   *tiles.Writer // whose turn it is, by last
	stop     context.CancelFunc
	signing  chan error // what became of the last checkpoint
	cleaning sync.WaitGroup

	mu      sync.Mutex
	last    <-chan struct{} // closed when all additions are done
	trouble error           // of the last Addition
	state   tiles.State
	recent  recent
	grown   chan struct{} // closed and replaced when the state is
}

// Open opens the log, or begins a new one in an empty directory. Every refusal says what to do.
func Open(ctx context.Context, c Config) (*Ledger, error) {
	if c.Dir == "" || c.Origin == "" || c.CheckpointInterval < 100*time.Millisecond || c.Log == nil {
		return nil, errors.New("ledger.Open: Dir, Origin, CheckpointInterval (at least 100 ms) and Log are required")
	}
	none := make(chan struct{})
	close(none)
	l := &Ledger{dir: c.Dir, logDir: filepath.Join(c.Dir, "log"), log: c.Log, last: none, grown: make(chan struct{}), signing: make(chan error, 1)}
	l.files = client.FileFetcher{Root: l.logDir}
	if err := l.acquire(); err != nil {
		return nil, err
	}
	if err := l.open(ctx, c); err != nil {
		return nil, errors.Join(err, l.lock.Close())
	}
	return l, nil
}

func (l *Ledger) open(ctx context.Context, c Config) (err error) {
	if l.signer, err = l.loadKey(c.Origin); err != nil {
		return err
	}
	if !tiles.Exists(l.logDir) {
		if err := tiles.Create(l.logDir); err != nil {
			return refuse("the log in %s cannot be begun: %w", l.logDir, err)
		}
	}
	signed, published, err := l.check(ctx)
	if err != nil {
		return err
	}
	if err := l.writeVerifier(); err != nil {
		return err
	}
	if l.writer, err = tiles.Open(l.logDir); err != nil {
		return refuse("the log in %s cannot be opened: if it is damaged, restore the directory from a backup: %w", l.logDir, err)
	}
	l.state = l.writer.State()
	if !published {
		if err := l.sign(l.state); err != nil {
			return refuse("the first checkpoint in %s cannot be written: %w", l.logDir, err)
		}
		signed = l.state.Size
	}
	// They live until Close, whatever becomes of ctx.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go func() { l.signing <- l.publish(life, signed, c.CheckpointInterval) }()
	l.cleaning.Go(func() { l.collect(life) })
	return nil
}

// Close waits for the checkpoint that covers the last record and lets go of the directory.
func (l *Ledger) Close() error {
	l.settle()
	l.stop()
	err := <-l.signing
	if err != nil {
		err = fmt.Errorf("signing the last checkpoint: %w", err)
	}
	l.cleaning.Wait()
	return errors.Join(err, l.lock.Close())
}

// ErrDisk is what Add's errors wrap when the disk has failed for another reason than that it is full. What was written then may seem
// to be there, and be lost with the next power cut, so it must not be built on: the process is to end, and another to begin with
// what is on the disk.
var ErrDisk = errors.New("the disk does not work (see the kernel log)")

// Addition is records on their way into the log.
type Addition struct {
	first uint64
	err   error
	done  chan struct{}
}

// Add has the records taken into the log, after those of the call before. It returns at once, so that the next ones can be made
// meanwhile; what was added must be waited for. There must be some, and they are the ledger's from now on.
func (l *Ledger) Add(records [][]byte) *Addition {
	a := &Addition{done: make(chan struct{})}
	l.mu.Lock()
	before := l.last
	l.last = a.done
	l.mu.Unlock()
	go func() {
		defer close(a.done)
		<-before
		a.first = l.writer.State().Size
		if err := l.writer.Append(records); err != nil {
			a.err = l.failed(err)
		} else {
			l.keep(a.first, records)
		}
		l.note(l.writer.State(), a.err)
	}()
	return a
}

// Done is closed when all of the records are in the log, on disk, or an error is known.
func (a *Addition) Done() <-chan struct{} { return a.done }

// Wait waits for Done and gives the position of the first record, which the others follow. An error says nothing about what was
// added: it comes for everything that is added until Refresh tells how far the log goes; Read tells what stands there. After
// ErrDisk nothing more is to be done with the log.
func (a *Addition) Wait() (first uint64, err error) {
	<-a.done
	return a.first, a.err
}

// settle waits for all additions.
func (l *Ledger) settle() {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	<-last
}

// failed says why records could not be added.
func (l *Ledger) failed(err error) error {
	switch {
	case errors.Is(err, tiles.ErrTooLarge):
		return fmt.Errorf("appending to the log in %s: %w", l.logDir, err)
	case errors.Is(err, tiles.ErrForeign):
		return fault.New(fault.Internal, "LOG_INCONSISTENT", "appending to the log in %s: %w", l.logDir, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.New(fault.Transient, "LOG_UNAVAILABLE", "appending to the log in %s: disk full: free space there: %w", l.logDir, err)
	}
	return fault.New(fault.Transient, "LOG_UNAVAILABLE", "appending to the log in %s: %w", l.logDir, fmt.Errorf("%w: %w", ErrDisk, err))
}

// keep keeps records that are on disk for those who follow the log.
func (l *Ledger) keep(first uint64, records [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recent.add(first, records)
}

// note remembers how the last Addition ended, and wakes those who wait for the log to grow.
func (l *Ledger) note(state tiles.State, trouble error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = trouble
	if state.Size > l.state.Size {
		l.state = state
		close(l.grown)
		l.grown = make(chan struct{})
	}
}

// Refresh finds out how far the log goes, which after a failed Add can be further than Size, so that more can be added.
func (l *Ledger) Refresh() (uint64, error) {
	l.settle()
	l.mu.Lock()
	trouble := l.trouble
	l.mu.Unlock()
	if trouble == nil {
		return l.Size(), nil
	}
	writer, err := tiles.Open(l.logDir)
	if err != nil {
		return 0, l.failed(err)
	}
	if size := writer.State().Size; size < l.Size() {
		return 0, fault.New(fault.Internal, "LOG_INCONSISTENT", "the log in %s had %d records and has %d now: does another program write to it?", l.logDir, l.Size(), size)
	}
	l.writer = writer
	l.note(writer.State(), trouble)
	return l.Size(), nil
}

// Size is the number of records.
func (l *Ledger) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Size
}

// Await waits until the log has more than size records and gives how many.
func (l *Ledger) Await(ctx context.Context, size uint64) (uint64, error) {
	for {
		l.mu.Lock()
		now, grown := l.state.Size, l.grown
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
		l.mu.Lock()
		record := l.recent.get(p)
		l.mu.Unlock()
		if record == nil && p/width != index {
			var err error
			if bundle, err = client.GetEntryBundle(ctx, l.files.ReadEntryBundle, p/width, size); err != nil {
				return l.damaged("reading position %d: %w", p, err)
			}
			index = p / width
		}
		if record == nil {
			if p%width >= uint64(len(bundle.Entries)) {
				return l.damaged("the entry bundle ends before position %d", p)
			}
			record = bundle.Entries[p%width]
		}
		if err := fn(p, record); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return ctx.Err()
}
