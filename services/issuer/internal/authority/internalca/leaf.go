package internalca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

// signing is how a CA signs, by its key: what crypto/x509 chooses for that.
type signing struct {
	algorithm  x509.SignatureAlgorithm
	hash       crypto.Hash
	identifier []byte // DER of the AlgorithmIdentifier
}

func signingWith(pub crypto.PublicKey) (signing, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey: // RFC 5758 section 3.2: no parameters
		switch k.Curve {
		case elliptic.P256():
			return signing{x509.ECDSAWithSHA256, crypto.SHA256, []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02")}, nil
		case elliptic.P384():
			return signing{x509.ECDSAWithSHA384, crypto.SHA384, []byte("\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03")}, nil
		}
	case *rsa.PublicKey: // RFC 4055 section 5: parameters are NULL
		return signing{x509.SHA256WithRSA, crypto.SHA256, []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00")}, nil
	}
	return signing{}, fmt.Errorf("a CA cannot sign with a %T", pub)
}

// The extensions of a leaf (RFC 5280 section 4.2.1).
var (
	oidSubjectKeyID   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidAltNames       = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidConstraints    = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidLists          = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
)

var oidUsages = map[x509.ExtKeyUsage]asn1.ObjectIdentifier{
	x509.ExtKeyUsageServerAuth: {1, 3, 6, 1, 5, 5, 7, 3, 1},
	x509.ExtKeyUsageClientAuth: {1, 3, 6, 1, 5, 5, 7, 3, 2},
}

// signLeaf does what x509.CreateCertificate does with a template of leafTemplate, the check of its own signature included, and gives
// the same bytes but for that. It is for speed: encoding by reflection takes as long as a signature.
func (ca *CA) signLeaf(template *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	tbs, err := ca.encode(template, pub)
	if err != nil {
		return nil, err
	}
	signature, err := crypto.SignMessage(ca.key, rand.Reader, tbs, ca.signs.hash)
	if err != nil {
		return nil, err
	}
	if err := ca.issuing.CheckSignature(ca.signs.algorithm, tbs, signature); err != nil {
		return nil, fmt.Errorf("the signature is not one of the issuing key: %w", err)
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(signature)+64))
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(ca.signs.identifier)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

// encode gives what is signed (RFC 5280 section 4.1.2).
func (ca *CA) encode(t *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	spki, err := encodeKey(pub)
	if err != nil {
		return nil, err
	}
	subject := []byte("\x30\x00")
	if t.Subject.CommonName != "" {
		if subject, err = asn1.Marshal(t.Subject.ToRDNSequence()); err != nil {
			return nil, err
		}
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // version 3
		b.AddASN1BigInt(t.SerialNumber)
		b.AddBytes(ca.signs.identifier)
		b.AddBytes(ca.issuing.RawSubject)
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(explicit(3), func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { ca.addExtensions(b, t) })
		})
	})
	return b.Bytes()
}

// The keys nearly all certificates are for: what stands before their point (RFC 5480 section 2).
var (
	beforeP256 = []byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00")
	beforeP384 = []byte("\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00")
)

// encodeKey gives the SubjectPublicKeyInfo of a key, anew: the CSR may have written it in another way.
func encodeKey(pub crypto.PublicKey) ([]byte, error) {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return x509.MarshalPKIXPublicKey(pub)
	}
	point, err := k.Bytes()
	switch {
	case err != nil:
		return nil, err
	case k.Curve == elliptic.P256():
		return slices.Concat(beforeP256, point), nil
	case k.Curve == elliptic.P384():
		return slices.Concat(beforeP384, point), nil
	}
	return x509.MarshalPKIXPublicKey(pub)
}

func (ca *CA) addExtensions(b *cryptobyte.Builder, t *x509.Certificate) {
	addExtension(b, oidKeyUsage, true, func(b *cryptobyte.Builder) {
		bits, unused := byte(0x80), byte(7) // digitalSignature
		if t.KeyUsage&x509.KeyUsageKeyEncipherment != 0 {
			bits, unused = 0xa0, 5
		}
		b.AddASN1(der.BIT_STRING, func(b *cryptobyte.Builder) { b.AddBytes([]byte{unused, bits}) })
	})
	addExtension(b, oidExtKeyUsage, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, u := range t.ExtKeyUsage {
				b.AddASN1ObjectIdentifier(oidUsages[u])
			}
		})
	})
	addExtension(b, oidConstraints, true, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(*cryptobyte.Builder) {}) // no CA
	})
	addExtension(b, oidSubjectKeyID, false, func(b *cryptobyte.Builder) { b.AddASN1OctetString(t.SubjectKeyId) })
	addExtension(b, oidAuthorityKeyID, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { addImplicit(b, 0, ca.issuing.SubjectKeyId) })
	})
	addExtension(b, oidAltNames, t.Subject.CommonName == "", func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, name := range t.DNSNames {
				addImplicit(b, 2, []byte(name))
			}
			for _, ip := range t.IPAddresses {
				if short := ip.To4(); short != nil {
					ip = short
				}
				addImplicit(b, 7, ip)
			}
		})
	})
	if len(t.CRLDistributionPoints) == 0 {
		return
	}
	addExtension(b, oidLists, false, func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, url := range t.CRLDistributionPoints {
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { // distributionPoint
						b.AddASN1(explicit(0), func(b *cryptobyte.Builder) { addImplicit(b, 6, []byte(url)) }) // fullName
					})
				})
			}
		})
	})
}

func addExtension(b *cryptobyte.Builder, id asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		if critical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(der.OCTET_STRING, value)
	})
}

func explicit(tag uint8) der.Tag { return der.Tag(tag).ContextSpecific().Constructed() }

func addImplicit(b *cryptobyte.Builder, tag uint8, value []byte) {
	b.AddASN1(der.Tag(tag).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(value) })
}

// addTime writes the two forms of a time (RFC 5280 section 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 1950 || t.Year() >= 2050 {
		b.AddASN1GeneralizedTime(t)
	} else {
		b.AddASN1UTCTime(t)
	}
}
