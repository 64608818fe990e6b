// Package ingest brings the facts of all services into the log, each once.
//
// It guarantees that a fact is acknowledged to JetStream only after its record is in the log on disk, that there is one record
// per event id for ever, and that this holds after a crash at any point: the log is the truth, the index is caught up from it
// before anything is consumed and after anything that went wrong, and what JetStream delivers again is found in the index.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
)

// catchUpBatch is how many records are read from the log and indexed at once.
const catchUpBatch = 4096

// Recorder adds records to log and index, each event once. It keeps no state of its own: where log and index end is looked up
// every time.
type Recorder struct {
	ledger *ledger.Ledger
	store  *store.Store
	log    *slog.Logger
	mu     sync.Mutex // one call at a time

	delay prometheus.Histogram
	last  prometheus.Gauge
}

// NewRecorder makes sure that log and index belong together, refusing with what to do if they do not, and brings the index up
// to the end of the log.
func NewRecorder(ctx context.Context, l *ledger.Ledger, s *store.Store, log *slog.Logger) (*Recorder, error) {
	if err := s.Adopt(ctx, l.Verifier()); err != nil {
		return nil, fmt.Errorf("opening the index: %w", err)
	}
	r := &Recorder{
		ledger: l, store: s, log: log,
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sallyport_audit_record_delay_seconds", Help: "Time from an event to its record being in the log and indexed.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sallyport_audit_last_record_delay_seconds", Help: "The same of the last record alone.",
		}),
	}
	return r, r.catchUp(ctx)
}

// Record makes sure that each of the records is in the log, on disk, and in the index. Records of events that have one are left
// out. After an error some of them may be in the log; recording them again is right.
func (r *Recorder) Record(ctx context.Context, records []record.Encoded) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.catchUp(ctx); err != nil {
		return err
	}
	fresh, err := r.fresh(ctx, records)
	if err != nil || len(fresh) == 0 {
		return err
	}
	encoded := make([][]byte, len(fresh))
	for i, rec := range fresh {
		encoded[i] = rec.Data
	}
	positions, err := r.ledger.Append(ctx, encoded)
	if err != nil {
		return err
	}
	crash.At(crash.Appended)
	entries := make([]store.Entry, len(fresh))
	for i, rec := range fresh {
		entries[i] = store.Entry{Position: positions[i], Record: rec.Head}
	}
	if err := r.index(ctx, entries); err != nil {
		return err
	}
	r.measure(fresh)
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
	ids := make([]string, len(records))
	for i, rec := range records {
		ids[i] = rec.Head.ID
	}
	seen, err := r.store.Known(ctx, ids)
	if err != nil {
		return nil, err
	}
	var fresh []record.Encoded
	for _, rec := range records {
		if !seen[rec.Head.ID] {
			seen[rec.Head.ID] = true
			fresh = append(fresh, rec)
		}
	}
	return fresh, nil
}

// catchUp makes sure that the index is of this log and indexes what an earlier call, or an earlier process, left behind.
func (r *Recorder) catchUp(ctx context.Context) error {
	size, err := r.ledger.Refresh(ctx)
	if err != nil {
		return err
	}
	tip, err := r.store.Tip(ctx)
	if err != nil {
		return err
	}
	if err := r.check(ctx, tip, size); err != nil {
		return err
	}
	if tip.Next < size {
		r.log.InfoContext(ctx, "catching the index up from the log", "from", tip.Next, "records", size-tip.Next)
	}
	for from := tip.Next; from < size; from += catchUpBatch {
		if err := r.indexFromLog(ctx, from, min(from+catchUpBatch, size)); err != nil {
			return fmt.Errorf("catching the index up from the log: %w", err)
		}
	}
	return nil
}

// check refuses an index of another log, or of more than the log has.
func (r *Recorder) check(ctx context.Context, tip store.Tip, size uint64) error {
	if tip.Next > size {
		return refuse("the index knows %d records, the log in %s has %d: records are missing from the log; restore its directory from a newer backup, or, if they are lost for good, give the log an empty database", tip.Next, r.ledger.Dir(), size)
	}
	if tip.Next == 0 {
		return nil
	}
	return r.ledger.Read(ctx, tip.Next-1, tip.Next, func(position uint64, data []byte) error {
		rec, err := r.parse(position, data)
		if err == nil && rec.ID != tip.EventID {
			return refuse("at position %d the log in %s has event %s, the index %s: the log is not the one that was indexed; restore its directory from a backup, or, if this log is right, give it an empty database", position, r.ledger.Dir(), rec.ID, tip.EventID)
		}
		return err
	})
}

func refuse(format string, args ...any) error {
	return fault.New(fault.Precondition, "LOG_REFUSED", format, args...)
}

func (r *Recorder) parse(position uint64, data []byte) (auditlog.Record, error) {
	rec, err := auditlog.ParseRecord(data)
	if err != nil {
		return rec, fault.New(fault.Internal, "LOG_DAMAGED", "position %d of the log in %s is not a record: %w", position, r.ledger.Dir(), err)
	}
	return rec, nil
}

func (r *Recorder) indexFromLog(ctx context.Context, from, to uint64) error {
	entries := make([]store.Entry, 0, to-from)
	err := r.ledger.Read(ctx, from, to, func(position uint64, data []byte) error {
		rec, err := r.parse(position, data)
		entries = append(entries, store.Entry{Position: position, Record: rec})
		return err
	})
	if err != nil {
		return err
	}
	return r.index(ctx, entries)
}

// index adds records that are in the log and not in the index.
func (r *Recorder) index(ctx context.Context, entries []store.Entry) error {
	added, err := r.store.Add(ctx, entries)
	if err == nil && added != len(entries) {
		// No reason to stop recording, but one to look: the log has an event twice, which this package rules out, or another
		// process indexes.
		r.log.ErrorContext(ctx, "records were in the index already", "from", entries[0].Position, "records", len(entries), "new", added)
	}
	return err
}
