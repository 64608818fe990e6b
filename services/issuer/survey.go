package issuer

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sallyport_issuer_"+name, help, labels, nil)
}

var (
	open    = desc("requests_open", "Requests that have not ended, by state.", "state")
	oldest  = desc("request_oldest_age_seconds", "Time since the oldest request in this state was submitted; 0 when there is none.", "state")
	trouble = desc("authority_trouble", "1 while the authority cannot be used.", "authority")
	crlEnds = desc("crl_next_update_timestamp_seconds", "When the first of an internal authority's CRLs ends; if one was never made, when the authority was made.", "authority")
	ends    = desc("authority_expiry_timestamp_seconds", "When the first of an authority's CA certificates ends, where they are known.", "authority")
)

// underWay are the states in which a request is not over.
var underWay = []issuance.State{issuance.Accepted, issuance.Ordering, issuance.Ordered, issuance.Authorized, issuance.Finalizing}

// authorityFailures counts what authorities answered with instead of progress. Authorities are as many as operators made, reasons as
// many as docs/errors.md has.
func authorityFailures() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_issuer_authority_failures_total", Help: "Steps at an authority that failed, and orders that ended without a certificate, by reason.",
	}, []string{"authority", "reason"})
}

// failed counts into c.
func failed(c *prometheus.CounterVec) func(string, error) {
	return func(authority string, err error) { c.WithLabelValues(authority, fault.Of(err).Reason).Inc() }
}

// show lets the monitor show requests and authorities.
func (s *Service) show(m *monitor.Service, failures prometheus.Collector, now func() time.Time) error {
	if err := m.Register(failures); err != nil {
		return err
	}
	return m.Survey(monitor.Survey{Name: "requests", Metrics: []*prometheus.Desc{open, oldest, trouble, ends, crlEnds}, Read: func(ctx context.Context, sheet *monitor.Sheet) error {
		v, err := s.store.Survey(ctx)
		if err != nil {
			return fmt.Errorf("surveying the issuer: %w", err)
		}
		for _, state := range underWay {
			age := 0.0
			if since := v.Since[state]; !since.IsZero() {
				age = max(now().Sub(since).Seconds(), 0)
			}
			sheet.Gauge(open, float64(v.Open[state]), string(state))
			sheet.Gauge(oldest, age, string(state))
		}
		for _, a := range v.Authorities {
			bad := 0.0
			if a.Trouble {
				bad = 1
			}
			sheet.Gauge(trouble, bad, a.Name)
			sheet.Time(ends, a.Ends, a.Name)
			sheet.Time(crlEnds, a.CRLEnds, a.Name)
		}
		return nil
	}})
}
