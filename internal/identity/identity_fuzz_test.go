package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// FuzzFiles takes any three files for an identity; one that is taken is whole.
func FuzzFiles(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ca, err := CreateAuthority(td, nil)
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	chain, err := ca.Mint(spiffeid.RequireFromPath(td, "/operator/ann"), key.Public(), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	if err := WriteFiles(dir, chain, key, ca.Bundle()); err != nil {
		f.Fatal(err)
	}
	var seed [3][]byte
	for i, name := range []string{FileSVID, FileKey, FileBundle} {
		if seed[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(seed[0], seed[1], seed[2])
	f.Add(seed[2], seed[1], seed[0])
	f.Add(append(seed[0], seed[2]...), seed[1], seed[2])
	f.Fuzz(func(t *testing.T, cert, key, roots []byte) {
		p, err := parsePair(cert, key, roots)
		if err != nil {
			return
		}
		id, _, err := x509svid.Verify(p.svid.Certificates, p.bundle, x509svid.WithTime(p.svid.Certificates[0].NotAfter))
		if err != nil || id != p.svid.ID {
			t.Fatalf("%v, %v", id, err)
		}
	})
}

func FuzzLoadAuthority(f *testing.F) {
	ca, err := CreateAuthority(spiffeid.RequireTrustDomainFromString("example.org"), nil)
	if err != nil {
		f.Fatal(err)
	}
	cert, key := ca.Marshal()
	f.Add(cert, key)
	f.Add(key, cert)
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		a, err := LoadAuthority(cert, key, nil)
		if err != nil {
			return
		}
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := a.Mint(spiffeid.RequireFromPath(a.TrustDomain(), "/agent/web-1"), private.Public(), time.Minute)
		if err != nil {
			return // the root is over
		}
		if err := chain[0].CheckSignatureFrom(a.Bundle().X509Authorities()[0]); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzCallerOf: a caller's name never is more than one plain word, and says the same as the ID.
func FuzzCallerOf(f *testing.F) {
	for _, s := range []string{"spiffe://example.org/agent/web-1", "spiffe://example.org/operator/ann", "spiffe://example.org/service/issuer",
		"spiffe://example.org/service/nats", "spiffe://example.org/agent/a/b", "spiffe://example.org", "spiffe://example.org/agent/", "https://example.org/agent/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := spiffeid.FromString(s)
		if err != nil {
			return
		}
		c, err := CallerOf(id)
		if err != nil {
			return
		}
		if c.ID != id || c.Name == "" || strings.ContainsAny(c.Name, "/\x00 \n") || c.Role == RoleAnonymous {
			t.Fatalf("%q is %+v", s, c)
		}
	})
}
