package api

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"google.golang.org/protobuf/proto"
)

func refusedToken(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.InvalidArgument && f.Field == "page_token"
}

func TestTokens(t *testing.T) {
	req := &inventoryv1.ListCertificatesRequest{Owner: "ann", PageSize: 5}
	key := store.CertificateKey{NotAfter: 1 << 60, Fingerprint: "ab"}
	token, err := encodeToken(req, key)
	if err != nil {
		t.Fatal(err)
	}
	next := proto.Clone(req).(*inventoryv1.ListCertificatesRequest)
	next.PageSize, next.PageToken = 7, token
	if got, err := decodeToken[store.CertificateKey](next, token); err != nil || got != key {
		t.Errorf("got %v, %v", got, err)
	}
	next.Owner = "bob"
	if _, err := decodeToken[store.CertificateKey](next, token); !refusedToken(err) {
		t.Errorf("for other conditions: %v", err)
	}
	if _, err := decodeToken[store.FindingKey](&inventoryv1.ListFindingsRequest{Owner: "ann"}, token); !refusedToken(err) {
		t.Errorf("for another call: %v", err)
	}
	for _, garbage := range []string{"x", "====", token[1:], token + "A", base64.RawURLEncoding.EncodeToString([]byte(`{}`)), strings.Repeat("A", 5000)} {
		if _, err := decodeToken[store.CertificateKey](req, garbage); !refusedToken(err) {
			t.Errorf("%.20s: %v", garbage, err)
		}
	}
}

func FuzzToken(f *testing.F) {
	req := &inventoryv1.ListHostsRequest{}
	token, err := encodeToken(req, "web-1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Add("e30")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := decodeToken[string](req, text); err != nil && !refusedToken(err) {
			t.Fatal(err)
		}
		if _, err := decodeToken[store.FindingKey](&inventoryv1.ListFindingsRequest{}, text); err != nil && !refusedToken(err) {
			t.Fatal(err)
		}
	})
}

// A page ends early rather than become larger than clients take.
func TestPagesAreBounded(t *testing.T) {
	req := &inventoryv1.ListIdentitiesRequest{}
	items := make([]int, 10)
	for i := range items {
		items[i] = i
	}
	message := func(int) *inventoryv1.Identity {
		return &inventoryv1.Identity{Purpose: strings.Repeat("x", maxResponse/3)}
	}
	out, next, err := page(req, 9, items, message, func(i int) int { return i })
	if err != nil || len(out) != 2 || next == "" {
		t.Fatalf("%d items, token %q, %v", len(out), next, err)
	}
	if after, err := decodeToken[int](req, next); err != nil || after != 1 {
		t.Errorf("after %d, %v", after, err)
	}
	huge := func(int) *inventoryv1.Identity {
		return &inventoryv1.Identity{Purpose: strings.Repeat("x", maxResponse+1)}
	}
	if out, next, err := page(req, 9, items, huge, func(i int) int { return i }); err != nil || len(out) != 1 || next == "" {
		t.Errorf("a page has at least one: %d, %v", len(out), err)
	}
}

func TestEveryRuleHasItsEnum(t *testing.T) {
	for n := range inventoryv1.Rule_name {
		r := inventoryv1.Rule(n)
		if r == inventoryv1.Rule_RULE_UNSPECIFIED {
			continue
		}
		name, ok := rules[r]
		if !ok || ruleMessage(name) != r || "RULE_"+strings.ToUpper(string(name)) != r.String() {
			t.Errorf("%s: is %q", r, name)
		}
	}
}
