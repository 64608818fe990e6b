package monitor

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/identity"
)

var (
	svidDesc = prometheus.NewDesc("sallyport_svid_expiry_timestamp_seconds", "When the service's own SVID runs out.", nil, nil)
	rootDesc = prometheus.NewDesc("sallyport_svid_authority_expiry_timestamp_seconds", "When the first CA certificate runs out of those that the service's own SVID leads to.", nil, nil)
)

// Identity checks the service's own SVID and shows how long it and the CA behind it last.
func (s *Service) Identity(src identity.Source, now func() time.Time) error {
	if s == nil {
		return nil
	}
	if now == nil {
		now = time.Now
	}
	s.Check(Check{
		Name: "svid", Fails: "the service's own SVID is not valid now: nobody will talk to it; see to what issues it (SPIRE, files) and to the clock",
		Test: func(context.Context) error { _, _, err := ends(src, now()); return err },
	})
	return s.Survey(Survey{Name: "svid", Metrics: []*prometheus.Desc{svidDesc, rootDesc}, Read: func(_ context.Context, sheet *Sheet) error {
		svid, root, err := ends(src, now())
		sheet.Time(svidDesc, svid)
		sheet.Time(rootDesc, root)
		if !svid.IsZero() {
			return nil // expired is what the metric is there to show
		}
		return err
	}})
}

// ends gives when the SVID ends, and the first of the CA certificates that it leads to.
func ends(src identity.Source, now time.Time) (svid, ca time.Time, err error) {
	own, err := src.GetX509SVID()
	if err != nil {
		return svid, ca, fmt.Errorf("reading the own SVID: %w", err)
	}
	leaf := own.Certificates[0]
	svid = leaf.NotAfter
	bundle, err := src.GetX509BundleForTrustDomain(own.ID.TrustDomain())
	if err != nil {
		return svid, ca, fmt.Errorf("reading the trust bundle: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range bundle.X509Authorities() {
		roots.AddCert(c)
	}
	for _, c := range own.Certificates[1:] {
		between.AddCert(c)
	}
	// Judged in the middle of the SVID's own life, so that the CA is found even when the SVID has run out.
	at := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return svid, ca, fmt.Errorf("the own SVID does not lead to the trust bundle: %w", err)
	}
	for _, c := range chains[0][1:] {
		if ca.IsZero() || c.NotAfter.Before(ca) {
			ca = c.NotAfter
		}
	}
	switch {
	case now.After(svid):
		err = fmt.Errorf("the own SVID expired at %s", svid.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		err = fmt.Errorf("the own SVID is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case now.After(ca):
		err = errors.New("the CA certificate behind the own SVID has expired")
	}
	return svid, ca, err
}
