package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/url"
	"strings"
	"testing"
)

type (
	byteIP = net.IP
	oid    = asn1.ObjectIdentifier
)

func request(t testing.TB, tmpl *x509.CertificateRequest, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCSR(t *testing.T) {
	names, err := ParseNames([]string{"*.example.com", "example.com"}, []string{"192.0.2.1", "2001:db8::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, kt := range []KeyType{ECDSAP256, ECDSAP384, RSA2048} {
		k := key(t, kt)
		der, err := NewCSR(k, names)
		if err != nil {
			t.Fatal(err)
		}
		c, err := CheckCSR(der)
		if err != nil {
			t.Fatalf("%s: %v", kt, err)
		}
		if !c.Names.Equal(names) || c.KeyType != kt || c.SPKIHash != SPKIHash(k.Public()) || !bytes.Equal(c.Raw, der) || c.Request.Subject.String() != "" {
			t.Errorf("%s: got %+v", kt, c)
		}
	}
	if _, err := NewCSR(key(t, ECDSAP256), Names{}); err == nil {
		t.Error("a CSR without names")
	}
}

func TestCheckCSRTakes(t *testing.T) {
	k := key(t, ECDSAP256)
	ku, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x80}, BitLength: 1})
	if err != nil {
		t.Fatal(err)
	}
	notCA, err := asn1.Marshal(struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tmpl := range map[string]*x509.CertificateRequest{
		"CN":                {Subject: pkix.Name{CommonName: "A.example.com"}, DNSNames: []string{"a.example.com"}},
		"CN of an address":  {Subject: pkix.Name{CommonName: "192.0.2.1"}, IPAddresses: []net.IP{{192, 0, 2, 1}}},
		"organisation":      {Subject: pkix.Name{Organization: []string{"Org"}}, DNSNames: []string{"a.example.com"}},
		"CA:FALSE":          {DNSNames: []string{"a.example.com"}, ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Critical: true, Value: notCA}}},
		"key usage":         {DNSNames: []string{"a.example.com"}, ExtraExtensions: []pkix.Extension{{Id: oidKeyUsage, Critical: true, Value: ku}}},
		"unknown extension": {DNSNames: []string{"a.example.com"}, ExtraExtensions: []pkix.Extension{{Id: oid{1, 3, 6, 1, 4, 1, 99}, Value: []byte{5, 0}}}},
	} {
		if _, err := CheckCSR(request(t, tmpl, k)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckCSRRefuses(t *testing.T) {
	k := key(t, ECDSAP256)
	ok := []string{"a.example.com"}
	isCA, err := asn1.Marshal(struct{ IsCA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	san := func(tag int, value string) []byte {
		der, err := asn1.Marshal([]asn1.RawValue{
			{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("a.example.com")},
			{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: []byte(value)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ext := func(id oid, critical bool, value []byte) *x509.CertificateRequest {
		tmpl := &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: id, Critical: critical, Value: value}}}
		if !id.Equal(oidSAN) {
			tmpl.DNSNames = ok
		}
		return tmpl
	}
	var many []string
	for i := range maxNames + 1 {
		many = append(many, "n"+strings.Repeat("a", i%50)+".example.com")
	}
	for name, tt := range map[string]struct {
		tmpl  *x509.CertificateRequest
		wants string
	}{
		"no names":           {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.example.com"}}, "no subject alternative name"},
		"foreign CN":         {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "b.example.com"}, DNSNames: ok}, "common name"},
		"long CN":            {&x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("x", 1000)}, DNSNames: ok}, "..."},
		"e-mail":             {&x509.CertificateRequest{EmailAddresses: []string{"a@example.com"}, DNSNames: ok}, "e-mail"},
		"URI":                {&x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "x"}}, DNSNames: ok}, "URI"},
		"bad name":           {&x509.CertificateRequest{DNSNames: []string{"under_score.example.com"}}, "underscore"},
		"bad wildcard":       {&x509.CertificateRequest{DNSNames: []string{"*.com"}}, "wildcard"},
		"too many":           {&x509.CertificateRequest{DNSNames: many}, "at most 100"},
		"CA":                 {ext(oidBasicConstraints, true, isCA), "CA certificate"},
		"basic constraints":  {ext(oidBasicConstraints, true, []byte{1, 2, 3}), "basic constraints"},
		"critical extension": {ext(oid{1, 3, 6, 1, 4, 1, 99}, true, []byte{5, 0}), "critical"},
		"other name":         {ext(oidSAN, false, san(0, "x")), "kind 0"},
		"directory name":     {ext(oidSAN, false, san(4, "x")), "kind 4"},
		"registered id":      {ext(oidSAN, false, san(8, "\x2a\x03")), "kind 8"},
		"too large":          {&x509.CertificateRequest{DNSNames: ok, Subject: pkix.Name{Organization: []string{strings.Repeat("x", maxCSR)}}}, "larger"},
	} {
		if c, err := CheckCSR(request(t, tt.tmpl, k)); err == nil || !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: got %+v, %v", name, c, err)
		}
	}
}

