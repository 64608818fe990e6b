package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func authority(t *testing.T, now func() time.Time) *Authority {
	t.Helper()
	a, err := CreateAuthority(td, now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var web1 = spiffeid.RequireFromPath(td, "/agent/web-1")

// The form of an X.509-SVID: SPIFFE X509-SVID sections 2 to 4.
func TestMintForm(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	a := authority(t, func() time.Time { return at })
	key := newKey(t)
	chain, err := a.Mint(web1, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 1 {
		t.Fatalf("%d certificates", len(chain))
	}
	c := chain[0]
	if len(c.URIs) != 1 || c.URIs[0].String() != web1.String() || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 {
		t.Errorf("names %v %v", c.URIs, c.DNSNames)
	}
	if c.KeyUsage != x509.KeyUsageDigitalSignature || c.IsCA || !c.BasicConstraintsValid {
		t.Errorf("usage %v, CA %v", c.KeyUsage, c.IsCA)
	}
	if len(c.ExtKeyUsage) != 2 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || c.ExtKeyUsage[1] != x509.ExtKeyUsageClientAuth {
		t.Errorf("EKU %v", c.ExtKeyUsage)
	}
	if !c.NotBefore.Equal(at.Add(-time.Minute)) || !c.NotAfter.Equal(at.Add(time.Hour)) {
		t.Errorf("valid %v to %v", c.NotBefore, c.NotAfter)
	}
	if c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() < 64 || c.SerialNumber.BitLen() > 159 {
		t.Errorf("serial %v", c.SerialNumber)
	}
	if id, _, err := x509svid.Verify(chain, a.Bundle(), x509svid.WithTime(at)); err != nil || id != web1 {
		t.Errorf("verified as %q, %v", id, err)
	}
	service, err := a.Mint(spiffeid.RequireFromPath(td, "/service/issuer"), key.Public(), time.Hour)
	if err != nil || len(service[0].DNSNames) != 1 || service[0].DNSNames[0] != "issuer.sallyport.internal" {
		t.Errorf("service: %v, %v", service, err)
	}
	root := a.Bundle().X509Authorities()[0]
	if !root.IsCA || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || len(root.URIs) != 1 || root.URIs[0].String() != "spiffe://example.org" {
		t.Errorf("root %v %v", root.KeyUsage, root.URIs)
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	if a.RootHash() != sha256.Sum256(root.Raw) || a.TrustDomain() != td {
		t.Error("root hash or trust domain")
	}
}

func TestMintRefuses(t *testing.T) {
	now := time.Now()
	a := authority(t, func() time.Time { return now })
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edPub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := newKey(t).Public()
	other := spiffeid.RequireFromString("spiffe://other.example/agent/web-1")
	for name, tt := range map[string]struct {
		id  spiffeid.ID
		pub crypto.PublicKey
		ttl time.Duration
	}{
		"other domain": {other, good, time.Hour},
		"the domain":   {td.ID(), good, time.Hour},
		"zero id":      {spiffeid.ID{}, good, time.Hour},
		"no time":      {web1, good, 0},
		"P-224":        {web1, p224.Public(), time.Hour},
		"RSA":          {web1, weak.Public(), time.Hour},
		"Ed25519":      {web1, edPub, time.Hour},
		"no key":       {web1, nil, time.Hour},
	} {
		if _, err := a.Mint(tt.id, tt.pub, tt.ttl); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, d := range []time.Duration{-time.Hour, 11 * 365 * 24 * time.Hour} {
		now = now.Add(d)
		if _, err := a.Mint(web1, good, time.Hour); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("clock off by %v: %v", d, err)
		}
		now = now.Add(-d)
	}
	now = now.Add(rootLifetime - time.Hour)
	chain, err := a.Mint(web1, good, 24*time.Hour)
	if err != nil || chain[0].NotAfter.After(a.cert.NotAfter) {
		t.Errorf("beyond the root: %v, %v", chain, err)
	}
}

func TestAuthorityMarshal(t *testing.T) {
	a := authority(t, nil)
	cert, key := a.Marshal()
	b, err := LoadAuthority(cert, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b.RootHash() != a.RootHash() || b.TrustDomain() != td {
		t.Fatal("another authority")
	}
	chain, err := b.Mint(web1, newKey(t).Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(chain, a.Bundle()); err != nil {
		t.Fatal(err)
	}
	otherCert, otherKey := authority(t, nil).Marshal()
	k := newKey(t)
	leaf, err := a.Mint(web1, k.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leafCert, leafKey, err := (&x509svid.SVID{ID: web1, Certificates: leaf, PrivateKey: k}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][2][]byte{
		"other key":  {cert, otherKey},
		"other cert": {otherCert, key},
		"swapped":    {key, cert},
		"empty":      {nil, nil},
		"a leaf":     {leafCert, leafKey},
		"broken":     {bytes.Replace(cert, []byte("M"), []byte("N"), 3), key},
	} {
		if _, err := LoadAuthority(p[0], p[1], nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := CreateAuthority(spiffeid.TrustDomain{}, nil); err == nil {
		t.Error("an authority without a trust domain")
	}
}

func TestMinted(t *testing.T) {
	now := time.Now()
	src, err := NewMinted(authority(t, func() time.Time { return now }), web1, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, src)
	get := func() *x509svid.SVID {
		t.Helper()
		s, err := src.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := get()
	now = now.Add(29 * time.Minute)
	if get() != first {
		t.Fatal("renewed before half of its life")
	}
	now = now.Add(2 * time.Minute)
	next := get()
	if next == first || next.PrivateKey == first.PrivateKey || !next.Certificates[0].NotAfter.After(first.Certificates[0].NotAfter) {
		t.Fatal("not renewed after half of its life")
	}
	now = now.Add(-31 * time.Minute) // a clock set back must not leave an SVID of the future
	if c := get().Certificates[0]; now.Before(c.NotBefore) {
		t.Fatal("not valid yet")
	}
	if b, err := src.GetX509BundleForTrustDomain(td); err != nil || b.Empty() {
		t.Fatalf("got %v, %v", b, err)
	}
	if _, err := src.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.example")); err == nil {
		t.Fatal("a bundle of another trust domain")
	}
	if _, err := NewMinted(nil, web1, time.Hour); err == nil {
		t.Fatal("no authority, no error")
	}
	if _, err := NewMinted(authority(t, nil), web1, -time.Hour); err == nil {
		t.Fatal("negative life, no error")
	}
}
