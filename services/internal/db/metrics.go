package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// meters count what a database does.
type meters struct {
	duration *prometheus.HistogramVec
	failures *prometheus.CounterVec
	group    prometheus.Histogram
}

const (
	kindRead  = "read"
	kindWrite = "write"
)

func newMeters() *meters {
	m := &meters{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sallyport_store_transaction_duration_seconds", Help: "Time of a transaction, including the wait for its turn and for the disk.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 10},
		}, []string{"kind"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_store_failures_total", Help: "Transactions that failed because the storage was full, broken or away.",
		}, []string{"kind"}),
		group: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sallyport_store_commit_group_transactions", Help: "Transactions that shared one commit and its fsync (SQLite only).",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, maxGroup},
		}),
	}
	for _, kind := range []string{kindRead, kindWrite} { // shown from the start
		m.duration.WithLabelValues(kind)
		m.failures.WithLabelValues(kind)
	}
	return m
}

// Metrics are what is counted of the database.
func (d *DB) Metrics() []prometheus.Collector {
	return []prometheus.Collector{d.meters.duration, d.meters.failures, d.meters.group}
}

// ended counts a transaction.
func (m *meters) ended(kind string, begun time.Time, err error) {
	m.duration.WithLabelValues(kind).Observe(time.Since(begun).Seconds())
	var f *fault.Error
	if errors.As(err, &f) && (f.Reason == reasonUnavailable || f.Reason == reasonCorrupt) {
		m.failures.WithLabelValues(kind).Inc()
	}
}

// Check finds out whether the database answers and takes writes. It changes nothing and costs no fsync.
func (d *DB) Check(ctx context.Context) error {
	ctx, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer d.open.leave()
	if d.writer != nil {
		if err := d.writer.probe(ctx); err != nil {
			return d.classify(ctx, fmt.Errorf("beginning a write: %w", err))
		}
		var one int
		return d.classify(ctx, d.reads.QueryRowContext(ctx, `SELECT count(*) FROM `+metaTable).Scan(&one))
	}
	var standby string
	if err := d.reads.QueryRowContext(ctx, `SHOW transaction_read_only`).Scan(&standby); err != nil {
		return d.classify(ctx, err)
	}
	if standby != "off" {
		return unavailable("%s is read-only: it is a standby, or was made so", d.name)
	}
	return nil
}
