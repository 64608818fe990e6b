package inventory

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sallyport_inventory_"+name, help, labels, nil)
}

var (
	findings = desc("findings_open", "Open findings by rule and severity.", "rule", "severity")
	overdue  = desc("overdue_oldest_age_seconds", "How long the oldest open finding of the rule overdue has been open; 0 when none is.")
	served   = desc("certificates_served", "Certificates that some listener serves.")
	present  = desc("certificates_present", "Certificates that were seen somewhere or are assigned to a target.")
	ends     = desc("served_first_expiry_timestamp_seconds", "When the first of the served certificates ends, or ended.")
	behind   = desc("judgement_behind_seconds", "How long the most overdue judgement is past its time; 0 when none is. It grows when the watch has stopped.")
)

// show lets the monitor show what was found.
func show(m *monitor.Service, st *store.Store, now func() time.Time) error {
	return m.Survey(monitor.Survey{Name: "findings", Metrics: []*prometheus.Desc{findings, overdue, served, present, ends, behind}, Read: func(ctx context.Context, sheet *monitor.Sheet) error {
		v, err := st.Survey(ctx)
		if err != nil {
			return fmt.Errorf("surveying the inventory: %w", err)
		}
		since := func(t time.Time) float64 {
			if t.IsZero() {
				return 0
			}
			return max(now().Sub(t).Seconds(), 0)
		}
		for _, rule := range finding.Rules {
			for _, severity := range finding.Severities {
				sheet.Gauge(findings, float64(v.Open[store.Found{Rule: rule, Severity: severity}]), string(rule), severity.String())
			}
		}
		sheet.Gauge(overdue, since(v.OverdueSince))
		sheet.Gauge(served, float64(v.Served))
		sheet.Gauge(present, float64(v.Present))
		sheet.Time(ends, v.ServedEnds)
		sheet.Gauge(behind, since(v.JudgedUntil))
		return nil
	}})
}
