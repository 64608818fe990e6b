package record

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// cas issues certificates.
type cas struct {
	key *ecdsa.PrivateKey
	ca  *x509.Certificate
}

func newCAs(t testing.TB) cas {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := cas{key, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Corp Issuing", Organization: []string{"Corp"}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Unix(1_700_000_000, 0), NotAfter: time.Unix(1_900_000_000, 0),
	}}
	der, err := x509.CreateCertificate(rand.Reader, c.ca, c.ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

// issue issues what is usual, changed.
func (c cas) issue(t testing.TB, name string, public crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{"www." + name, name},
		NotBefore: time.Unix(1_800_000_000, 0), NotAfter: time.Unix(1_804_000_000, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		IssuingCertificateURL: []string{"http://ca.example/ca.crt"}, CRLDistributionPoints: []string{"http://ca.example/1.crl"},
		PolicyIdentifiers: []asn1.ObjectIdentifier{{2, 23, 140, 1, 2, 1}},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, public, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (c cas) usual(t testing.TB, name string) []byte {
	return c.issue(t, name, c.key.Public(), func(*x509.Certificate) {})
}

// samples are certificates of all kinds. Those of the first list are read by us once the CA is known, the others by crypto/x509.
func samples(t testing.TB) (simple, others map[string][]byte) {
	t.Helper()
	c := newCAs(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaOf := func(bits, e int) *rsa.PublicKey { // of a modulus that is none: nobody looks
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return &rsa.PublicKey{N: n.Add(n, big.NewInt(12345)), E: e}
	}
	unusual := &url.URL{Scheme: "spiffe", Host: "corp.example", Path: "/x"}
	with := func(change func(*x509.Certificate)) []byte { return c.issue(t, "shop.example", c.key.Public(), change) }
	key := func(k crypto.PublicKey) []byte { return c.issue(t, "shop.example", k, func(*x509.Certificate) {}) }
	simple = map[string][]byte{
		"usual": c.usual(t, "shop.example"), "no common name": with(func(c *x509.Certificate) { c.Subject = pkix.Name{} }),
		"addresses": with(func(c *x509.Certificate) {
			c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 9), net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1"), net.IPv4(192, 0, 2, 1)}
		}),
		"names twice": with(func(c *x509.Certificate) { c.DNSNames = []string{"b.example", "*.a_b.example", "b.example"} }),
		"no names":    with(func(c *x509.Certificate) { c.DNSNames = nil }),
		"rsa-2048":    key(rsaOf(2048, 65537)), "rsa-3072": key(rsaOf(3072, 65537)), "rsa-4096": key(rsaOf(4096, 65537)), "p384": key(p384.Public()),
		"small serial": with(func(c *x509.Certificate) { c.SerialNumber = big.NewInt(10) }),
		"high serial":  with(func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(0xff), 120) }),
		"29 February": with(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Date(2028, 2, 29, 23, 59, 59, 0, time.UTC), time.Date(2049, 12, 31, 0, 0, 0, 0, time.UTC)
		}),
		"key identifier": with(func(c *x509.Certificate) { c.SubjectKeyId = []byte("a key") }),
		"timestamps": with(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: []byte(c.SerialNumber.String())}}
		}),
		"client": with(func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []asn1.ObjectIdentifier{{1, 2, 3}}
		}),
		"critical names, none of the subject": with(func(c *x509.Certificate) { c.Subject = pkix.Name{} }),
	}
	others = map[string][]byte{
		"p521": key(p521.Public()), "ed25519": key(edwards), "rsa-2047": key(rsaOf(2047, 65537)), "exponent 3": key(rsaOf(2048, 3)),
		"capitals": with(func(c *x509.Certificate) { c.DNSNames = []string{"Shop.Example", "shop.example"} }), "uri": with(func(c *x509.Certificate) { c.URIs = []*url.URL{unusual} }),
		"mail": with(func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.example"} }),
		"1999": with(func(c *x509.Certificate) { c.NotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"2050": with(func(c *x509.Certificate) { c.NotAfter = time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"a large part": with(func(c *x509.Certificate) {
			c.CRLDistributionPoints = []string{"http://ca.example/" + strings.Repeat("x", maxPart)}
		}),
		"no certificate": []byte("no certificate"), "empty": {},
		"key identifier, critical": with(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 14}, Critical: true, Value: []byte("\x04\x01x")}}
		}),
		"an extension twice": with(func(c *x509.Certificate) {
			timestamps := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: []byte("x")}
			c.ExtraExtensions = []pkix.Extension{timestamps, timestamps}
		}),
	}
	for _, strange := range []string{"x, y", "#x", " x ", "x+y=\"z\"", "\u00fc", "a b"} {
		others["common name "+strange] = with(func(c *x509.Certificate) { c.Subject.CommonName = strange })
	}
	files, err := filepath.Glob("../../../inventory/internal/catalog/testdata/*.der")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples of the inventory: %v", err)
	}
	for _, file := range append(files, "testdata/leaf.der") {
		if others[file], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return simple, others
}

