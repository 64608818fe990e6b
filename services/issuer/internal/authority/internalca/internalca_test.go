package internalca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/authoritytest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

func create(t testing.TB, spec authority.Spec, now time.Time) *Material {
	t.Helper()
	if err := spec.Check(); err != nil {
		t.Fatal(err)
	}
	m, err := Create(*spec.Internal, now)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func open(t testing.TB, m *Material, now func() time.Time) *CA {
	t.Helper()
	ca, err := Open(m.Chain, m.IssuingKey, "", now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestConformance(t *testing.T) {
	for _, kt := range []pki.KeyType{pki.ECDSAP256, pki.ECDSAP384, pki.RSA2048} {
		t.Run(string(kt), func(t *testing.T) {
			m := create(t, authority.Spec{Name: "corp", Internal: &authority.Internal{KeyType: kt}}, time.Now())
			authoritytest.Run(t, func(t *testing.T) authoritytest.Harness {
				roots := x509.NewCertPool()
				root, err := x509.ParseCertificate(m.Chain[1])
				if err != nil {
					t.Fatal(err)
				}
				roots.AddCert(root)
				return authoritytest.Harness{
					Open:   func() authority.Authority { return open(t, m, time.Now) },
					Roots:  roots,
					Issued: func() int { return -1 },
				}
			})
		})
	}
}

func TestCreate(t *testing.T) {
	now := time.Now()
	spec := authority.Internal{KeyType: pki.ECDSAP384, CommonName: "Example Root", RootLifetime: 48 * time.Hour, IntermediateLifetime: 24 * time.Hour}
	m := create(t, authority.Spec{Name: "corp", Internal: &spec}, now)
	certs, err := pki.ParseChainDER(m.Chain)
	if err != nil {
		t.Fatal(err)
	}
	issuing, root := certs[0], certs[1]
	if issuing.Subject.CommonName != "Example Root Issuing 1" || root.Subject.CommonName != "Example Root" {
		t.Errorf("names are %q and %q", issuing.Subject, root.Subject)
	}
	if err := issuing.CheckSignatureFrom(root); err != nil {
		t.Error(err)
	}
	if root.MaxPathLen != 1 || !issuing.MaxPathLenZero || issuing.MaxPathLen != 0 {
		t.Errorf("path lengths are %d and %d", root.MaxPathLen, issuing.MaxPathLen)
	}
	if len(root.ExtKeyUsage) != 0 || len(issuing.ExtKeyUsage) != 2 {
		t.Errorf("usages are %v and %v", root.ExtKeyUsage, issuing.ExtKeyUsage)
	}
	if pki.KeyTypeOf(root.PublicKey) != pki.ECDSAP384 || pki.KeyTypeOf(issuing.PublicKey) != pki.ECDSAP384 {
		t.Error("wrong key type")
	}
	if issuing.NotAfter.After(now.Add(24*time.Hour)) || root.NotAfter.After(now.Add(48*time.Hour)) {
		t.Errorf("they end on %s and %s", issuing.NotAfter, root.NotAfter)
	}
	if string(m.RootKey) == string(m.IssuingKey) {
		t.Error("one key for both")
	}
	if _, err := Open(m.Chain, m.RootKey, "", time.Now); err == nil {
		t.Error("opened with the wrong key")
	}
}

// The common name is one of the names that were judged, letter by letter (BR section 7.1.4.2.2), however the CSR writes it.
func TestCommonName(t *testing.T) {
	m := create(t, authority.Spec{Name: "corp", Internal: &authority.Internal{}}, time.Now())
	ca := open(t, m, time.Now)
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	for wish, want := range map[string]string{
		"key.example.com": "key.example.com", "KEY.Example.COM": "key.example.com", "\u212Aey.example.com": "key.example.com", // KELVIN SIGN
		"2001:DB8::1": "2001:db8::1", "": "",
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: wish}, DNSNames: []string{"key.example.com"}, IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}}, key)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := pki.CheckCSR(der)
		if err != nil {
			continue // refused is as good
		}
		issued, err := ca.Issue(csr, []profile.Usage{profile.ServerAuth}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(issued.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if leaf.Subject.CommonName != want {
			t.Errorf("common name %+q for %+q", leaf.Subject.CommonName, wish)
		}
	}
}

func TestLeafEnds(t *testing.T) {
	begin := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	m := create(t, authority.Spec{Name: "corp", Internal: &authority.Internal{RootLifetime: 100 * time.Hour, IntermediateLifetime: 50 * time.Hour}}, begin)
	csr := authoritytest.NewCSR(t, pki.ECDSAP256, "a.example.com")
	server := []profile.Usage{profile.ServerAuth}
	for _, c := range []struct {
		name   string
		now    time.Duration
		life   time.Duration
		end    time.Duration // of the leaf, from begin
		reason string
	}{
		{"whole life", time.Hour, 24 * time.Hour, 25*time.Hour - time.Second, ""},
		{"cut at the intermediate's end", 40 * time.Hour, 24 * time.Hour, 50 * time.Hour, ""},
		{"nothing left", 50*time.Hour - 30*time.Second, 24 * time.Hour, 0, authority.ReasonExpiring},
		{"long past", 1000 * time.Hour, 24 * time.Hour, 0, authority.ReasonExpiring},
		{"clock behind", -time.Hour, 24 * time.Hour, 0, authority.ReasonClock},
	} {
		t.Run(c.name, func(t *testing.T) {
			ca := open(t, m, func() time.Time { return begin.Add(c.now) })
			issued, err := ca.Issue(csr, server, c.life)
			if c.reason != "" {
				if err == nil || fault.Of(err).Reason != c.reason {
					t.Fatalf("got %v, want %s", err, c.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(issued.Chain[0])
			if err != nil {
				t.Fatal(err)
			}
			if want := begin.Add(c.end); !leaf.NotAfter.Equal(want) {
				t.Errorf("ends on %s, want %s", leaf.NotAfter, want)
			}
			if want := begin.Add(c.now - time.Minute); !leaf.NotBefore.Equal(want) {
				t.Errorf("begins on %s, want %s", leaf.NotBefore, want)
			}
		})
	}
}

func TestLeafUsages(t *testing.T) {
	m := create(t, authority.Spec{Name: "corp", Internal: &authority.Internal{}}, time.Now())
	ca := open(t, m, time.Now)
	for _, c := range []struct {
		kt     pki.KeyType
		usages []profile.Usage
		key    x509.KeyUsage
		eku    []x509.ExtKeyUsage
	}{
		{pki.ECDSAP256, []profile.Usage{profile.ServerAuth}, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		{pki.RSA2048, []profile.Usage{profile.ClientAuth}, x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		issued, err := ca.Issue(authoritytest.NewCSR(t, c.kt, "a.example.com"), c.usages, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(issued.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		if leaf.KeyUsage != c.key || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != c.eku[0] || leaf.IsCA || !leaf.BasicConstraintsValid {
			t.Errorf("%s: key usage %b, extended %v, CA %v", c.kt, leaf.KeyUsage, leaf.ExtKeyUsage, leaf.IsCA)
		}
	}
	if _, err := ca.Issue(authoritytest.NewCSR(t, pki.ECDSAP256, "a.example.com"), nil, time.Hour); err == nil {
		t.Error("issued without a usage")
	}
}

func TestSerials(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		n := serial()
		if n.Sign() <= 0 || n.BitLen() != 127 || seen[n.String()] {
			t.Fatalf("serial number %x", n)
		}
		seen[n.String()] = true
	}
}

func BenchmarkIssue(b *testing.B) {
	m := create(b, authority.Spec{Name: "corp", Internal: &authority.Internal{}}, time.Now())
	ca := open(b, m, time.Now)
	csr := authoritytest.NewCSR(b, pki.ECDSAP256, "a.example.com")
	for b.Loop() {
		if _, err := ca.Issue(csr, []profile.Usage{profile.ServerAuth}, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}
