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
	svidDesc = prometheus.NewDesc("sallyport_svid_expiry_timestamp_seconds", "When the service's own SVID ends.", nil, nil)
	lifeDesc = prometheus.NewDesc("sallyport_svid_lifetime_seconds", "Whole life of the service's own SVID.", nil, nil)
	caDesc   = prometheus.NewDesc("sallyport_svid_authority_expiry_timestamp_seconds", "When the CA certificate behind the service's own SVID ends; of several, the first.", nil, nil)
	caLife   = prometheus.NewDesc("sallyport_svid_authority_lifetime_seconds", "Whole life of that CA certificate.", nil, nil)
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
		Test: func(context.Context) error { _, _, err := behind(src, now()); return err },
	})
	metrics := []*prometheus.Desc{svidDesc, lifeDesc, caDesc, caLife}
	return s.Survey(Survey{Name: "svid", Metrics: metrics, Read: func(_ context.Context, sheet *Sheet) error {
		svid, ca, err := behind(src, now())
		if svid == nil {
			return err
		}
		sheet.Time(svidDesc, svid.NotAfter)
		sheet.Gauge(lifeDesc, svid.NotAfter.Sub(svid.NotBefore).Seconds())
		if ca == nil {
			return err
		}
		sheet.Time(caDesc, ca.NotAfter)
		sheet.Gauge(caLife, ca.NotAfter.Sub(ca.NotBefore).Seconds())
		return nil // that they have expired is what the metrics are there to show
	}})
}

// behind gives the SVID, and of the CA certificates that it leads to the one that ends first. What is wrong with them now is an
// error, and they are given all the same as far as they are known.
func behind(src identity.Source, now time.Time) (svid, ca *x509.Certificate, err error) {
	own, err := src.GetX509SVID()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the own SVID: %w", err)
	}
	svid = own.Certificates[0]
	bundle, err := src.GetX509BundleForTrustDomain(own.ID.TrustDomain())
	if err != nil {
		return svid, nil, fmt.Errorf("reading the trust bundle: %w", err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range bundle.X509Authorities() {
		roots.AddCert(c)
	}
	for _, c := range own.Certificates[1:] {
		between.AddCert(c)
	}
	// Judged in the middle of the SVID's own life, so that the CA is found even when the SVID has run out.
	at := svid.NotBefore.Add(svid.NotAfter.Sub(svid.NotBefore) / 2)
	chains, err := svid.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return svid, nil, fmt.Errorf("the own SVID does not lead to the trust bundle: %w", err)
	}
	for _, c := range chains[0][1:] {
		if ca == nil || c.NotAfter.Before(ca.NotAfter) {
			ca = c
		}
	}
	switch {
	case now.After(svid.NotAfter):
		err = fmt.Errorf("the own SVID expired at %s", svid.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(svid.NotBefore):
		err = fmt.Errorf("the own SVID is not valid before %s", svid.NotBefore.UTC().Format(time.RFC3339))
	case ca != nil && now.After(ca.NotAfter):
		err = errors.New("the CA certificate behind the own SVID has expired")
	}
	return svid, ca, err
}
