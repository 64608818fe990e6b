package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, key *ecdsa.PrivateKey, dns ...string) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), DNSNames: dns}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func request(t testing.TB, key *ecdsa.PrivateKey, dns ...string) rollout.Assignment {
	t.Helper()
	names, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, names)
	if err != nil {
		t.Fatal(err)
	}
	return rollout.Assignment{ID: "a", Generation: 1, Attempt: 1, CSR: csr}
}

func TestAnswer(t *testing.T) {
	key := newKey(t)
	a := request(t, key, "a.example.com", "b.example.com")
	leaf := sign(t, key, "a.example.com", "b.example.com")
	ca := sign(t, newKey(t))
	issued := func(chain ...[]byte) *issuerv1.Request {
		return &issuerv1.Request{State: issuerv1.RequestState_REQUEST_STATE_ISSUED, Chain: chain}
	}
	for what, r := range map[string]*issuerv1.Request{
		"leaf and CA": issued(leaf, ca), "leaf alone": issued(leaf), "a name more": issued(sign(t, key, "a.example.com", "b.example.com", "c.example.com")),
	} {
		got, err := answer(a, r)
		if err != nil || got.Certificate.Fingerprint != string(pki.FingerprintOf(r.GetChain()[0])) || got.Certificate.NotAfter.IsZero() || got.Ended {
			t.Errorf("%s: %+v %v", what, got, err)
		}
	}
	many := make([][]byte, 11)
	for i := range many {
		many[i] = leaf
	}
	for what, r := range map[string]*issuerv1.Request{
		"no chain":          issued(),
		"noise":             issued([]byte{1, 2, 3}),
		"another key":       issued(sign(t, newKey(t), "a.example.com", "b.example.com")),
		"a name less":       issued(sign(t, key, "a.example.com")),
		"the CA first":      issued(ca, leaf),
		"too long":          issued(many...),
		"a huge one":        issued(leaf, make([]byte, 16<<10+1)),
		"noise behind leaf": issued(leaf, []byte("x")),
	} {
		if _, err := answer(a, r); fault.KindOf(err) != fault.Permanent || fault.Of(err).Reason != rollout.ReasonChainMismatch {
			t.Errorf("%s: %v", what, err)
		}
	}
	for state, want := range map[issuerv1.RequestState]bool{
		issuerv1.RequestState_REQUEST_STATE_REFUSED: true, issuerv1.RequestState_REQUEST_STATE_CANCELLED: true,
		issuerv1.RequestState_REQUEST_STATE_ACCEPTED: false, issuerv1.RequestState_REQUEST_STATE_ORDERED: false, 99: false,
	} {
		got, err := answer(a, &issuerv1.Request{State: state, Reason: "X", Message: "m"})
		if err != nil || got.Ended != want || got.Certificate.Fingerprint != "" || got.Reason != "X" {
			t.Errorf("%v: %+v %v", state, got, err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	key := newKey(f)
	a := request(f, key, "a.example.com")
	leaf := sign(f, key, "a.example.com")
	f.Add(leaf, []byte{})
	f.Add([]byte{}, leaf)
	f.Add([]byte{0x30, 0x82}, []byte{0x30})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		got, err := answer(a, &issuerv1.Request{State: issuerv1.RequestState_REQUEST_STATE_ISSUED, Chain: [][]byte{first, second}})
		if err != nil {
			return
		}
		cert, err := x509.ParseCertificate(first)
		if err != nil || !key.PublicKey.Equal(cert.PublicKey) || got.Certificate.Fingerprint != string(pki.FingerprintOf(first)) {
			t.Fatalf("a chain that is not the CSR's was taken: %v", err)
		}
	})
}

func TestKeyTypes(t *testing.T) {
	for number := range typev1.KeyType_name {
		kt := typev1.KeyType(number)
		ours := ParseKeyType(kt)
		if kt != typev1.KeyType_KEY_TYPE_UNSPECIFIED && (ours == "unknown" || FormatKeyType(ours) != kt) {
			t.Errorf("%v is %q, which is %v", kt, ours, FormatKeyType(ours))
		}
	}
	if ParseKeyType(0) != "" || ParseKeyType(99) != "unknown" || FormatKeyType("ed25519") != 0 {
		t.Error("what is not known")
	}
}
