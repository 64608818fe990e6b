// Package certtest makes certificates for tests.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
)

// CA is a certificate that can sign others.
type CA struct {
	catalog.Certificate
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewCA makes a self-signed CA.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	return makeCA(t, name, nil)
}

// Sub makes an intermediate CA below this one.
func (ca *CA) Sub(name string) *CA {
	ca.t.Helper()
	return makeCA(ca.t, name, ca)
}

func makeCA(t testing.TB, name string, parent *CA) *CA {
	t.Helper()
	ca := &CA{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: name}, NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter: time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	signer, signerKey := template, ca.key
	if parent != nil {
		signer, signerKey = parent.cert, parent.key
	}
	ca.Certificate, ca.cert = sign(t, template, signer, ca.key, signerKey)
	return ca
}

// Leaf is what a certificate is to be.
type Leaf struct {
	Names    []string // DNS names or IP addresses
	From, To time.Time
	Key      *ecdsa.PrivateKey // nil: a new one
}

// Issue signs a certificate.
func (ca *CA) Issue(l Leaf) catalog.Certificate {
	ca.t.Helper()
	key := l.Key
	if key == nil {
		key = newKey(ca.t)
	}
	c, _ := sign(ca.t, template(ca.t, l), ca.cert, key, ca.key)
	return c
}

// SelfSigned makes a certificate that no CA has signed.
func SelfSigned(t testing.TB, l Leaf) catalog.Certificate {
	t.Helper()
	key := newKey(t)
	tpl := template(t, l)
	c, _ := sign(t, tpl, tpl, key, key)
	return c
}

func template(t testing.TB, l Leaf) *x509.Certificate {
	tpl := &x509.Certificate{SerialNumber: serial(t), NotBefore: l.From, NotAfter: l.To, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range l.Names {
		if ip, err := netip.ParseAddr(name); err == nil {
			tpl.IPAddresses = append(tpl.IPAddresses, net.IP(ip.AsSlice()))
		} else {
			tpl.DNSNames = append(tpl.DNSNames, name)
		}
		tpl.Subject.CommonName = l.Names[0]
	}
	return tpl
}

func sign(t testing.TB, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (catalog.Certificate, *x509.Certificate) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatalf("signing a certificate: %v", err)
	}
	c, err := catalog.Read(der)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, parsed
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}
