package catalog_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	der, err := os.ReadFile(filepath.Join("testdata", name+".der"))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The fixtures were made with OpenSSL; Go's own parser refuses half of them.
func TestReadForeign(t *testing.T) {
	for _, c := range []struct{ name, key, weakness string }{
		{"secp256k1", "ecdsa-1.3.132.0.10", "curve 1.3.132.0.10"},
		{"brainpool", "ecdsa-1.3.36.3.3.2.8.1.1.7", "curve 1.3.36.3.3.2.8.1.1.7"},
		{"explicit", "unknown", "curve without a name"},
		{"dsa", "unknown", ""},
		{"ed448", "unknown", ""},
		{"rsa1024", "rsa-1024", "1024 bits"},
		{"sha1", "rsa-2048", "SHA1"},
		{"negative", "rsa-2048", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			der := fixture(t, c.name)
			got, err := catalog.Read(der)
			if err != nil {
				t.Fatal(err)
			}
			if got.Key() != c.key {
				t.Errorf("key %q, want %q", got.Key(), c.key)
			}
			if (got.Weakness == "") != (c.weakness == "") || !strings.Contains(got.Weakness, c.weakness) {
				t.Errorf("weakness %q, want %q", got.Weakness, c.weakness)
			}
			if got.Facts.Fingerprint != pki.FingerprintOf(der) {
				t.Error("the fingerprint must be that of the bytes as seen")
			}
			if !strings.Contains(got.Facts.Subject, c.name+".example.com") || got.Facts.NotAfter.Year() != 2036 || len(got.Facts.SPKIHash) != 64 {
				t.Errorf("facts are missing: %+v", got.Facts)
			}
		})
	}
	if got, err := catalog.Read(fixture(t, "negative")); err != nil || got.Facts.Serial != "-5" {
		t.Errorf("serial %q, %v", got.Facts.Serial, err)
	}
	k1, k2 := must(t, fixture(t, "secp256k1")), must(t, fixture(t, "brainpool"))
	if k1.Facts.SPKIHash == k2.Facts.SPKIHash {
		t.Error("the key's hash must be that of the true key")
	}
}

func must(t testing.TB, der []byte) catalog.Certificate {
	t.Helper()
	c, err := catalog.Read(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReadRefuses(t *testing.T) {
	der := fixture(t, "secp256k1")
	for name, bad := range map[string][]byte{
		"nothing": nil, "text": []byte("-----BEGIN CERTIFICATE-----"), "cut": der[:len(der)-1], "more": append(bytes.Clone(der), 0), "huge": make([]byte, 65<<10),
	} {
		if _, err := catalog.Read(bad); err == nil {
			t.Errorf("%s: must be refused", name)
		}
	}
}

func TestSignedBy(t *testing.T) {
	from, to := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	root := certtest.NewCA(t, "Root")
	sub := root.Sub("Issuing")
	impostor := certtest.NewCA(t, "Issuing")
	leaf := sub.Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: from, To: to})
	if !leaf.SignedBy(sub.Certificate) || !sub.SignedBy(root.Certificate) {
		t.Error("signatures that are there are not found")
	}
	if leaf.SignedBy(impostor.Certificate) {
		t.Error("a CA of the same name has not signed it")
	}
	if leaf.SignedBy(root.Certificate) || leaf.SignedBy(leaf) {
		t.Error("neither the root nor itself has signed it")
	}
	if !must(t, fixture(t, "sha1")).SignedBy(must(t, fixture(t, "sha1-ca"))) {
		t.Error("what an old CA signed with SHA-1 is recognised")
	}
	self := certtest.SelfSigned(t, certtest.Leaf{Names: []string{"x"}, From: from, To: to})
	if self.SignedBy(self) {
		t.Error("a certificate that is no CA vouches for nothing, not even for itself")
	}
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.der")
	if err != nil || len(files) == 0 {
		f.Fatal("no fixtures")
	}
	for _, file := range files {
		der, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	ca, err := catalog.Read(func() []byte { der, _ := os.ReadFile("testdata/sha1-ca.der"); return der }())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := catalog.Read(der)
		if err != nil {
			return
		}
		if c.Facts.Fingerprint != pki.FingerprintOf(der) || !bytes.Equal(c.DER, der) {
			t.Fatal("not the certificate that was given")
		}
		for _, s := range append(c.Names(), c.Facts.Subject, c.Facts.Issuer, c.Weakness, c.Key(), c.Facts.Serial) {
			if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
				t.Fatalf("text %q that neither database nor protobuf takes", s)
			}
		}
		c.SignedBy(ca)
		c.SignedBy(c)
	})
}
