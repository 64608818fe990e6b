// Package internalca is the company's own CA: a root and an issuing intermediate.
//
// It guarantees that every certificate it signs is for the key of the CSR, has exactly its names and the usages given, a
// serial number of 126 random bits, and ends no later than the intermediate. Storing what it signed before anybody sees it
// is the caller's part, as is keeping the keys.
package internalca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
)

const (
	// backdate lets peers whose clock is a little behind accept a fresh certificate.
	backdate = time.Minute
	// minRemaining of the intermediate's life is the least that a leaf is worth making for.
	minRemaining = time.Minute
	// maxCommonName is RFC 5280's ub-common-name; a longer name stands among the alternative names alone.
	maxCommonName = 64
)

// Material is a new CA: chain (issuing first, root last) and the keys as PKCS#8 PEM, to be sealed at once.
type Material struct {
	Chain      [][]byte
	RootKey    []byte
	IssuingKey []byte
}

// Create makes root and intermediate. Both are limited to what they are for: the root signs CAs one level down, the
// intermediate signs leaves alone and those for TLS alone (EKU serverAuth and clientAuth).
func Create(spec authority.Internal, now time.Time) (*Material, error) {
	root, err := pki.GenerateKey(spec.KeyType)
	if err != nil {
		return nil, fmt.Errorf("making the root key: %w", err)
	}
	issuing, err := pki.GenerateKey(spec.KeyType)
	if err != nil {
		return nil, fmt.Errorf("making the issuing key: %w", err)
	}
	begin := now.Add(-backdate).Truncate(time.Second)
	rootTemplate := caTemplate(spec.CommonName, begin, now.Add(spec.RootLifetime), 1)
	rootDER, err := sign(rootTemplate, rootTemplate, root.Public(), root)
	if err != nil {
		return nil, fmt.Errorf("signing the root: %w", err)
	}
	rootCert, err := x509.ParseCertificate(rootDER)
	if err != nil {
		return nil, fmt.Errorf("reading the root: %w", err)
	}
	template := caTemplate(spec.IssuingName(), begin, now.Add(spec.IntermediateLifetime), 0)
	if template.NotAfter.After(rootCert.NotAfter) {
		template.NotAfter = rootCert.NotAfter
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	issuingDER, err := sign(template, rootCert, issuing.Public(), root)
	if err != nil {
		return nil, fmt.Errorf("signing the intermediate: %w", err)
	}
	m := &Material{Chain: [][]byte{issuingDER, rootDER}}
	if m.RootKey, err = pki.EncodeKeyPEM(root); err != nil {
		return nil, err
	}
	m.IssuingKey, err = pki.EncodeKeyPEM(issuing)
	return m, err
}

func caTemplate(name string, begin, end time.Time, below int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             begin,
		NotAfter:              end.Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            below,
		MaxPathLenZero:        below == 0,
	}
}

func sign(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	template.SubjectKeyId = keyID(sha256.Sum256(spki))
	return x509.CreateCertificate(rand.Reader, template, parent, pub, key)
}

// keyID is a key identifier: RFC 7093 section 2, method 4, cut to the 160 bits of RFC 5280.
func keyID(spki [sha256.Size]byte) []byte { return spki[:20] }

// serial has 126 random bits; BR 7.1 wants at least 64, RFC 5280 at most 20 bytes and a positive number.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40 // of one length, positive, never zero
	return new(big.Int).SetBytes(b[:])
}

// CA signs with an intermediate; opened with the root's certificate and key it signs the root's lists. It may be used concurrently.
type CA struct {
	issuing *x509.Certificate
	key     crypto.Signer
	signs   signing
	lists   []string // URL of its CRL, if it is published
	now     func() time.Time
}

// Open takes what Create made, once stored. crlURL is where CRLs are published, empty for nowhere. now is the clock.
func Open(chain [][]byte, issuingKey []byte, crlURL string, now func() time.Time) (*CA, error) {
	certs, err := pki.ParseChainDER(chain)
	if err != nil {
		return nil, err
	}
	key, err := pki.ParseKeyPEM(issuingKey)
	if err != nil {
		return nil, err
	}
	if err := pki.CheckPair(certs, key); err != nil {
		return nil, err
	}
	if !certs[0].IsCA {
		return nil, errors.New("the issuing certificate is not a CA's")
	}
	signs, err := signingWith(key.Public())
	if err != nil {
		return nil, err
	}
	ca := &CA{issuing: certs[0], key: key, signs: signs, now: now}
	if crlURL != "" {
		ca.lists = []string{crlURL + "/" + ListName(ca.KeyID())}
	}
	return ca, nil
}

