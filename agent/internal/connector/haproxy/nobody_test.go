package haproxy

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
)

// What HAProxy is told to trust is of no use to anybody.
func TestNobody(t *testing.T) {
	block, rest := pem.Decode([]byte(nobody))
	if block == nil || len(rest) > 0 {
		t.Fatal("no PEM, or more than one")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if cert.IsCA || !cert.BasicConstraintsValid || !cert.NotAfter.Equal(time.Unix(1, 0)) || len(cert.DNSNames) > 0 {
		t.Errorf("%+v", cert)
	}
}
