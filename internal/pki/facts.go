package pki

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// CertificateFacts is what events and the inventory tell about a certificate.
// All of it is public.
type CertificateFacts struct {
	Fingerprint       Fingerprint
	Subject           string // RFC 2253 form
	Issuer            string
	Serial            string // lower-case hex, no leading zeros
	Names             Names  // as they stand in the certificate, lower-cased, not checked
	NotBefore         time.Time
	NotAfter          time.Time
	KeyType           KeyType // "" when the algorithm is not known
	SPKIHash          string
	EKU               []string // "serverAuth", "clientAuth", ... (RFC 5280 4.2.1.12) or a dotted OID
	IsCA              bool
	SelfSigned        bool   // subject equals issuer
	AuthorityKeyID    string // lower-case hex
	SubjectKeyID      string
	SignatureWeakness string // "" or why the signature algorithm is weak
}

// Facts reads them. It never fails: foreign certificates with unknown
// algorithms or names that break the rules are what an inventory must show.
func Facts(cert *x509.Certificate) CertificateFacts {
	f := CertificateFacts{
		Fingerprint:    FingerprintOf(cert.Raw),
		Subject:        strings.ToValidUTF8(cert.Subject.String(), "?"),
		Issuer:         strings.ToValidUTF8(cert.Issuer.String(), "?"),
		NotBefore:      cert.NotBefore.UTC(),
		NotAfter:       cert.NotAfter.UTC(),
		KeyType:        KeyTypeOf(cert.PublicKey),
		SPKIHash:       string(FingerprintOf(cert.RawSubjectPublicKeyInfo)),
		EKU:            ekus(cert),
		IsCA:           cert.IsCA,
		SelfSigned:     string(cert.RawSubject) == string(cert.RawIssuer),
		AuthorityKeyID: hex.EncodeToString(cert.AuthorityKeyId),
		SubjectKeyID:   hex.EncodeToString(cert.SubjectKeyId),
	}
	if cert.SerialNumber != nil {
		f.Serial = cert.SerialNumber.Text(16)
	}
	for _, d := range cert.DNSNames {
		f.Names.DNS = append(f.Names.DNS, strings.ToLower(d))
	}
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			f.Names.IP = append(f.Names.IP, a.Unmap())
		}
	}
	slices.Sort(f.Names.DNS)
	f.Names.DNS = slices.Compact(f.Names.DNS)
	slices.SortFunc(f.Names.IP, netip.Addr.Compare)
	f.Names.IP = slices.Compact(f.Names.IP)
	switch cert.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		if !f.SelfSigned { // nobody relies on a root's own signature
			f.SignatureWeakness = "signed with " + cert.SignatureAlgorithm.String()
		}
	}
	return f
}

// ekuNames are the key purposes of RFC 5280 4.2.1.12.
var ekuNames = map[string]string{
	"2.5.29.37.0":       "anyExtendedKeyUsage",
	"1.3.6.1.5.5.7.3.1": "serverAuth",
	"1.3.6.1.5.5.7.3.2": "clientAuth",
	"1.3.6.1.5.5.7.3.3": "codeSigning",
	"1.3.6.1.5.5.7.3.4": "emailProtection",
	"1.3.6.1.5.5.7.3.8": "timeStamping",
	"1.3.6.1.5.5.7.3.9": "OCSPSigning",
}

// usualEKUs are whole extensions, because nearly all certificates have one of these.
var usualEKUs = map[string][]string{
	"\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01":                                         {"serverAuth"},
	"\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02":                                         {"clientAuth"},
	"\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02": {"serverAuth", "clientAuth"},
}

// ekus reads the extension itself: crypto/x509 gives some purposes a number of
// its own instead of their OID.
func ekus(cert *x509.Certificate) []string {
	var names []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidExtKeyUsage) {
			continue
		}
		if usual, ok := usualEKUs[string(ext.Value)]; ok {
			names = append(names, usual...)
			continue
		}
		var oids []asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(ext.Value, &oids); err != nil {
			return nil
		}
		for _, oid := range oids {
			name := oid.String()
			if known, ok := ekuNames[name]; ok {
				name = known
			}
			names = append(names, name)
		}
	}
	return names
}