func TestCheckCSRKeys(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := rsa.GenerateKey(rand.Reader, 2056)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]crypto.Signer{"P-521": p521, "Ed25519": ed, "RSA of an odd size": odd} {
		if c, err := CheckCSR(request(t, &x509.CertificateRequest{DNSNames: []string{"a.example.com"}}, k)); err == nil || !strings.Contains(err.Error(), "key type") {
			t.Errorf("%s: got %+v, %v", name, c, err)
		}
	}
	for name, pub := range map[string]*rsa.PublicKey{"weak": rsaKey(1024, 65537), "huge": rsaKey(16384, 65537), "e=3": rsaKey(2048, 3)} {
		if _, err := checkKey(pub); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCheckCSRSignature(t *testing.T) {
	names, err := ParseNames([]string{"a.example.com"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := NewCSR(key(t, ECDSAP256), names)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"name changed":  func(b []byte) []byte { return bytes.Replace(b, []byte("a.example"), []byte("b.example"), 1) },
		"signature":     func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":           func(b []byte) []byte { return b[:len(b)-1] },
		"more after it": func(b []byte) []byte { return append(b, 0) },
		"empty":         func([]byte) []byte { return nil },
	} {
		if c, err := CheckCSR(change(bytes.Clone(der))); err == nil {
			t.Errorf("%s: got %+v", name, c)
		}
	}
}

func FuzzCheckCSR(f *testing.F) {
	k := key(f, ECDSAP256)
	f.Add(request(f, &x509.CertificateRequest{DNSNames: []string{"a.example.com", "*.b.example"}, IPAddresses: []net.IP{{192, 0, 2, 1}}}, k))
	f.Add(request(f, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}, EmailAddresses: []string{"a@b"}}, k))
	f.Add(request(f, &x509.CertificateRequest{DNSNames: []string{"a.example.com"}}, key(f, RSA2048)))
	f.Fuzz(func(t *testing.T, der []byte) {
		if c, err := CheckCSR(der); err == nil {
			if again, err := ParseNames(c.Names.DNS, c.Names.IPStrings()); err != nil || !again.Equal(c.Names) || again.Len() == 0 {
				t.Fatalf("names %v: %v", c.Names, err)
			}
			if err := c.Request.CheckSignature(); err != nil {
				t.Fatal(err)
			}
		}
		// What is behind the signature, which the fuzzer cannot make.
		if req, err := x509.ParseCertificateRequest(der); err == nil {
			_ = checkExtensions(req)
			_, _ = csrNames(req)
			_, _ = checkKey(req.PublicKey)
		}
	})
}

func FuzzParseChainPEM(f *testing.F) {
	leaf, inter, root, k := hierarchy(f)
	text := EncodeChainPEM([]*x509.Certificate{leaf, inter, root})
	keyPEM, err := EncodeKeyPEM(k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(append(keyPEM, text...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = ParseKeyPEM(data)
		chain, err := ParseChainPEM(data)
		if err != nil {
			return
		}
		for _, c := range chain {
			if f := Facts(c); len(f.Fingerprint) != 64 {
				t.Fatalf("facts %+v", f)
			}
		}
		again, err := ParseChainPEM(EncodeChainPEM(chain))
		if err != nil || len(again) != len(chain) {
			t.Fatalf("written and read again: %v", err)
		}
		if ordered, err := OrderChain(chain); err == nil && len(ordered) > len(chain) {
			t.Fatal("more certificates than given")
		}
	})
}
