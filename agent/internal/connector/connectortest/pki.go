package connectortest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// CA is a root with one intermediate.
type CA struct {
	Root, Intermediate *x509.Certificate
	key                crypto.Signer
}

// NewCA makes one.
func NewCA(t testing.TB) *CA {
	t.Helper()
	rootKey, key := Key(t, pki.ECDSAP256), Key(t, pki.ECDSAP256)
	root := sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true}, nil, rootKey.Public(), rootKey)
	mid := sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test intermediate"}, IsCA: true, BasicConstraintsValid: true}, root, key.Public(), rootKey)
	return &CA{Root: root, Intermediate: mid, key: key}
}

// Key makes a key.
func Key(t testing.TB, kt pki.KeyType) crypto.Signer {
	t.Helper()
	key, err := pki.GenerateKey(kt)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Sign issues a certificate for the key, leaf first; change may alter the template.
func (ca *CA) Sign(t testing.TB, pub crypto.PublicKey, change func(*x509.Certificate), names ...string) []*x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if a, err := netip.ParseAddr(n); err == nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, a.AsSlice())
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	if change != nil {
		change(tmpl)
	}
	return []*x509.Certificate{sign(t, tmpl, ca.Intermediate, pub, ca.key), ca.Intermediate}
}

// Pair issues a pair with a new key.
func (ca *CA) Pair(t testing.TB, names ...string) connector.Pair {
	t.Helper()
	key := Key(t, pki.ECDSAP256)
	pair, err := connector.NewPair(ca.Sign(t, key.Public(), nil, names...), key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = serial
	if tmpl.NotBefore.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
