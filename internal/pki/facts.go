package pki

import (
	"crypto/x509"
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
	EKU               []string // "serverAuth", "clientAuth", ... or a dotted OID
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
		Subject:        cert.Subject.String(),
		Issuer:         cert.Issuer.String(),
		NotBefore:      cert.NotBefore.UTC(),
		NotAfter:       cert.NotAfter.UTC(),
		KeyType:        KeyTypeOf(cert.PublicKey),
		SPKIHash:       string(FingerprintOf(cert.RawSubjectPublicKeyInfo)),
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
	for _, u := range cert.ExtKeyUsage {
		f.EKU = append(f.EKU, EKUName(u))
	}
	for _, oid := range cert.UnknownExtKeyUsage {
		f.EKU = append(f.EKU, oid.String())
	}
	switch cert.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		if !f.SelfSigned { // nobody relies on a root's own signature
			f.SignatureWeakness = "signed with " + cert.SignatureAlgorithm.String()
		}
	}
	return f
}

// ekus are the extended key usages with a name of their own (RFC 5280 4.2.1.12).
var ekus = []struct {
	usage x509.ExtKeyUsage
	name  string
}{
	{x509.ExtKeyUsageAny, "any"},
	{x509.ExtKeyUsageServerAuth, "serverAuth"},
	{x509.ExtKeyUsageClientAuth, "clientAuth"},
	{x509.ExtKeyUsageCodeSigning, "codeSigning"},
	{x509.ExtKeyUsageEmailProtection, "emailProtection"},
	{x509.ExtKeyUsageTimeStamping, "timeStamping"},
	{x509.ExtKeyUsageOCSPSigning, "OCSPSigning"},
}

// EKUName is the RFC 5280 name of an extended key usage, "unknown" for those
// without one here.
func EKUName(u x509.ExtKeyUsage) string {
	for _, e := range ekus {
		if e.usage == u {
			return e.name
		}
	}
	return "unknown"
}

// ParseEKU is the reverse of EKUName, for profiles.
func ParseEKU(name string) (x509.ExtKeyUsage, bool) {
	for _, e := range ekus {
		if e.name == name {
			return e.usage, true
		}
	}
	return 0, false
}
