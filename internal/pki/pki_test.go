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
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func key(t testing.TB, kt KeyType) crypto.Signer {
	t.Helper()
	k, err := GenerateKey(kt)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign makes a certificate; parent nil makes it sign itself.
func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	if tmpl.SerialNumber == nil {
		tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// hierarchy is root, intermediate and leaf.
func hierarchy(t testing.TB) (leaf, inter, root *x509.Certificate, leafKey crypto.Signer) {
	rk, ik, lk := key(t, ECDSAP256), key(t, ECDSAP256), key(t, ECDSAP256)
	ca := func(cn string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	root = sign(t, ca("root"), nil, rk.Public(), rk)
	inter = sign(t, ca("inter"), root, ik.Public(), rk)
	leaf = sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{"a.example.com"}}, inter, lk.Public(), ik)
	return leaf, inter, root, lk
}

func TestKeys(t *testing.T) {
	for _, kt := range KeyTypes {
		if kt == RSA4096 || kt == RSA3072 {
			continue // only the number differs, and it takes seconds
		}
		k := key(t, kt)
		if got := KeyTypeOf(k.Public()); got != kt {
			t.Errorf("%s: got %s", kt, got)
		}
		if why, weak := Weak(k.Public()); weak {
			t.Errorf("%s: %s", kt, why)
		}
		text, err := EncodeKeyPEM(k)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseKeyPEM(text)
		if err != nil || !samePublic(back.Public(), k.Public()) {
			t.Errorf("%s: %v", kt, err)
		}
		if got, err := ParseKeyType(string(kt)); err != nil || got != kt {
			t.Errorf("%s: got %s, %v", kt, got, err)
		}
	}
	for _, s := range []string{"", "rsa", "RSA-2048", "rsa-1024", "ecdsa-p521"} {
		if _, err := ParseKeyType(s); err == nil {
			t.Errorf("%q: no error", s)
		}
		if _, err := GenerateKey(KeyType(s)); err == nil {
			t.Errorf("%q: a key", s)
		}
	}
	if _, err := GenerateKey(Ed25519); err == nil {
		t.Error("an Ed25519 key is made")
	}
	if kt, err := ParseKeyType("ed25519"); err != nil || kt != Ed25519 {
		t.Error("Ed25519 is not recognised")
	}
}

func TestKeyTypeOfStrangers(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, pub := range map[KeyType]crypto.PublicKey{"ecdsa-p521": p521.Public(), "ed25519": ed, "rsa-1024": rsaKey(1024, 65537), "": nil} {
		if got := KeyTypeOf(pub); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if KeyTypeOf("x") != "" || SPKIHash("x") != "" {
		t.Error("text is a key")
	}
}

func rsaKey(bits, e int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return &rsa.PublicKey{N: n.Or(n, big.NewInt(1)), E: e}
}

func TestWeak(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, pub := range map[string]crypto.PublicKey{
		"1024": rsaKey(1024, 65537), "2047": rsaKey(2047, 65537), "2052": rsaKey(2052, 65537), "e=3": rsaKey(2048, 3), "even e": rsaKey(2048, 65538), "P-224": p224.Public(),
	} {
		if why, weak := Weak(pub); !weak || why == "" {
			t.Errorf("%s: not weak", name)
		}
	}
	for name, pub := range map[string]crypto.PublicKey{"2048": rsaKey(2048, 65537), "4096": rsaKey(4096, 65539), "unknown": nil} {
		if why, weak := Weak(pub); weak {
			t.Errorf("%s: %s", name, why)
		}
	}
}

func TestParseKeyPEM(t *testing.T) {
	ec := key(t, ECDSAP256).(*ecdsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	rk := key(t, RSA2048).(*rsa.PrivateKey)
	block := func(typ string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}) }
	for name, tt := range map[string]struct {
		text []byte
		pub  crypto.PublicKey
	}{
		"SEC 1":                 {block("EC PRIVATE KEY", sec1), ec.Public()},
		"SEC 1 with parameters": {append(block("EC PARAMETERS", []byte{6, 1, 0}), block("EC PRIVATE KEY", sec1)...), ec.Public()},
		"PKCS#1":                {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rk)), rk.Public()},
	} {
		if got, err := ParseKeyPEM(tt.text); err != nil || !samePublic(got.Public(), tt.pub) {
			t.Errorf("%s: %v", name, err)
		}
	}
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte{1}})
	for name, tt := range map[string]struct {
		text  []byte
		wants string
	}{
		"empty":               {nil, "no PEM block"},
		"garbage":             {[]byte("hello"), "no PEM block"},
		"certificate":         {block("CERTIFICATE", []byte{1}), "no PEM block"},
		"broken":              {block("PRIVATE KEY", sec1[:10]), "readable"},
		"encrypted":           {encrypted, "encrypted"},
		"encrypted in PKCS#8": {block("ENCRYPTED PRIVATE KEY", []byte{1}), "encrypted"},
		"too large":           {bytes.Repeat([]byte("x"), maxKeyPEM+1), "larger"},
	} {
		if _, err := ParseKeyPEM(tt.text); err == nil || !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckPair(t *testing.T) {
	leaf, inter, _, k := hierarchy(t)
	if err := CheckPair([]*x509.Certificate{leaf, inter}, k); err != nil {
		t.Error(err)
	}
	for name, chain := range map[string][]*x509.Certificate{"empty": nil, "another's": {inter, leaf}} {
		if err := CheckPair(chain, k); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := CheckPair([]*x509.Certificate{leaf}, key(t, RSA2048)); err == nil {
		t.Error("a key of another kind: no error")
	}
}

func TestOrderChain(t *testing.T) {
	leaf, inter, root, _ := hierarchy(t)
	other, _, _, _ := hierarchy(t)
	type chain = []*x509.Certificate
	for name, in := range map[string]chain{
		"in order": {leaf, inter, root}, "reversed": {root, inter, leaf}, "mixed": {inter, leaf, root}, "doubled": {root, leaf, inter, leaf, root, inter},
	} {
		got, err := OrderChain(in)
		if err != nil || len(got) != 3 || got[0] != leaf || !got[1].Equal(inter) || !got[2].Equal(root) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for want, in := range map[int]chain{1: {root}, 2: {inter, leaf}} {
		if got, err := OrderChain(in); err != nil || len(got) != want {
			t.Errorf("%d: got %v, %v", want, got, err)
		}
	}
	for name, tt := range map[string]struct {
		in    chain
		wants string
	}{
		"empty":      {nil, "no certificate"},
		"stranger":   {chain{leaf, inter, other}, "one path"},
		"gap":        {chain{leaf, root}, "one path"},
		"two leaves": {chain{leaf, leaf, other}, "one path"},
	} {
		if got, err := OrderChain(tt.in); err == nil || !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	// Two CAs that certified each other, and nothing under them.
	ak, bk := key(t, ECDSAP256), key(t, ECDSAP256)
	ca := func(cn string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	a := sign(t, ca("a"), ca("b"), ak.Public(), bk)
	b := sign(t, ca("b"), ca("a"), bk.Public(), ak)
	if got, err := OrderChain(chain{a, b}); err == nil || !strings.Contains(err.Error(), "circle") {
		t.Errorf("circle: got %v, %v", got, err)
	}
	// A leaf of the same issuer twice over: the issuer's cross-signed twin is a stranger on the path.
	var many chain
	for range maxChain + 1 {
		k := key(t, ECDSAP256)
		many = append(many, sign(t, ca("x"), nil, k.Public(), k))
	}
	if _, err := OrderChain(many); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many: %v", err)
	}
}

func TestChainForms(t *testing.T) {
	leaf, inter, root, k := hierarchy(t)
	text := EncodeChainPEM([]*x509.Certificate{leaf, inter, root})
	got, err := ParseChainPEM(append([]byte("subject=/CN=leaf\n"), text...))
	if err != nil || len(got) != 3 || !got[0].Equal(leaf) || !got[2].Equal(root) {
		t.Fatalf("got %v, %v", got, err)
	}
	if got, err = ParseChainDER([][]byte{leaf.Raw, inter.Raw}); err != nil || len(got) != 2 || !got[1].Equal(inter) {
		t.Fatalf("got %v, %v", got, err)
	}
	keyPEM, err := EncodeKeyPEM(k)
	if err != nil {
		t.Fatal(err)
	}
	one := EncodeChainPEM([]*x509.Certificate{leaf})
	for name, tt := range map[string]struct {
		text  []byte
		wants string
	}{
		"empty":        {nil, "no certificate"},
		"garbage":      {[]byte("hello"), "no certificate"},
		"a key inside": {append(bytes.Clone(one), keyPEM...), `"PRIVATE KEY"`},
		"cut":          {text[:len(text)-40], "broken PEM block after certificate 2"},
		"broken DER":   {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw[:50]}), "certificate 1"},
		"too many":     {bytes.Repeat(one, maxChain+1), "more than"},
		"too large":    {bytes.Repeat([]byte("\n"), maxChainPEM+1), "larger than"},
	} {
		if got, err := ParseChainPEM(tt.text); err == nil || !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, ders := range map[string][][]byte{
		"empty": nil, "broken": {leaf.Raw, {1}}, "two in one": {append(bytes.Clone(leaf.Raw), inter.Raw...)}, "too large": {make([]byte, maxCertDER+1)},
		"too many": make([][]byte, maxChain+1),
	} {
		if got, err := ParseChainDER(ders); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestFacts(t *testing.T) {
	k, ik := key(t, ECDSAP384), key(t, ECDSAP256)
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "issuer", Organization: []string{"Org"}}, SubjectKeyId: []byte{1, 2}, IsCA: true, BasicConstraintsValid: true}
	at := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	c := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(0xabc), Subject: pkix.Name{CommonName: "web"}, DNSNames: []string{"B.example.com", "a.example.com", "b.example.com", "under_score"},
		IPAddresses: []byteIP{{192, 0, 2, 1}}, NotBefore: at, NotAfter: at.Add(time.Hour), SubjectKeyId: []byte{3},
		ExtKeyUsage:        []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageIPSECTunnel},
		UnknownExtKeyUsage: []oid{{1, 3, 6, 1, 4, 1, 99}},
	}, issuer, k.Public(), ik)
	f := Facts(c)
	if f.Fingerprint != FingerprintOf(c.Raw) || len(f.Fingerprint) != 64 || f.Subject != "CN=web" || f.Issuer != "CN=issuer,O=Org" || f.Serial != "abc" {
		t.Errorf("got %+v", f)
	}
	if got := strings.Join(f.Names.Strings(), " "); got != "a.example.com b.example.com under_score 192.0.2.1" {
		t.Errorf("names %q", got)
	}
	if !f.NotBefore.Equal(at) || !f.NotAfter.Equal(at.Add(time.Hour)) || f.KeyType != ECDSAP384 || f.SPKIHash != SPKIHash(k.Public()) || f.IsCA || f.SelfSigned {
		t.Errorf("got %+v", f)
	}
	if got := strings.Join(f.EKU, " "); got != "serverAuth 1.3.6.1.5.5.7.3.6 1.3.6.1.4.1.99" {
		t.Errorf("EKU %q", got)
	}
	if f.AuthorityKeyID != hex.EncodeToString([]byte{1, 2}) || f.SubjectKeyID != "03" || f.SignatureWeakness != "" {
		t.Errorf("got %+v", f)
	}
	_, _, root, _ := hierarchy(t)
	if f := Facts(root); !f.IsCA || !f.SelfSigned || f.EKU != nil {
		t.Errorf("root: %+v", f)
	}
}