// plainly is what crypto/x509 alone makes of a certificate.
func plainly(der []byte) facts {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return facts{fingerprint: new(certificates).hash(string(der))}
	}
	return parsedFacts(cert)
}

func TestCertificatesAreToldAsCryptoX509Reads(t *testing.T) {
	var c certificates
	simple, others := samples(t)
	for range 3 { // the second time their parts are known
		for _, all := range []map[string][]byte{simple, others} {
			for name, der := range all {
				if diff := cmp.Diff(plainly(der), c.of(string(der)), cmp.AllowUnexported(facts{})); diff != "" {
					t.Errorf("%s: crypto/x509 (-) and we (+):\n%s", name, diff)
				}
			}
		}
	}
	for name, der := range simple {
		if _, ok := c.simple(string(der)); !ok || len(c.unknown) > 0 {
			t.Errorf("%s is left to crypto/x509: %t, %d parts are not known", name, ok, len(c.unknown))
		}
	}
	for _, known := range c.known {
		for part := range known {
			if len(part) > maxPart {
				t.Errorf("a part of %d bytes is remembered", len(part))
			}
		}
	}
}

// TestDamagedCertificates changes each byte of certificates whose parts are known, and leaves bytes out.
func TestDamagedCertificates(t *testing.T) {
	var c certificates
	simple, _ := samples(t)
	for range 2 {
		for _, der := range simple {
			c.of(string(der))
		}
	}
	try := func(what string, at int, der []byte) {
		if diff := cmp.Diff(plainly(der), c.of(string(der)), cmp.AllowUnexported(facts{})); diff != "" {
			t.Errorf("%s, byte %d %s: crypto/x509 (-) and we (+):\n%s", what, at, "changed", diff)
		}
	}
	for name, der := range simple {
		for at := range der {
			for _, change := range []byte{1, 0x80} {
				other := append([]byte(nil), der...)
				other[at] ^= change
				try(name, at, other)
			}
			try(name, at, append(append([]byte(nil), der[:at]...), der[at+1:]...))
		}
		try(name, len(der), append(append([]byte(nil), der...), 0))
	}
}

// TestForgetsParts: what is remembered has bounds.
func TestForgetsParts(t *testing.T) {
	var c certificates
	ca := newCAs(t)
	for n := range 3 * maxPrints {
		c.of(string(ca.issue(t, "shop.example", ca.key.Public(), func(c *x509.Certificate) {
			c.Subject.Organization = []string{strings.Repeat("x", n)}
		})))
		c.prints([]string{strings.Repeat("y", n)})
	}
	for n := range 2 * maxKnown {
		c.learn(kindName, strings.Repeat("z", n%maxPart)+string(rune(n)), "")
	}
	if len(c.known[kindName]) > maxKnown || len(c.printed) > maxPrints {
		t.Errorf("%d names and %d fingerprints are remembered", len(c.known[kindName]), len(c.printed))
	}
}

// FuzzCertificate holds our way of reading certificates against crypto/x509's. The first certificate makes parts known, the
// second is put together of them and others.
func FuzzCertificate(f *testing.F) {
	simple, others := samples(f)
	usual := simple["usual"]
	for _, all := range []map[string][]byte{simple, others} {
		for _, der := range all {
			f.Add(usual, der)
		}
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var c certificates
		for _, der := range [][]byte{first, usual, second, first, second} {
			if diff := cmp.Diff(plainly(der), c.of(string(der)), cmp.AllowUnexported(facts{})); diff != "" {
				t.Fatalf("crypto/x509 (-) and we (+):\n%s", diff)
			}
		}
	})
}
