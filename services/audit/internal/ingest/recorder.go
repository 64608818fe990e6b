// Package ingest brings the facts of all services into the log, each once.
//
// It guarantees that a fact is acknowledged to JetStream only after its record is in the log on disk, that there is one record
// per event id for ever, and that this holds after a crash at any point. The log is the truth and the index follows it in whole
// blocks, at most store.MaxTail records behind: which events those tail records are of is known from the log itself, which is read
// from where the index ends before anything is consumed, and after anything that went wrong. What JetStream delivers again is
// found in the tail or in the index.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
)

const (
	readBatch  = 4096             // records that are read from the log at once
	indexBound = 30 * time.Second // for indexing at most store.MaxTail records
)

// Recorder adds records to log and index, each event once.
type Recorder struct {
	ledger *ledger.Ledger
	store  *store.Store
	log    *slog.Logger
	delay  prometheus.Histogram
	last   prometheus.Gauge

	mu      sync.Mutex // one call at a time
	unsure  bool       // the log may have records that are not in the tail
	lost    bool       // the index may have more than is known: the answer to a write was an error
	writing chan error // gets what became of the blocks that are being indexed; nil when none are
	count   int        // of the records in them, the first of the tail
	closed  bool

	indexing sync.WaitGroup

	// The tail is what is in the log and not yet known to be in the index. It is changed under both locks.
	look sync.Mutex
	from uint64               // position of its first record
	tail []record.Encoded     // without Data
	ids  map[uuid.UUID]uint64 // of its events, and their positions
}

// NewRecorder makes sure that log and index belong together, refusing with what to do if they do not, and brings the index up
// to the end of the log.
func NewRecorder(ctx context.Context, l *ledger.Ledger, s *store.Store, log *slog.Logger) (*Recorder, error) {
	if err := s.Adopt(ctx, l.Verifier()); err != nil {
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	r := &Recorder{
		ledger: l, store: s, log: log, ids: map[uuid.UUID]uint64{},
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sallyport_audit_record_delay_seconds", Help: "Time from an event to its record being in the log.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_audit_last_record_delay_seconds", Help: "The same of the last record alone.",
		}),
	}
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	if r.from, err = s.Next(ctx); err != nil {
		return nil, err
	}
	return r, r.catchUp(ctx)
}

// Close waits for what is being indexed and notes how long the log is. Record must not be called again.
func (r *Recorder) Close() error {
	defer r.indexing.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), indexBound)
	defer cancel()
	if err := r.settle(ctx); err != nil || len(r.tail) == 0 {
		return err
	}
	last := r.tail[len(r.tail)-1]
	return r.store.SetTip(ctx, store.Tip{Size: r.from + uint64(len(r.tail)), EventID: last.Head.ID})
}

