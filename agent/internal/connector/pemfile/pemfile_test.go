package pemfile

import (
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestMode(t *testing.T) {
	for text, want := range map[string]Mode{"0640": 0o640, "600": 0o600, "0": 0} {
		var m Mode
		if err := m.UnmarshalText([]byte(text)); err != nil || m != want {
			t.Errorf("%s: %o, %v", text, m, err)
		}
	}
	for _, text := range []string{"", "rw-r-----", "0888", "10000", "-1"} {
		var m Mode
		if err := m.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	for m, ok := range map[Mode]bool{0: true, 0o600: true, 0o640: true, 0o440: true, 0o644: false, 0o660: false, 0o700: false, 0o040: false} {
		if err := (Config{Allow: []string{"/x"}, KeyMode: m}).Validate(); (err == nil) != ok {
			t.Errorf("%o: %v", m, err)
		}
	}
}

// FuzzSplit reads any file as an installed one.
func FuzzSplit(f *testing.F) {
	pair := connectortest.NewCA(f).Pair(f, "x.test")
	key, err := pki.EncodeKeyPEM(pair.Key())
	if err != nil {
		f.Fatal(err)
	}
	chain := pki.EncodeChainPEM(pair.Chain())
	f.Add(chain)
	f.Add(append(key, chain...))
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, key, err := split(data)
		if err != nil && (certs != nil || key != nil) {
			t.Error("half of a file was taken")
		}
	})
}
