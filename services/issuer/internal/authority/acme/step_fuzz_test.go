package acme

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/authoritytest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// script is a CA that answers what it is told: one answer after the other, the last one for ever. An answer is the first
// digit of its status, then the body.
type script [][]byte

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	const directory = `{"newNonce":"https://ca.example/nonce","newAccount":"https://ca.example/account","newOrder":"https://ca.example/order","revokeCert":"https://ca.example/revoke"}`
	header := http.Header{"Replay-Nonce": {"bm9uY2U"}, "Location": {"https://ca.example/order/1"}, "Content-Type": {"application/json"}}
	status, body := http.StatusOK, []byte(directory)
	if r.Method == http.MethodPost {
		body = nil
		if len(*s) > 0 {
			body = (*s)[0]
			if len(*s) > 1 {
				*s = (*s)[1:]
			}
		}
		if len(body) > 0 {
			if body[0] == '4' || body[0] == '5' {
				status = 100 * int(body[0]-'0')
			}
			body = body[1:]
		}
	}
	return &http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: header, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

// FuzzStep lets a CA answer anything: nothing goes on that is not in order, and what is wrong is told in plain words.
func FuzzStep(f *testing.F) {
	csr := authoritytest.NewCSR(f, pki.ECDSAP256, "a.example.com")
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		f.Fatal(err)
	}
	const (
		order  = `{"status":"pending","identifiers":[{"type":"dns","value":"a.example.com"}],"authorizations":["https://ca.example/authz/1"],"finalize":"https://ca.example/finalize/1"}`
		authz  = `{"status":"pending","identifier":{"type":"dns","value":"a.example.com"},"challenges":[{"type":"http-01","status":"pending","url":"https://ca.example/chall/1","token":"evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"}]}`
		failed = `{"status":"invalid","identifier":{"type":"dns","value":"a.example.com"},"challenges":[{"type":"http-01","status":"invalid","error":{"type":"urn:ietf:params:acme:error:unauthorized","detail":"a\u0000b"}}]}`
		valid  = `{"status":"valid","certificate":"https://ca.example/cert/1"}`
	)
	chain := string(chainFor(f, csr, noon, profile.ServerAuth))
	f.Add(uint8(0), true, []byte("2"+order))
	f.Add(uint8(0), false, []byte(`2{"orders":["https://ca.example/order/9"]}`+"\x002"+order))
	f.Add(uint8(0), true, []byte(`4{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"no","subproblems":[{"type":"x","identifier":{"value":"y"}}]}`))
	f.Add(uint8(1), false, []byte("2"+order+"\x002"+authz))
	f.Add(uint8(1), false, []byte("2"+strings.Replace(order, "pending", "ready", 1)))
	f.Add(uint8(1), false, []byte("2"+strings.Replace(order, "pending", "invalid", 1)+"\x002"+failed))
	f.Add(uint8(2), true, []byte("2"+valid+"\x002"+chain))
	f.Add(uint8(2), false, []byte("2"+strings.Replace(order, "pending", "processing", 1)))
	f.Add(uint8(2), false, []byte(`5<html>busy</html>`))
	f.Fuzz(func(t *testing.T, state uint8, fresh bool, answers []byte) {
		ca, err := New(Config{
			Settings: authority.ACME{Directory: "https://ca.example/dir"}, Key: key,
			Account:   authority.Account{URL: "https://ca.example/account/1", Orders: "https://ca.example/orders/1"},
			Save:      func(context.Context, authority.Account) error { return nil },
			Taken:     func(context.Context, []string) (map[string]bool, error) { return nil, nil },
			UserAgent: "sallyport/test", Now: func() time.Time { return noon },
		})
		if err != nil {
			t.Fatal(err)
		}
		played := script(bytes.SplitN(answers, []byte{0}, 6))
		ca.shared.base = &played
		p, err := ca.Step(t.Context(), authority.Work{
			CSR: csr, Fresh: fresh,
			Request: issuance.Request{ID: "r1", Names: csr.Names, State: []issuance.State{issuance.Ordering, issuance.Ordered, issuance.Finalizing}[state%3],
				Order: issuance.Order{URL: "https://ca.example/order/1", Finalize: "https://ca.example/finalize/1"}},
			Challenges: []issuance.Challenge{{ID: "c2", URL: "https://ca.example/chall/2", Authorization: "https://ca.example/authz/2", State: issuance.Triggered}},
		})
		trouble := p.Trouble
		if err != nil && !errors.As(err, &trouble) {
			t.Fatalf("%v is no fault", err)
		}
		if trouble != nil && (trouble.Reason == "" || trouble.Kind == fault.Internal || !plainText(trouble.Error())) {
			t.Fatalf("told is %+v: %q", trouble, trouble.Error())
		}
		for _, c := range p.Present {
			if c.Domain != "a.example.com" || !tokenPattern.MatchString(c.Token) || !strings.HasPrefix(c.KeyAuthorization, c.Token+".") || !strings.HasPrefix(c.URL, "https://") {
				t.Fatalf("presented is %+v", c)
			}
		}
		if o := p.Order; o.URL != "" && !strings.HasPrefix(o.URL, "https://") || o.Finalize != "" && !strings.HasPrefix(o.Finalize, "https://") {
			t.Fatalf("the order is %+v", o)
		}
		if p.Issued != nil && len(p.Issued.Chain) == 0 {
			t.Fatal("issued is nothing")
		}
	})
}

// plainText is what may stand in a log, a record or a terminal.
func plainText(s string) bool {
	return utf8.ValidString(s) && len(s) <= 4*maxDetail && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
