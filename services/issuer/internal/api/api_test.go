package api

import (
	"testing"

	"google.golang.org/protobuf/proto"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

func TestMethodsAreAllOfThem(t *testing.T) {
	all := Methods()
	var names []string
	for _, m := range issuerv1.IssuerService_ServiceDesc.Methods {
		names = append(names, m.MethodName)
	}
	for _, m := range issuerv1.IssuerService_ServiceDesc.Streams {
		names = append(names, m.StreamName)
	}
	for _, name := range names {
		full := "/" + issuerv1.IssuerService_ServiceDesc.ServiceName + "/" + name
		if len(all[full]) == 0 {
			t.Errorf("%s has no roles", full)
		}
		delete(all, full)
	}
	if len(all) != 0 {
		t.Errorf("stale: %v", all)
	}
}

func TestStates(t *testing.T) {
	for _, s := range issuance.Machine.States() {
		out, ok := states[s]
		if !ok || out == issuerv1.RequestState_REQUEST_STATE_UNSPECIFIED {
			t.Errorf("state %s has no name outside", s)
		}
		if back, ok := stateOf(out); !ok || back != s {
			t.Errorf("state %s comes back as %s", s, back)
		}
	}
	if len(states) != len(issuerv1.RequestState_name)-1 {
		t.Errorf("%d states, the protocol has %d", len(states), len(issuerv1.RequestState_name)-1)
	}
}

func TestTokens(t *testing.T) {
	q := question("requests", "shop")
	text := writeToken(q, store.Position{Created: 7, ID: "r"})
	got, err := readToken[store.Position](text, q)
	if err != nil || *got != (store.Position{Created: 7, ID: "r"}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := readToken[store.Position](text, question("requests", "bank")); err == nil {
		t.Error("a token of another question was taken")
	}
	if got, err := readToken[store.Position]("", q); got != nil || err != nil {
		t.Errorf("no token: %v, %v", got, err)
	}
}

func FuzzToken(f *testing.F) {
	f.Add(writeToken(question("x"), "name"))
	f.Add("e30")
	f.Add("!")
	f.Fuzz(func(_ *testing.T, s string) {
		_, _ = readToken[string](s, question("x"))
		_, _ = readToken[store.Position](s, question("x"))
	})
}

func FuzzSubmit(f *testing.F) {
	b, err := proto.Marshal(&issuerv1.SubmitRequestRequest{RequestId: "r", Identity: "shop", Profile: "web", Csr: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req issuerv1.SubmitRequestRequest
		if proto.Unmarshal(b, &req) != nil {
			return
		}
		w, err := wishIn(&req)
		if err == nil && (len(w.CSR) > maxCSR || w.Expected.Len() == 0 || w.ID == "") {
			t.Errorf("taken: %+v", w)
		}
	})
}

func FuzzApply(f *testing.F) {
	b, err := proto.Marshal(&issuerv1.Authority{Name: "x", Kind: &issuerv1.Authority_Acme{Acme: &issuerv1.AcmeAuthority{Directory: "https://ca.example/dir", CaBundlePem: "-----BEGIN"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		var a issuerv1.Authority
		if proto.Unmarshal(b, &a) == nil {
			if s, err := specIn(&a); err == nil {
				_ = s.Check()
			}
		}
		var p issuerv1.Profile
		if proto.Unmarshal(b, &p) == nil {
			_, _ = profileIn(&p)
		}
	})
}
