package pki

import (
	"bytes"
	"crypto/x509"
	"testing"
)

// FuzzParseChainDER: whatever is taken for certificates can be told about, held against a key, and put in order.
func FuzzParseChainDER(f *testing.F) {
	leaf, inter, root, k := hierarchy(f)
	f.Add(leaf.Raw, inter.Raw, root.Raw)
	f.Add(root.Raw, leaf.Raw, leaf.Raw)
	f.Add(leaf.Raw[:len(leaf.Raw)-1], inter.Raw, []byte{})
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		ders := [][]byte{a, b, c}
		chain, err := ParseChainDER(ders)
		if err != nil {
			return
		}
		for i, cert := range chain {
			if !bytes.Equal(cert.Raw, ders[i]) {
				t.Fatalf("certificate %d has changed", i)
			}
			if facts := Facts(cert); facts.Fingerprint != FingerprintOf(cert.Raw) {
				t.Fatalf("facts of another: %+v", facts)
			}
			_, _ = Weak(cert.PublicKey)
			_ = KeyTypeOf(cert.PublicKey)
			if SPKIHash(cert.PublicKey) != SPKIHash(k.Public()) && CheckPair([]*x509.Certificate{cert}, k) == nil {
				t.Fatal("a pair of two that do not belong together")
			}
		}
		ordered, err := OrderChain(chain)
		if err != nil {
			return
		}
		if len(ordered) == 0 || len(ordered) > len(chain) {
			t.Fatalf("%d certificates in order, of %d", len(ordered), len(chain))
		}
		for i := range ordered[1:] {
			if err := ordered[i].CheckSignatureFrom(ordered[i+1]); err != nil {
				t.Fatalf("certificate %d is not signed by the next: %v", i, err)
			}
		}
	})
}