// KeyID is the CA's key identifier in lower-case hex.
func (ca *CA) KeyID() string { return hex.EncodeToString(ca.issuing.SubjectKeyId) }

// ListName is the name under which the CRL of a CA is published.
func ListName(keyID string) string { return keyID + ".crl" }

// List is what a CRL says.
type List struct {
	Number     int64
	ThisUpdate time.Time
	NextUpdate time.Time
	Revoked    []revocation.Revocation
}

// SignList makes a whole CRL, version 2. A reason that says nothing is left out (RFC 5280 section 5.3.1).
func (ca *CA) SignList(l List) ([]byte, error) {
	template := &x509.RevocationList{Number: big.NewInt(l.Number), ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate}
	for _, r := range l.Revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: r.Serial, RevocationTime: r.Revoked.UTC().Truncate(time.Second), ReasonCode: int(r.Reason)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.issuing, ca.key)
	if err != nil {
		return nil, fmt.Errorf("signing a CRL: %w", err)
	}
	return der, nil
}

// Step signs at once: Accepted leads to Issue.
func (ca *CA) Step(ctx context.Context, w authority.Work) (authority.Progress, error) {
	if err := ctx.Err(); err != nil {
		return authority.Progress{}, fault.Of(err)
	}
	if _, err := issuance.Machine.Next(w.Request.State, issuance.Issue); err != nil || w.Request.State != issuance.Accepted {
		return authority.Progress{}, fault.New(fault.Internal, fault.ReasonInternal, "an internal authority has nothing to do for a request that is %s", w.Request.State)
	}
	issued, err := ca.Issue(w.CSR, w.Usages, w.Lifetime)
	if err != nil {
		return authority.Progress{}, err
	}
	return authority.Progress{Event: issuance.Issue, Issued: issued}, nil
}

// Issue signs a leaf for the key and the names of csr, valid from a minute ago for lifetime, but not beyond the
// intermediate. The common name, if the CSR has one, is one of the names.
func (ca *CA) Issue(csr *pki.CSR, usages []profile.Usage, lifetime time.Duration) (*authority.Issued, error) {
	now := ca.now().UTC()
	switch {
	case now.Before(ca.issuing.NotBefore):
		return nil, fault.New(fault.Precondition, authority.ReasonClock, "the issuing certificate begins on %s and the clock says %s: check the clock", stamp(ca.issuing.NotBefore), stamp(now))
	case now.Add(minRemaining).After(ca.issuing.NotAfter):
		return nil, fault.New(fault.Permanent, authority.ReasonExpiring, "the issuing certificate ends on %s: make a new authority", stamp(ca.issuing.NotAfter))
	}
	template, err := leafTemplate(csr, usages)
	if err != nil {
		return nil, err
	}
	template.CRLDistributionPoints = ca.lists
	template.NotBefore = now.Add(-backdate).Truncate(time.Second)
	template.NotAfter = now.Add(lifetime - time.Second).Truncate(time.Second) // both ends count (RFC 5280 section 4.1.2.5)
	if template.NotAfter.After(ca.issuing.NotAfter) {
		template.NotAfter = ca.issuing.NotAfter
	}
	der, err := ca.signLeaf(template, csr.Request.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return &authority.Issued{
		Chain:       [][]byte{der, ca.issuing.Raw},
		Fingerprint: pki.FingerprintOf(der),
		Serial:      template.SerialNumber,
		Names:       csr.Names,
		NotBefore:   template.NotBefore,
		NotAfter:    template.NotAfter,
		SPKI:        csr.SPKIHash,
	}, nil
}

func leafTemplate(csr *pki.CSR, usages []profile.Usage) (*x509.Certificate, error) {
	var spki [sha256.Size]byte
	if n, err := hex.Decode(spki[:], []byte(csr.SPKIHash)); err != nil || n != len(spki) {
		return nil, errors.New("the CSR was not checked")
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		SubjectKeyId:          keyID(spki),
		DNSNames:              csr.Names.DNS,
	}
	if cn := strings.ToLower(csr.Request.Subject.CommonName); len(cn) <= maxCommonName { // so it was found among the names
		t.Subject.CommonName = cn
	}
	if csr.Request.PublicKeyAlgorithm == x509.RSA {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment // TLS 1.2 with RSA key exchange
	}
	for _, a := range csr.Names.IP {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	for _, u := range usages {
		switch u {
		case profile.ServerAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		case profile.ClientAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		default:
			return nil, fmt.Errorf("unknown usage %q", u)
		}
	}
	if len(t.ExtKeyUsage) == 0 {
		return nil, errors.New("a certificate without extended key usage is good for everything: none is made")
	}
	return t, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
