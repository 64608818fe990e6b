// Package ingest brings the facts of all services into the log, each once.
//
// It guarantees that a fact is acknowledged to JetStream only after its record is in the log on disk, that there is one record
// per event id for ever, and that this holds after a crash at any point. The log is the truth and the index follows it in whole
// blocks, at most store.MaxTail records behind: which events those tail records are of is known from the log itself, which is read
// from where the index ends before anything is consumed, and after anything that went wrong. What JetStream delivers again is
// found in the tail, in the index or among the records that are on their way.
//
// So that the log never waits, records set out while those before are on their way to the disk, and in whole batches of the log's
// where more are waiting.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
	flights []*Flight  // the oldest first
	unsure  bool       // the log may have records that are neither in the tail nor in flight
	lost    bool       // the index may have more than is known: the answer to a write was an error
	writing chan error // gets what became of the blocks that are being indexed; nil when none are
	count   int        // of the records in them, the first of the tail
	closed  bool

	indexing sync.WaitGroup

	// The tail is what is in the log and not yet known to be in the index. It is changed under both locks.
	look sync.Mutex
	from uint64               // position of its first record
	tail []record.Encoded     // without Data
	ids  map[uuid.UUID]uint64 // of its events, and their positions; behind the tail, of events in flight
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
			Name: "sallyport_audit_last_record_delay_seconds", Help: "Time from the event of the newest record to that record being in the log.",
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
	if len(r.flights) > 0 {
		r.land()
	}
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
	for some := range slices.Chunk(records, batchEvents) { // what one message can hold, in tiny events, would overfill the tail
		f, err := r.Begin(ctx, some)
		if err != nil {
			return err
		}
		if err := r.Finish(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// Flight is records that Record would have recorded, on their way.
type Flight struct {
	fresh []record.Encoded
	added *ledger.Addition // nil when all of them were recorded before
	end   bool             // it is known what became of it
	err   error
}

// Done is closed when Finish will not have to wait.
func (f *Flight) Done() <-chan struct{} {
	if f.added == nil {
		return closed
	}
	return f.added.Done()
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Begin is the first half of Record: it returns when most of the records still wait for the disk. More than twice batchEvents are
// left to Record. Flights must be finished, in the order in which they began.
func (r *Recorder) Begin(ctx context.Context, records []record.Encoded) (*Flight, error) {
	if len(records) > 2*batchEvents {
		return nil, errAgain
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsure {
		if err := r.catchUp(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.makeRoom(ctx, r.aloft()+len(records)); err != nil {
		return nil, err
	}
	fresh, err := r.fresh(ctx, records)
	if err != nil {
		return nil, err
	}
	f := &Flight{fresh: fresh}
	if len(fresh) > 0 {
		data := make([][]byte, len(fresh))
		for i, one := range fresh {
			data[i] = one.Data
		}
		f.added = r.ledger.Add(data)
	}
	r.flights = append(r.flights, f)
	return f, nil
}

// Landed reports that a flight has ended with an error, together with one before it: finish it before the next begins, which would
// land with it otherwise.
func (r *Recorder) Landed(f *Flight) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f.end && f.err != nil
}

// End is the position behind all records that are in the log or in flight.
func (r *Recorder) End() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.from + uint64(len(r.tail)+r.aloft())
}

// Finish is the second half. After an error all flights that had begun have landed, and what of them is in the log is found
// before the next begins.
func (r *Recorder) Finish(ctx context.Context, f *Flight) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !f.end:
		r.arrive(f)
	case f.err != nil && len(r.flights) > 0: // it landed with one before it, and others have begun since
		r.land()
	}
	if f.err != nil || f.added == nil {
		return f.err
	}
	r.measure(f.fresh)
	if r.writing != nil && len(r.writing) == 0 {
		return nil // not done yet: the tail may grow meanwhile
	}
	if err := r.index(ctx); err != nil && ctx.Err() == nil {
		r.log.WarnContext(ctx, "records that are in the log cannot be indexed yet", "records", len(r.tail), "error", err)
	}
	return nil
}

// arrive waits for the oldest flight and extends the tail with it.
func (r *Recorder) arrive(f *Flight) {
	r.flights = r.flights[1:]
	f.end = true
	if f.added == nil {
		return
	}
	end := r.from + uint64(len(r.tail))
	first, err := f.added.Wait()
	if err == nil && first != end {
		err = fault.New(fault.Internal, "LOG_INCONSISTENT", "the log in %s gave position %d where %d ends: does another program write to it?", r.ledger.Dir(), first, end)
	}
	if f.err = err; err != nil {
		r.land()
		return
	}
	crash.At(crash.Appended)
	r.extend(f.fresh)
}

// land waits for all flights. What became of them has to be read from the log.
func (r *Recorder) land() {
	r.unsure = true
	for _, f := range r.flights {
		f.end = true
		if f.added != nil {
			<-f.added.Done()
			f.err = errAgain
		}
	}
	r.flights = nil
	r.look.Lock()
	defer r.look.Unlock()
	end := r.from + uint64(len(r.tail))
	maps.DeleteFunc(r.ids, func(_ uuid.UUID, p uint64) bool { return p >= end })
}

// errAgain says that records have to be recorded by Record: they are too many for one flight, or the flight before theirs failed,
// after which they are in the log or not.
var errAgain = errors.New("to be recorded again")

// aloft is how many records are in flight.
func (r *Recorder) aloft() int {
	n := 0
	for _, f := range r.flights {
		n += len(f.fresh)
	}
	return n
}

// Metrics say how far records are behind their events.
func (r *Recorder) Metrics() []prometheus.Collector { return []prometheus.Collector{r.delay, r.last} }

func (r *Recorder) measure(recorded []record.Encoded) {
	now := time.Now()
	for _, rec := range recorded {
		delay := max(now.Sub(rec.Head.Time).Seconds(), 0) // the clock is another service's
		r.delay.Observe(delay)
	}
	r.last.Set(max(now.Sub(recorded[len(recorded)-1].Head.Time).Seconds(), 0))
}

// untrusted says that the log's disk has failed: this process must not go on with it.
func untrusted(err error) bool { return errors.Is(err, ledger.ErrDisk) }

// fresh are the records whose events have none yet, each event once. They are expected at the next positions.
func (r *Recorder) fresh(ctx context.Context, records []record.Encoded) ([]record.Encoded, error) {
	ids := make([]uuid.UUID, len(records))
	for i, one := range records {
		ids[i] = one.ID
	}
	known, next, err := r.store.Positions(ctx, ids)
	if err != nil {
		return nil, err
	}
	if next < r.from {
		return nil, r.setBack(ctx)
	}
	if next != r.from && next != r.from+uint64(r.count) {
		return nil, r.elsewhere(next)
	}
	r.look.Lock()
	defer r.look.Unlock()
	at := r.from + uint64(len(r.tail)+r.aloft())
	fresh, all := records, true
	for i, one := range records {
		_, old := known[one.ID]
		_, recent := r.ids[one.ID]
		if old || recent {
			if all {
				fresh, all = append(make([]record.Encoded, 0, len(records)), records[:i]...), false
			}
			continue
		}
		r.ids[one.ID] = at
		at++
		if !all {
			fresh = append(fresh, one)
		}
	}
	return fresh, nil
}

// Positions gives where those of the events stand that have a record.
func (r *Recorder) Positions(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]uint64, error) {
	recent := map[uuid.UUID]uint64{}
	r.look.Lock() // before the index is asked, because records go from here to there
	end := r.from + uint64(len(r.tail))
	for _, id := range ids {
		if p, ok := r.ids[id]; ok && p < end {
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
	if next < r.from {
		return r.setBack(ctx)
	}
	if next > r.from+uint64(len(r.tail)) {
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
	rest := copy(r.tail, r.tail[count:])
	clear(r.tail[rest:])
	r.tail = r.tail[:rest]
	r.count = 0
}

// setBack begins again where the index ends, which knows less than it did: its database failed over to a standby, or was restored. What it
// lacks is read from the log before anything is recorded. It gives the error of what was to be done.
func (r *Recorder) setBack(ctx context.Context) error {
	if r.writing != nil {
		select {
		case err := <-r.writing: // or it could add to what is found here
			r.writing = nil
			if err != nil {
				r.log.InfoContext(ctx, "records that are in the log were not indexed", "records", r.count, "error", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.land()
	if err := r.store.Adopt(ctx, r.ledger.Verifier()); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	next, err := r.store.Next(ctx)
	if err != nil {
		return err
	}
	r.log.WarnContext(ctx, "the index knows less than it did: its database failed over to a standby that was behind, or was restored. What it lacks is read from the log", "from", next, "known", r.from)
	r.look.Lock()
	defer r.look.Unlock()
	clear(r.ids)
	r.from, r.tail, r.count, r.lost = next, nil, 0, false
	return errAgain
}

func (r *Recorder) elsewhere(next uint64) error {
	return refuse("the index goes to position %d, not %d: does another process index its log into this database? Give each log a database of its own", next, r.from)
}

// catchUp brings the tail, and the index with it, up to the end of the log: what an earlier call, or an earlier process, left
// behind.
func (r *Recorder) catchUp(ctx context.Context) error {
	size, err := r.ledger.Refresh()
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
	size, err := r.ledger.Refresh()
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
