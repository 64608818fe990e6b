package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

const maxCSR = 16 << 10

var (
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// CSR is a checked certificate signing request.
type CSR struct {
	Raw      []byte
	Request  *x509.CertificateRequest
	Names    Names
	KeyType  KeyType
	SPKIHash string
}

// CheckCSR reads a PKCS#10 request (DER, at most 16 KiB) and refuses it unless
// its signature proves possession of a key that is one of KeyTypes and not
// weak; its names pass ParseNames and there is at least one; a common name,
// where given, repeats one of them; and it asks for no CA certificate, no
// e-mail or URI name, and carries no critical extension that would be dropped.
func CheckCSR(der []byte) (*CSR, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("CSR: larger than %d bytes", maxCSR)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	kt, err := checkKey(req.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("CSR: the signature does not prove possession of the key: %w", err)
	}
	if err := checkExtensions(req); err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	names, err := csrNames(req)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	return &CSR{Raw: der, Request: req, Names: names, KeyType: kt, SPKIHash: string(FingerprintOf(req.RawSubjectPublicKeyInfo))}, nil
}

// checkKey comes before the signature check: a huge RSA key makes that dear.
func checkKey(pub crypto.PublicKey) (KeyType, error) {
	if k, ok := pub.(*rsa.PublicKey); ok && k.N.BitLen() > maxRSABits {
		return "", fmt.Errorf("RSA key of %d bits: at most %d are taken", k.N.BitLen(), maxRSABits)
	}
	if why, weak := Weak(pub); weak {
		return "", errors.New(why)
	}
	kt := KeyTypeOf(pub)
	if !slices.Contains(KeyTypes, kt) {
		return "", fmt.Errorf("key type %q: want one of %v", kt, KeyTypes)
	}
	return kt, nil
}

func checkExtensions(req *x509.CertificateRequest) error {
	if len(req.EmailAddresses) > 0 {
		return errors.New("e-mail names are not issued")
	}
	if len(req.URIs) > 0 {
		return errors.New("URI names are not issued")
	}
	sans := 0
	for _, ext := range req.Extensions {
		switch {
		case ext.Id.Equal(oidSAN):
			if sans++; sans > 1 {
				return errors.New("two extensions of subject alternative names")
			}
			if err := checkSAN(ext.Value); err != nil {
				return err
			}
		case ext.Id.Equal(oidBasicConstraints):
			var bc struct {
				IsCA    bool `asn1:"optional"`
				PathLen int  `asn1:"optional,default:-1"`
			}
			if rest, err := asn1.Unmarshal(ext.Value, &bc); err != nil || len(rest) > 0 {
				return errors.New("basic constraints cannot be read")
			}
			if bc.IsCA {
				return errors.New("a CA certificate is asked for")
			}
		case ext.Id.Equal(oidKeyUsage), ext.Id.Equal(oidExtKeyUsage):
			// The profile decides; what the request wishes is read past.
		case ext.Critical:
			return fmt.Errorf("unknown critical extension %v", ext.Id)
		}
	}
	return nil
}

// checkSAN refuses the kinds of name that crypto/x509 reads past: a request
// must not be granted with fewer names than it asks for.
func checkSAN(value []byte) error {
	var seq asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &seq); err != nil || len(rest) > 0 || seq.Tag != asn1.TagSequence {
		return errors.New("subject alternative names cannot be read")
	}
	for rest := seq.Bytes; len(rest) > 0; {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return errors.New("subject alternative names cannot be read")
		}
		if v.Class != asn1.ClassContextSpecific || (v.Tag != 2 && v.Tag != 7) { // dNSName, iPAddress (RFC 5280 4.2.1.6)
			return fmt.Errorf("a name of kind %d: only DNS names and IP addresses are issued", v.Tag)
		}
	}
	return nil
}

func csrNames(req *x509.CertificateRequest) (Names, error) {
	ips := make([]string, len(req.IPAddresses))
	for i, ip := range req.IPAddresses {
		ips[i] = ip.String()
	}
	names, err := ParseNames(req.DNSNames, ips)
	if err != nil {
		return Names{}, err
	}
	if names.Len() == 0 {
		return Names{}, errors.New("no subject alternative name")
	}
	if cn := strings.ToLower(req.Subject.CommonName); cn != "" && !slices.Contains(names.Strings(), cn) {
		return Names{}, fmt.Errorf("the common name %q is not among the subject alternative names", printable(req.Subject.CommonName))
	}
	return names, nil
}

// NewCSR makes a request for names, with an empty subject.
func NewCSR(key crypto.Signer, names Names) ([]byte, error) {
	if names.Len() == 0 {
		return nil, errors.New("making a CSR: no names")
	}
	tmpl := &x509.CertificateRequest{DNSNames: names.DNS}
	for _, a := range names.IP {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(a.AsSlice()))
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		return nil, fmt.Errorf("making a CSR: %w", err)
	}
	return der, nil
}
