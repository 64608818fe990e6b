package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

// FuzzParseKeyPEM reads any file as a private key: one that is taken signs, and comes to the same when written; a refusal does not
// repeat what stands there, in whatever key it may be.
func FuzzParseKeyPEM(f *testing.F) {
	for _, kt := range []KeyType{ECDSAP256, ECDSAP384, RSA2048} {
		key, err := GenerateKey(kt)
		if err != nil {
			f.Fatal(err)
		}
		text, err := EncodeKeyPEM(key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(append(EncodeChainPEM(nil), bytes.Replace(text, []byte("PRIVATE KEY"), []byte("ENCRYPTED PRIVATE KEY"), 2)...))
		f.Add(append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), text...))
		f.Add(text[:len(text)/2])
		f.Add(append(bytes.Repeat([]byte("#\n"), maxKeyPEM/2), text...))
	}
	key, err := GenerateKey(RSA2048)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: der}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := ParseKeyPEM(data)
		if err != nil {
			if key != nil || !strings.HasPrefix(err.Error(), "private key: ") || len(err.Error()) > 120 {
				t.Fatalf("%v, %v", key, err)
			}
			return
		}
		if len(data) > maxKeyPEM {
			t.Fatalf("%d bytes were taken", len(data))
		}
		text, err := EncodeKeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseKeyPEM(text)
		if err != nil || !samePublic(again.Public(), key.Public()) {
			t.Fatalf("written and read again: %v", err)
		}
	})
}
