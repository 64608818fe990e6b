package secrets

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// TestSearcher finds a key in every form in which a program may write it, in the midst of other things.
func TestSearcher(t *testing.T) {
	for range 20 { // leading zeros and the like
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		known, err := keyOf("key", "a host", key)
		must(t, err)
		s := newSearcher(known)
		for how, text := range written(t, key) {
			noise := make([]byte, 1000)
			rand.Read(noise)
			if found := s.find(slices.Concat(noise, []byte(text), noise)); len(found) == 0 {
				t.Errorf("not found: %s: %q", how, text)
			}
		}
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		for how, text := range written(t, other) {
			if found := s.find([]byte(text)); len(found) > 0 {
				t.Errorf("found in another key: %s", how)
			}
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	known, err := keyOf("key", "a host", key)
	must(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if found := newSearcher(known).find(text); len(found) < 3 {
		t.Errorf("of an RSA key only %d parts were found", len(found))
	}
}

// written is a key as programs write it.
func written(t *testing.T, key *ecdsa.PrivateKey) map[string]string {
	t.Helper()
	scalar, err := key.Bytes()
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	sec1, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	escaped, err := json.Marshal(text)
	must(t, err)
	list, err := json.Marshal(map[string]any{"d": scalar, "der": pkcs8})
	must(t, err)
	var colons []string
	for _, b := range scalar {
		colons = append(colons, fmt.Sprintf("%02x", b))
	}
	var lines strings.Builder // as openssl prints it
	for i, c := range colons {
		if i%15 == 0 {
			lines.WriteString("\n    ")
		}
		lines.WriteString(c + ":")
	}
	return map[string]string{
		"raw": string(scalar), "PKCS#8": string(pkcs8), "SEC 1": string(sec1),
		"PEM": text, "PEM of SEC 1": string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})),
		"PEM of DOS":  strings.ReplaceAll(text, "\n", "\r\n"),
		"PEM, quoted": fmt.Sprintf("%q", text), "PEM in JSON": string(escaped), "PEM, indented": strings.ReplaceAll(text, "\n", "\n      "),
		"JSON": string(list), "JWK": `{"kty":"EC","d":"` + base64.RawURLEncoding.EncodeToString(scalar) + `"}`,
		"hex": hex.EncodeToString(scalar), "HEX": strings.ToUpper(hex.EncodeToString(scalar)), "hex of PKCS#8": hex.EncodeToString(pkcs8),
		"openssl": lines.String(), "%v": fmt.Sprintf("%v", scalar), "%q": fmt.Sprintf("%q", scalar), "%x of the number": fmt.Sprintf("%x", new(big.Int).SetBytes(scalar)),
		"%v of the key": fmt.Sprintf("%v", key), "%+v of the key": fmt.Sprintf("%+v", *key), "%d": fmt.Sprintf("%d", new(big.Int).SetBytes(scalar)),
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