// Record makes sure that each of the records is in the log, on disk. Records of events that have one are left out. After an
// error some of them may be in the log; recording them again is right.
func (r *Recorder) Record(ctx context.Context, records []record.Encoded) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for some := range slices.Chunk(records, batchEvents) { // what one message can hold, in tiny events, would overfill the tail
		if err := r.record(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

func (r *Recorder) record(ctx context.Context, records []record.Encoded) error {
	if r.unsure {
		if err := r.catchUp(ctx); err != nil {
			return err
		}
	}
	if err := r.makeRoom(ctx, len(records)); err != nil {
		return err
	}
	fresh, err := r.fresh(ctx, records)
	if err != nil || len(fresh) == 0 {
		return err
	}
	data := make([][]byte, len(fresh))
	for i, one := range fresh {
		data[i] = one.Data
	}
	r.unsure = true // until all of them are in the tail
	positions, err := r.ledger.Append(ctx, data)
	if err != nil {
		return err
	}
	crash.At(crash.Appended)
	inOrder := make([]record.Encoded, len(fresh))
	end := r.from + uint64(len(r.tail))
	for i, p := range positions { // each once, and the next ones: that the ledger makes sure of
		if p-end >= uint64(len(inOrder)) {
			return fault.New(fault.Internal, "LOG_INCONSISTENT", "the log in %s gave position %d where %d ends: does another program write to it?", r.ledger.Dir(), p, end)
		}
		inOrder[p-end] = fresh[i]
	}
	r.extend(inOrder)
	r.unsure = false
	r.measure(fresh)
	if r.writing != nil && len(r.writing) == 0 {
		return nil // not done yet: the tail may grow meanwhile
	}
	if err := r.index(ctx); err != nil && ctx.Err() == nil {
		r.log.WarnContext(ctx, "records that are in the log cannot be indexed yet", "records", len(r.tail), "error", err)
	}
	return nil
}

// Metrics say how far records are behind their events.
func (r *Recorder) Metrics() []prometheus.Collector { return []prometheus.Collector{r.delay, r.last} }

func (r *Recorder) measure(recorded []record.Encoded) {
	now := time.Now()
	for _, rec := range recorded {
		delay := max(now.Sub(rec.Head.Time).Seconds(), 0) // the clock is another service's
		r.delay.Observe(delay)
		r.last.Set(delay)
	}
}

// untrusted says that the log's disk has failed: this process must not go on with it.
func untrusted(err error) bool { return errors.Is(err, ledger.ErrDisk) }

// fresh are the records whose events have none yet, each event once.
func (r *Recorder) fresh(ctx context.Context, records []record.Encoded) ([]record.Encoded, error) {
	ids := make([]uuid.UUID, len(records))
	for i, one := range records {
		ids[i] = one.ID
	}
	known, next, err := r.store.Positions(ctx, ids)
	if err != nil {
		return nil, err
	}
	if next != r.from && next != r.from+uint64(r.count) {
		return nil, r.elsewhere(next)
	}
	fresh := make([]record.Encoded, 0, len(records))
	for i, one := range records {
		_, old := known[ids[i]]
		if _, recent := r.ids[ids[i]]; !old && !recent {
			known[ids[i]] = 0
			fresh = append(fresh, one)
		}
	}
	return fresh, nil
}

// Positions gives where those of the events stand that have a record.
func (r *Recorder) Positions(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]uint64, error) {
	recent := map[uuid.UUID]uint64{}
	r.look.Lock() // before the index is asked, because records go from here to there
	for _, id := range ids {
		if p, ok := r.ids[id]; ok {
			recent[id] = p
		}
	}
	r.look.Unlock()
	found, _, err := r.store.Positions(ctx, ids)
	if err != nil {
		return nil, err
	}
	for id, p := range recent {
		found[id] = p
	}
	return found, nil
}

// extend adds records to the tail that are in the log behind it.
func (r *Recorder) extend(records []record.Encoded) {
	r.look.Lock()
	defer r.look.Unlock()
	for _, one := range records {
		r.ids[one.ID] = r.from + uint64(len(r.tail))
		one.Data = nil
		r.tail = append(r.tail, one)
	}
}

// index begins to index the whole blocks of the tail, when those before are done.
func (r *Recorder) index(ctx context.Context) error {
	if len(r.tail)-r.count < store.BlockSize && !r.lost {
		return nil
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	if r.count = len(r.tail) / store.BlockSize * store.BlockSize; r.count == 0 {
		return nil
	}
	first, blocks, done := r.from, r.tail[:r.count], make(chan error, 1)
	r.writing = done
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), indexBound)
	r.indexing.Go(func() {
		defer cancel()
		err := r.store.Add(bound, first, blocks)
		if done <- err; err == nil {
			r.indexRest(context.WithoutCancel(ctx), done)
		}
	})
	return nil
}

// indexRest goes on with what became whole blocks while the index was written: there may be no call of Record for a while.
func (r *Recorder) indexRest(ctx context.Context, done chan error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writing != done || r.closed {
		return
	}
	if err := r.index(ctx); err != nil {
		r.log.WarnContext(ctx, "records that are in the log cannot be indexed yet", "records", len(r.tail), "error", err)
	}
}

