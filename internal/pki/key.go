// Package pki reads and writes the X.509 things Sallyport handles: keys,
// chains, names, CSRs, and the facts of a certificate. Whatever it accepts is
// bounded in size, well formed and normalised; whatever it refuses is refused
// with a reason a person can act on. It decides nothing about who may have
// which certificate.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// KeyType names an algorithm with its size.
type KeyType string

// The key types. Ed25519 is recognised but never made: no public CA takes it.
const (
	ECDSAP256 KeyType = "ecdsa-p256"
	ECDSAP384 KeyType = "ecdsa-p384"
	RSA2048   KeyType = "rsa-2048"
	RSA3072   KeyType = "rsa-3072"
	RSA4096   KeyType = "rsa-4096"
	Ed25519   KeyType = "ed25519"
)

// KeyTypes are those that GenerateKey makes.
var KeyTypes = []KeyType{ECDSAP256, ECDSAP384, RSA2048, RSA3072, RSA4096}

const (
	maxKeyPEM = 32 << 10
	// minRSABits is BR 6.1.5.
	minRSABits = 2048
	// maxRSABits keeps signature checks of foreign keys cheap.
	maxRSABits = 8192
)

// ParseKeyType reads the name of a key type.
func ParseKeyType(s string) (KeyType, error) {
	switch kt := KeyType(s); kt {
	case ECDSAP256, ECDSAP384, RSA2048, RSA3072, RSA4096, Ed25519:
		return kt, nil
	}
	return "", fmt.Errorf("unknown key type %q: want one of %v", s, KeyTypes)
}

// GenerateKey makes a key. RSA-4096 takes seconds.
func GenerateKey(kt KeyType) (crypto.Signer, error) {
	switch kt {
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("no key of type %q can be made: want one of %v", kt, KeyTypes)
}

// KeyTypeOf names the type of a public key, such as "rsa-1024" for sizes we
// never make, or "" for an algorithm we do not know.
func KeyTypeOf(pub crypto.PublicKey) KeyType {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECDSAP256
		case elliptic.P384():
			return ECDSAP384
		}
		return KeyType(fmt.Sprintf("ecdsa-p%d", k.Curve.Params().BitSize))
	case *rsa.PublicKey:
		return KeyType(fmt.Sprintf("rsa-%d", k.N.BitLen()))
	case ed25519.PublicKey:
		return Ed25519
	}
	return ""
}

// Weak says whether a key must not be certified any more, and why: RSA below
// 2048 bits, with an even or small exponent or a size that is no multiple of 8
// (BR 6.1.5, 6.1.6), curves other than P-256, P-384, P-521. A key it does not
// know is not called weak.
func Weak(pub crypto.PublicKey) (string, bool) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		switch bits := k.N.BitLen(); {
		case bits < minRSABits:
			return fmt.Sprintf("RSA key of %d bits: at least %d are needed", bits, minRSABits), true
		case bits%8 != 0:
			return fmt.Sprintf("RSA key of %d bits: the size must be divisible by 8", bits), true
		case k.E < 65537 || k.E%2 == 0:
			return fmt.Sprintf("RSA key with public exponent %d: it must be odd and at least 65537", k.E), true
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return fmt.Sprintf("ECDSA key on curve %s: want P-256 or P-384", k.Curve.Params().Name), true
		}
	}
	return "", false
}

// Fingerprint is the lower-case hex SHA-256 of a certificate's DER: its name
// everywhere in Sallyport.
type Fingerprint string

// FingerprintOf computes the fingerprint of a certificate's DER.
func FingerprintOf(der []byte) Fingerprint {
	sum := sha256.Sum256(der)
	return Fingerprint(hex.EncodeToString(sum[:]))
}

// SPKIHash is the lower-case hex SHA-256 of the key's SubjectPublicKeyInfo, ""
// for a key that cannot be encoded.
func SPKIHash(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return string(FingerprintOf(der))
}

// ParseKeyPEM reads one unencrypted private key: PKCS#8, SEC 1 or PKCS#1.
// Errors never repeat the text.
func ParseKeyPEM(data []byte) (crypto.Signer, error) {
	if len(data) > maxKeyPEM {
		return nil, fmt.Errorf("private key: larger than %d bytes", maxKeyPEM)
	}
	for {
		var b *pem.Block
		b, data = pem.Decode(data)
		if b == nil {
			return nil, errors.New("private key: no PEM block of a private key")
		}
		var key any
		var err error
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			if b.Headers["DEK-Info"] != "" {
				return nil, errors.New("private key: it is encrypted")
			}
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("private key: it is encrypted")
		default:
			continue // "EC PARAMETERS" stands before the key in files made by openssl
		}
		if err != nil {
			return nil, errors.New("private key: the PEM block does not hold a readable key")
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("private key: %T cannot sign", key)
		}
		return signer, nil
	}
}

// EncodeKeyPEM gives the key as PKCS#8 PEM.
func EncodeKeyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// samePublic compares two public keys.
func samePublic(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}
