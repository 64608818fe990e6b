package internalca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// leaves are CAs and keys of each type.
type leaves struct {
	cas  []*CA
	keys []crypto.PublicKey
}

func newLeaves(t testing.TB) leaves {
	t.Helper()
	var all leaves
	for _, kt := range []pki.KeyType{pki.ECDSAP256, pki.ECDSAP384, pki.RSA2048} {
		m := create(t, authority.Spec{Name: "corp", Internal: &authority.Internal{KeyType: kt}}, time.Now())
		key, err := pki.GenerateKey(kt)
		if err != nil {
			t.Fatal(err)
		}
		all.cas, all.keys = append(all.cas, open(t, m, time.Now)), append(all.keys, key.Public())
	}
	return all
}

// same lets crypto/x509 make a certificate from the same template and compares what is signed.
func (l leaves) same(t *testing.T, ca, key int, template *x509.Certificate) {
	t.Helper()
	signer := l.cas[ca]
	got, err := signer.signLeaf(template, l.keys[key])
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.CreateCertificate(rand.Reader, template, signer.issuing, l.keys[key], signer.key)
	if err != nil {
		t.Fatal(err)
	}
	read, err := x509.ParseCertificate(got)
	if err != nil {
		t.Fatalf("%x: %v", got, err)
	}
	made, err := x509.ParseCertificate(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read.RawTBSCertificate, made.RawTBSCertificate) {
		t.Fatalf("encoded as\n%x\ncrypto/x509 has\n%x", read.RawTBSCertificate, made.RawTBSCertificate)
	}
	if err := read.CheckSignatureFrom(signer.issuing); err != nil {
		t.Fatal(err)
	}
}

func FuzzLeaf(f *testing.F) {
	all := newLeaves(f)
	f.Add(uint8(0), "", "a.example.com", []byte{}, int64(1780000000), uint32(90*86400), true, false, "")
	f.Add(uint8(1), "a.example.com", "a.example.com b.example.com", []byte{10, 0, 0, 1}, int64(2524607999), uint32(2), true, true, "http://pki.example.com/crl/0a.crl") // 2049 and 2050
	f.Add(uint8(2), "Übel, *&", "*.example.com", bytes.Repeat([]byte{0xfe}, 16), int64(-700000000), uint32(1), false, true, "")                                         // 1947
	f.Add(uint8(5), "", "", append(bytes.Repeat([]byte{0}, 10), 0xff, 0xff, 10, 0, 0, 1), int64(1), uint32(1<<31), true, false, "ldap:x")
	f.Add(uint8(7), strings.Repeat("x", 64), strings.Repeat("y.example.com ", 100), []byte{}, int64(1780000000), uint32(0), true, true, strings.Repeat("u", 300))
	f.Fuzz(func(t *testing.T, kind uint8, cn, dns string, ips []byte, begin int64, length uint32, server, client bool, list string) {
		if !server && !client || begin < -62e9 || begin > 240e9 || !utf8.ValidString(cn) || strings.ContainsFunc(dns, func(r rune) bool { return r > 0x7f }) {
			return // none that is made
		}
		csr := &pki.CSR{SPKIHash: strings.Repeat("0a", 32), Names: pki.Names{DNS: strings.Fields(dns)}, Request: &x509.CertificateRequest{}}
		csr.Request.Subject.CommonName = cn
		ca, key := int(kind)%3, int(kind)/3%3
		if key == 2 {
			csr.Request.PublicKeyAlgorithm = x509.RSA
		}
		var usages []profile.Usage
		if server {
			usages = append(usages, profile.ServerAuth)
		}
		if client {
			usages = append(usages, profile.ClientAuth)
		}
		template, err := leafTemplate(csr, usages)
		if err != nil {
			t.Fatal(err)
		}
		for from := bytes.NewReader(ips); from.Len() >= 4; {
			ip := make(net.IP, 4+min(from.Len()/16, 1)*12)
			if err := binary.Read(io.LimitReader(from, int64(len(ip))), binary.BigEndian, ip); err != nil {
				t.Fatal(err)
			}
			template.IPAddresses = append(template.IPAddresses, ip)
		}
		if len(template.DNSNames)+len(template.IPAddresses) == 0 {
			return
		}
		template.NotBefore = time.Unix(begin, 0)
		template.NotAfter = template.NotBefore.Add(time.Duration(length) * time.Second)
		if list != "" {
			template.CRLDistributionPoints = []string{list}
		}
		all.same(t, ca, key, template)
	})
}

// otherKey signs with a key that is not the CA's.
type otherKey struct{ crypto.Signer }

// A signature that the issuing certificate does not verify leaves nothing behind that could be taken for a certificate.
func TestSignatureIsChecked(t *testing.T) {
	m := create(t, authority.Spec{Name: "corp", Internal: &authority.Internal{}}, time.Now())
	ca := open(t, m, time.Now)
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	ca.key = otherKey{key}
	csr := &pki.CSR{SPKIHash: strings.Repeat("0a", 32), Names: pki.Names{DNS: []string{"a.example.com"}}, Request: &x509.CertificateRequest{PublicKey: key.Public()}}
	if issued, err := ca.Issue(csr, []profile.Usage{profile.ServerAuth}, time.Hour); err == nil || issued != nil || !strings.Contains(err.Error(), "not one of the issuing key") {
		t.Errorf("issued: %t, %v", issued != nil, err)
	}
}