// makeRoom waits until the tail may have so many records more. While the index cannot be written, it never may.
func (r *Recorder) makeRoom(ctx context.Context, records int) error {
	for r.lost || len(r.tail)+records > store.MaxTail {
		if r.writing == nil {
			if err := r.index(ctx); err != nil {
				return err
			}
		}
		if err := r.settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// settle waits for what is being indexed, and takes it out of the tail.
func (r *Recorder) settle(ctx context.Context) error {
	if r.writing != nil {
		select {
		case err := <-r.writing:
			if r.writing = nil; err != nil {
				r.count, r.lost = 0, true
				return err
			}
			r.drop(r.count)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if !r.lost {
		return nil
	}
	next, err := r.store.Next(ctx)
	if err != nil {
		return err
	}
	if next < r.from || next > r.from+uint64(len(r.tail)) {
		return r.elsewhere(next)
	}
	tip, err := r.store.Tip(ctx)
	if err != nil {
		return err
	}
	// Blocks of another's are as long as ours.
	if n := tip.Size - r.from; n > 0 && n <= uint64(len(r.tail)) && r.tail[n-1].Head.ID != tip.EventID {
		return r.elsewhere(next)
	}
	r.drop(int(next - r.from))
	r.lost = false
	return nil
}

// drop takes what is in the index out of the tail.
func (r *Recorder) drop(count int) {
	r.look.Lock()
	defer r.look.Unlock()
	for _, one := range r.tail[:count] {
		delete(r.ids, one.ID)
	}
	r.from += uint64(count)
	r.tail = append([]record.Encoded(nil), r.tail[count:]...)
	r.count = 0
}

func (r *Recorder) elsewhere(next uint64) error {
	return refuse("the index goes to position %d, not %d: does another process index its log into this database? Give each log a database of its own", next, r.from)
}

// catchUp brings the tail, and the index with it, up to the end of the log: what an earlier call, or an earlier process, left
// behind.
func (r *Recorder) catchUp(ctx context.Context) error {
	size, err := r.ledger.Refresh(ctx)
	if err != nil {
		return err
	}
	if next := r.from + uint64(len(r.tail)); size >= next+store.BlockSize {
		r.log.InfoContext(ctx, "catching the index up from the log", "from", next, "records", size-next)
	}
	if err := r.readOn(ctx, size); err != nil {
		return fmt.Errorf("catching the index up from the log: %w", err)
	}
	r.unsure = false
	return nil
}

// readOn extends the tail with the log's records up to position size, and indexes them meanwhile.
func (r *Recorder) readOn(ctx context.Context, size uint64) error {
	for next := r.from + uint64(len(r.tail)); next < size; next += readBatch {
		if err := r.index(ctx); err != nil {
			return err
		}
		records := make([]record.Encoded, 0, readBatch)
		err := r.ledger.Read(ctx, next, min(next+readBatch, size), func(position uint64, data []byte) error {
			one, err := r.parse(position, data)
			records = append(records, one)
			return err
		})
		if err != nil {
			return err
		}
		r.extend(records)
	}
	if err := r.index(ctx); err != nil {
		return err
	}
	return r.settle(ctx)
}

// check refuses an index of another log, or of more than the log has.
func (r *Recorder) check(ctx context.Context) error {
	size, err := r.ledger.Refresh(ctx)
	if err != nil {
		return err
	}
	tip, err := r.store.Tip(ctx)
	if err != nil {
		return err
	}
	if tip.Size > size {
		return refuse("the index knows %d records, the log in %s has %d: records are missing from the log; restore its directory from a newer backup, or, if they are lost for good, give the log an empty database", tip.Size, r.ledger.Dir(), size)
	}
	if tip.Size == 0 {
		return nil
	}
	return r.ledger.Read(ctx, tip.Size-1, tip.Size, func(position uint64, data []byte) error {
		one, err := r.parse(position, data)
		if err == nil && one.Head.ID != tip.EventID {
			return refuse("at position %d the log in %s has event %s, the index %s: the log is not the one that was indexed; restore its directory from a backup, or, if this log is right, give it an empty database", position, r.ledger.Dir(), one.Head.ID, tip.EventID)
		}
		return err
	})
}

func refuse(format string, args ...any) error {
	return fault.New(fault.Precondition, "LOG_REFUSED", format, args...)
}

func (r *Recorder) parse(position uint64, data []byte) (record.Encoded, error) {
	one, err := record.Parse(data)
	if err != nil {
		return one, fault.New(fault.Internal, "LOG_DAMAGED", "position %d of the log in %s is not a record: %w", position, r.ledger.Dir(), err)
	}
	return one, nil
}
