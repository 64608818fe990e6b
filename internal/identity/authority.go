package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	rootLifetime = 10 * 365 * 24 * time.Hour
	// backdate lets peers whose clock is a little behind accept a fresh SVID.
	backdate = time.Minute
)

// ServerNameSuffix makes the DNS name and TLS server name (SNI) of a service:
// the name of the service, then this. It is never looked up in DNS.
const ServerNameSuffix = ".sallyport.internal"

// Authority is the trust domain's signing key: a self-signed root certificate
// (ECDSA P-256) and its key.
type Authority struct {
	td   spiffeid.TrustDomain
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// CreateAuthority makes a new root, valid ten years.
func CreateAuthority(td spiffeid.TrustDomain, now func() time.Time) (*Authority, error) {
	if td.IsZero() {
		return nil, errors.New("creating authority: no trust domain")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	now = clock(now)
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: td.Name() + " trust domain"},
		NotBefore:             now().Add(-backdate),
		NotAfter:              now().Add(rootLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		URIs:                  []*url.URL{td.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("creating authority: %w", err)
	}
	return &Authority{td: td, cert: cert, key: key, now: now}, nil
}

// LoadAuthority reads what Marshal gave.
func LoadAuthority(certPEM, keyPEM []byte, now func() time.Time) (*Authority, error) {
	cb, _ := pem.Decode(certPEM)
	if cb == nil || cb.Type != "CERTIFICATE" {
		return nil, errors.New("loading authority: no certificate in PEM form")
	}
	cert, err := x509.ParseCertificate(cb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	kb, _ := pem.Decode(keyPEM)
	if kb == nil || kb.Type != "PRIVATE KEY" {
		return nil, errors.New("loading authority: no private key in PKCS#8 PEM form")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
	if err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("loading authority: key and certificate do not belong together")
	}
	if !cert.IsCA || len(cert.URIs) != 1 {
		return nil, errors.New("loading authority: not the root certificate of a trust domain")
	}
	td, err := spiffeid.TrustDomainFromURI(cert.URIs[0])
	if err != nil {
		return nil, fmt.Errorf("loading authority: %w", err)
	}
	return &Authority{td: td, cert: cert, key: key, now: clock(now)}, nil
}

// Marshal gives certificate and key as PEM (PKCS#8). The key is not encrypted:
// where it is kept is the caller's care.
func (a *Authority) Marshal() (certPEM, keyPEM []byte) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		panic(fmt.Sprintf("identity: a P-256 key always marshals: %v", err))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TrustDomain is the domain whose IDs this authority signs.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// Bundle holds the root certificate.
func (a *Authority) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.td, []*x509.Certificate{a.cert})
}

// RootHash is the SHA-256 of the root certificate's DER, as join tokens carry it.
func (a *Authority) RootHash() [sha256.Size]byte { return sha256.Sum256(a.cert.Raw) }

// Mint signs an X.509-SVID for id and gives the chain without the root: the
// leaf alone. It is valid from a minute ago for ttl, never beyond the root.
// The form follows the SPIFFE X.509-SVID standard: one URI SAN, CA:FALSE,
// digitalSignature, EKU serverAuth and clientAuth. Services have their TLS
// server name as DNS SAN besides, and dnsNames.
func (a *Authority) Mint(id spiffeid.ID, pub crypto.PublicKey, ttl time.Duration, dnsNames ...string) ([]*x509.Certificate, error) {
	now := a.now()
	switch {
	case !id.MemberOf(a.td):
		return nil, fmt.Errorf("minting %q: not in trust domain %q", id, a.td.Name())
	case id.Path() == "":
		return nil, fmt.Errorf("minting %q: the trust domain itself is no identity", id)
	case ttl <= 0:
		return nil, fmt.Errorf("minting %q: lifetime %v is not positive", id, ttl)
	case now.Add(time.Second).After(a.cert.NotAfter) || now.Before(a.cert.NotBefore):
		return nil, fmt.Errorf("minting %q: the root certificate is valid from %s to %s and the clock says %s: check the clock",
			id, stamp(a.cert.NotBefore), stamp(a.cert.NotAfter), stamp(now))
	}
	if err := checkSVIDKey(pub); err != nil {
		return nil, fmt.Errorf("minting %q: %w", id, err)
	}
	until := now.Add(ttl)
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		NotBefore:             now.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()},
	}
	if service, ok := strings.CutPrefix(id.Path(), "/service/"); ok {
		// For tools that know nothing of SPIFFE, such as grpcurl: they verify the name they ask for.
		tmpl.DNSNames = append([]string{service + ServerNameSuffix}, dnsNames...)
	} else if len(dnsNames) > 0 {
		return nil, fmt.Errorf("minting %q: only a service has DNS names", id)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("minting %q: %w", id, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("minting %q: %w", id, err)
	}
	return []*x509.Certificate{cert}, nil
}

// Granted is when an SVID of an Authority was signed, to the second.
func Granted(svid *x509.Certificate) time.Time { return svid.NotBefore.Add(backdate) }

// checkSVIDKey takes ECDSA P-256 and P-384 only: all that Sallyport makes for
// SVIDs, and all that TLS 1.3 peers here need.
func checkSVIDKey(pub crypto.PublicKey) error {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || (k.Curve != elliptic.P256() && k.Curve != elliptic.P384()) {
		return errors.New("the key of an SVID must be ECDSA P-256 or P-384")
	}
	return nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f // positive in 16 bytes (RFC 5280 4.1.2.2: at most 20)
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
