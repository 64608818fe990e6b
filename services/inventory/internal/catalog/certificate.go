package catalog

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // to recognise what old CAs signed, never to trust it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/pki"
)

const (
	maxDER = 64 << 10
	// maxRSABits keeps the check of a foreign signature cheap.
	maxRSABits = 8192
)

// Certificate is one X.509 certificate as read from its DER. All its text is valid UTF-8 without NUL.
type Certificate struct {
	DER      []byte
	Facts    pki.CertificateFacts
	Weakness string // why its key or signature is too weak (BR 6.1.5, 7.1.3.2), "" when it is not
	// SubjectKey and IssuerKey are the hashes of the encoded names: a certificate's IssuerKey is its issuer's SubjectKey.
	SubjectKey string
	IssuerKey  string

	parsed *x509.Certificate
}

// Read reads a certificate of whatever origin. What Go's parser refuses for its key (curves it does not know) or its serial
// number (negative ones) is read all the same, with the key told as text: an inventory must show what is there.
func Read(der []byte) (Certificate, error) {
	if len(der) > maxDER {
		return Certificate{}, fmt.Errorf("certificate larger than %d bytes", maxDER)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		if cert = readForeign(der); cert == nil {
			return Certificate{}, fmt.Errorf("reading certificate: %w", err)
		}
	}
	c := Certificate{
		DER:        der,
		Facts:      pki.Facts(cert),
		SubjectKey: string(pki.FingerprintOf(cert.RawSubject)),
		IssuerKey:  string(pki.FingerprintOf(cert.RawIssuer)),
		parsed:     cert,
	}
	c.Facts.Subject, c.Facts.Issuer = clean(c.Facts.Subject), clean(c.Facts.Issuer)
	for i, name := range c.Facts.Names.DNS {
		c.Facts.Names.DNS[i] = clean(name)
	}
	var reason string
	if cert.PublicKey == nil {
		c.Facts.KeyType, reason = foreignKey(cert.RawSubjectPublicKeyInfo)
	} else {
		reason, _ = pki.Weak(cert.PublicKey) // "" where it is not
	}
	if reason == "" {
		reason = c.Facts.SignatureWeakness
	}
	c.Weakness = clean(reason)
	return c, nil
}

// Key is the key's algorithm and size in words, "unknown" for what has no name here.
func (c Certificate) Key() string {
	if c.Facts.KeyType == "" {
		return "unknown"
	}
	return string(c.Facts.KeyType)
}

// Names lists all names of the certificate, DNS names first.
func (c Certificate) Names() []string { return c.Facts.Names.Strings() }

// SignedBy says whether ca is a CA certificate whose key made c's signature. Validity and trust are not looked at.
func (c Certificate) SignedBy(ca Certificate) bool {
	if c.IssuerKey != ca.SubjectKey || !ca.Facts.IsCA {
		return false
	}
	key, isRSA := ca.parsed.PublicKey.(*rsa.PublicKey)
	if isRSA && key.N.BitLen() > maxRSABits {
		return false
	}
	err := c.parsed.CheckSignatureFrom(ca.parsed)
	var insecure x509.InsecureAlgorithmError
	if isRSA && errors.As(err, &insecure) && c.parsed.SignatureAlgorithm == x509.SHA1WithRSA {
		sum := sha1.Sum(c.parsed.RawTBSCertificate) //nolint:gosec // see the import
		err = rsa.VerifyPKCS1v15(key, crypto.SHA1, sum[:], c.parsed.Signature)
	}
	return err == nil
}

// Searchable is how a DNS name or IP address is looked for among the names of certificates.
func Searchable(name string) string {
	if a, err := netip.ParseAddr(name); err == nil {
		return a.Unmap().String()
	}
	return strings.ToLower(clean(name))
}

// standInKey is a SubjectPublicKeyInfo that the parser takes: Ed25519 (RFC 8410), all zero.
var standInKey = append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}, make([]byte, 32)...)

// readForeign parses a copy with the parts that Go refuses replaced, and puts the true ones back; nil when that does not help.
func readForeign(der []byte) *x509.Certificate {
	var whole, tbs []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &whole); err != nil || len(rest) > 0 || len(whole) != 3 {
		return nil
	}
	if _, err := asn1.Unmarshal(whole[0].FullBytes, &tbs); err != nil {
		return nil
	}
	rawTBS, first := whole[0].FullBytes, 0
	if len(tbs) > 0 && tbs[0].Class == asn1.ClassContextSpecific { // version
		first = 1
	}
	// RFC 5280 4.1: serialNumber, signature, issuer, validity, subject, subjectPublicKeyInfo
	if len(tbs) < first+6 {
		return nil
	}
	serial, spki := new(big.Int), tbs[first+5].FullBytes
	if _, err := asn1.Unmarshal(tbs[first].FullBytes, &serial); err != nil {
		return nil
	}
	tbs[first] = asn1.RawValue{FullBytes: []byte{asn1.TagInteger, 1, 1}}
	tbs[first+5] = asn1.RawValue{FullBytes: standInKey}
	patched, err := asn1.Marshal(tbs)
	if err != nil {
		return nil
	}
	whole[0] = asn1.RawValue{FullBytes: patched}
	if patched, err = asn1.Marshal(whole); err != nil {
		return nil
	}
	cert, err := x509.ParseCertificate(patched)
	if err != nil {
		return nil
	}
	cert.Raw, cert.RawTBSCertificate, cert.RawSubjectPublicKeyInfo, cert.SerialNumber = der, rawTBS, spki, serial
	cert.PublicKey, cert.PublicKeyAlgorithm = nil, x509.UnknownPublicKeyAlgorithm
	if key, err := x509.ParsePKIXPublicKey(spki); err == nil { // it was the serial number alone
		cert.PublicKey = key
	}
	return cert
}

var oidEC = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1} // id-ecPublicKey, RFC 5480

// foreignKey names a key that Go cannot read, and says why it is weak if that can be told.
func foreignKey(spki []byte) (pki.KeyType, string) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &info); err != nil || !info.Algorithm.Algorithm.Equal(oidEC) {
		return "", ""
	}
	var curve asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &curve); err != nil {
		return "", "ECDSA key on a curve without a name: want P-256, P-384 or P-521"
	}
	return pki.KeyType("ecdsa-" + curve.String()), fmt.Sprintf("ECDSA key on curve %s: want P-256, P-384 or P-521", curve)
}

// clean makes text that databases and protobuf take.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
