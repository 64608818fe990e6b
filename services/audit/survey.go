package audit

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
)

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("sallyport_audit_"+name, help, nil, nil)
}

var (
	records          = desc("records_total", "Records in the log.")
	checkpointBehind = desc("checkpoint_behind_records", "Records that no signed checkpoint covers yet.")
	checkpointTime   = desc("checkpoint_timestamp_seconds", "When the newest checkpoint was signed; it does not change while no records come.")
	indexBehind      = desc("index_behind_records", "Records that are not in the search index yet; a search reads them from the log itself. Up to 255 at rest, some thousands under load.")
	feedBehind       = desc("feed_behind_records", "Records that are not yet published in the live feed.")
)

// show lets the monitor show the log, and checks that it can be written.
func show(m *monitor.Service, l *ledger.Ledger, index *store.Store) error {
	m.Check(monitor.Check{Name: "ledger", Fails: "the audit log takes no records: they wait at the broker; the log says why", Test: l.Writable})
	metrics := []*prometheus.Desc{records, checkpointBehind, checkpointTime, indexBehind, feedBehind}
	return m.Survey(monitor.Survey{Name: "log", Metrics: metrics, Read: func(ctx context.Context, sheet *monitor.Sheet) error {
		checkpoint, err := l.Checkpoint(ctx)
		if err != nil {
			return err
		}
		at, err := l.CheckpointTime()
		if err != nil {
			return err
		}
		next, err := index.Next(ctx)
		if err != nil {
			return err
		}
		published, err := index.Published(ctx)
		if err != nil {
			return fmt.Errorf("surveying the log: %w", err)
		}
		size := l.Size() // last, so that nothing is ahead of it
		behind := func(reached uint64) float64 { return float64(size - min(reached, size)) }
		sheet.Counter(records, float64(size))
		sheet.Gauge(checkpointBehind, behind(checkpoint.Size))
		sheet.Time(checkpointTime, at)
		sheet.Gauge(indexBehind, behind(next))
		sheet.Gauge(feedBehind, behind(published))
		return nil
	}})
}