// Certificates that a scan may meet and we would never make.
func TestUsualPurposes(t *testing.T) {
	for der, want := range usualEKUs {
		var oids []asn1.ObjectIdentifier
		if rest, err := asn1.Unmarshal([]byte(der), &oids); err != nil || len(rest) > 0 {
			t.Fatalf("%x: %v", der, err)
		}
		var got []string
		for _, oid := range oids {
			got = append(got, ekuNames[oid.String()])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%x is %v, not %v", der, got, want)
		}
	}
}

func TestFactsOfStrangers(t *testing.T) {
	files, err := filepath.Glob("testdata/*.pem")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	want := map[string]CertificateFacts{
		"sha1.pem":    {KeyType: "rsa-1024", SignatureWeakness: "signed with SHA1-RSA"},
		"ed25519.pem": {KeyType: Ed25519},
		"ed448.pem":   {KeyType: ""},
		"p521.pem":    {KeyType: "ecdsa-p521"},
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ParseChainPEM(text)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		w, ok := want[filepath.Base(file)]
		f := Facts(chain[0])
		if !ok || f.KeyType != w.KeyType || f.SignatureWeakness != w.SignatureWeakness || f.SPKIHash == "" || f.Subject == "" {
			t.Errorf("%s: got %+v", file, f)
		}
	}
}
