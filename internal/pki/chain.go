package pki

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	maxChain    = 16
	maxChainPEM = 256 << 10
	maxCertDER  = 64 << 10
)

// ParseChainPEM reads 1 to 16 certificates. Text between blocks is let pass,
// blocks of another type are not: a key among certificates is a mistake that
// must not travel on.
func ParseChainPEM(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxChainPEM {
		return nil, fmt.Errorf("chain: larger than %d bytes", maxChainPEM)
	}
	var certs []*x509.Certificate
	for {
		var b *pem.Block
		b, data = pem.Decode(data)
		if b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("chain: PEM block %d is %q, not a certificate", len(certs)+1, printable(b.Type))
		}
		if len(certs) == maxChain {
			return nil, fmt.Errorf("chain: more than %d certificates", maxChain)
		}
		c, err := parseCert(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("chain: certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("chain: no certificate in PEM form")
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("chain: a broken PEM block after certificate %d", len(certs))
	}
	return certs, nil
}

// ParseChainDER reads 1 to 16 certificates, one DER each.
func ParseChainDER(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, errors.New("chain: no certificate")
	}
	if len(ders) > maxChain {
		return nil, fmt.Errorf("chain: more than %d certificates", maxChain)
	}
	certs := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		c, err := parseCert(der)
		if err != nil {
			return nil, fmt.Errorf("chain: certificate %d: %w", i+1, err)
		}
		certs[i] = c
	}
	return certs, nil
}

func parseCert(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertDER {
		return nil, fmt.Errorf("larger than %d bytes", maxCertDER)
	}
	return x509.ParseCertificate(der)
}

// EncodeChainPEM writes the certificates in the order given.
func EncodeChainPEM(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// CheckPair says whether the first certificate of the chain is for this key.
func CheckPair(chain []*x509.Certificate, key crypto.Signer) error {
	if len(chain) == 0 {
		return errors.New("certificate and key: no certificate")
	}
	if !samePublic(key.Public(), chain[0].PublicKey) {
		return fmt.Errorf("certificate and key do not belong together: the certificate %s is for another key", FingerprintOf(chain[0].Raw))
	}
	return nil
}

// OrderChain puts the certificates in the order TLS wants: the leaf, then each
// one's issuer (RFC 8446 4.4.2). All must be on that one path; doubles are
// dropped. Signatures are checked, validity periods and trust are not.
func OrderChain(certs []*x509.Certificate) ([]*x509.Certificate, error) {
	certs = distinct(certs)
	if len(certs) == 0 {
		return nil, errors.New("chain: no certificate")
	}
	if len(certs) > maxChain {
		return nil, fmt.Errorf("chain: more than %d certificates", maxChain)
	}
	var leaf *x509.Certificate
	for _, c := range certs {
		if issuesAnother(c, certs) {
			continue
		}
		if leaf != nil {
			return nil, fmt.Errorf("chain: %q and %q do not lie on one path: a certificate between them is missing, or one does not belong here", leaf.Subject, c.Subject)
		}
		leaf = c
	}
	if leaf == nil {
		return nil, errors.New("chain: certificates issue each other in a circle")
	}
	path := []*x509.Certificate{leaf}
	for len(path) < len(certs) {
		next := issuerOf(path[len(path)-1], certs, path)
		if next == nil {
			return nil, fmt.Errorf("chain: the issuer %q of %q is missing", path[len(path)-1].Issuer, path[len(path)-1].Subject)
		}
		path = append(path, next)
	}
	return path, nil
}

func distinct(certs []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range certs {
		if !contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func contains(certs []*x509.Certificate, c *x509.Certificate) bool {
	for _, o := range certs {
		if o.Equal(c) {
			return true
		}
	}
	return false
}

func issuesAnother(c *x509.Certificate, certs []*x509.Certificate) bool {
	for _, o := range certs {
		if !o.Equal(c) && issued(c, o) {
			return true
		}
	}
	return false
}

func issuerOf(c *x509.Certificate, among, not []*x509.Certificate) *x509.Certificate {
	for _, o := range among {
		if !contains(not, o) && issued(o, c) {
			return o
		}
	}
	return nil
}

func issued(issuer, c *x509.Certificate) bool {
	if k, ok := issuer.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return false
	}
	return bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil
}

// printable cuts foreign text down to what may stand in an error.
func printable(s string) string {
	const limit = 64
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return s
}
