package acme

import (
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/authoritytest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/internalca"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, " 120 ": 2 * time.Minute, "-1": 0, "1.5": 0, "soon": 0,
		"99999999999999999999":          0,
		"9223372036854775807":           100 * 365 * 24 * time.Hour,
		"Mon, 01 Jun 2026 12:01:00 GMT": time.Minute,
		"Mon, 01 Jun 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, noon); got != want {
			t.Errorf("%q: got %s, want %s", value, got, want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "5", "-5", "Mon, 01 Jun 2026 12:01:00 GMT", "9223372036854775807", "1e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := retryAfter(s, noon); d < 0 || d > 100*365*24*time.Hour {
			t.Errorf("%q: %s", s, d)
		}
	})
}

func TestNextLink(t *testing.T) {
	for want, links := range map[string][]string{
		"":                    {"", "<>;rel=next", `<https://a/1>;rel="up"`, "https://a/1;rel=next", `<https://a/1>`},
		"https://a/2":         {`<https://a/dir>;rel="index"`, `<https://a/2>;rel="next"`},
		"https://a/3":         {`<https://a/dir>; rel="index", <https://a/3>; title="x"; rel=NEXT`},
		"https://a/page?no=4": {`<https://a/page?no=4>;rel="next"`},
	} {
		if got := nextLink(links); got != want {
			t.Errorf("%q: got %q, want %q", links, got, want)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"orders":["https://a/1"]}`))
	f.Add([]byte(`{"orders":null}`))
	f.Add([]byte(`{"suggestedWindow":{"start":"2026-01-01T00:00:00Z","end":"2026-01-02T00:00:00Z"},"explanationURL":"https://ca.example/why"}`))
	f.Add([]byte(`{"suggestedWindow":{"start":"0001-01-01T00:00:00Z","end":"9999-12-31T23:59:59Z"}}`))
	f.Add([]byte(`{"type":"urn:ietf:params:acme:error:rateLimited","detail":"a\u0000b\nc","subproblems":[{"identifier":{"value":"x"}}]}`))
	f.Add([]byte("<https://a/2>;rel=\"next\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := parseWindow(b); err == nil && (!w.End.After(w.Start) || w.Start.Year() < 2000) {
			t.Errorf("window %+v", w)
		}
		if urls, err := parseOrders(b); err == nil && len(urls) > maxOrderURLs {
			t.Errorf("%d URLs", len(urls))
		}
		p := readProblem(400, http.Header{"Retry-After": {string(b)}}, b, noon)
		text := p.Error()
		if !utf8.ValidString(text) || len(text) > 2*maxDetail || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("message %q", text)
		}
		nextLink([]string{string(b)})
	})
}

func TestRenewalID(t *testing.T) {
	for _, c := range []struct {
		serial *big.Int
		want   string
	}{
		// The example of RFC 9773 section 4.1.
		{big.NewInt(0x87654321), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"},
		{big.NewInt(0x7f), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.fw"},
	} {
		aki, err := base64.RawURLEncoding.DecodeString("aYhba4dGQEHhs3uEe6CuLN4ByNQ")
		if err != nil {
			t.Fatal(err)
		}
		if got := RenewalID(&x509.Certificate{AuthorityKeyId: aki, SerialNumber: c.serial}); got != c.want {
			t.Errorf("%x: got %s, want %s", c.serial, got, c.want)
		}
	}
	if got := RenewalID(&x509.Certificate{SerialNumber: big.NewInt(1)}); got != "" {
		t.Errorf("without a key identifier: %s", got)
	}
}

// chainFor makes a chain as a CA delivers it.
func chainFor(t testing.TB, csr *pki.CSR, now time.Time, usage profile.Usage) []byte {
	t.Helper()
	spec := authority.Spec{Name: "corp", Internal: &authority.Internal{}}
	if err := spec.Check(); err != nil {
		t.Fatal(err)
	}
	m, err := internalca.Create(*spec.Internal, now)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := internalca.Open(m.Chain, m.IssuingKey, "", func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(csr, []profile.Usage{usage}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseChainDER(append(issued.Chain, m.Chain[1]))
	if err != nil {
		t.Fatal(err)
	}
	return pki.EncodeChainPEM(certs)
}

func TestCheckChain(t *testing.T) {
	csr := authoritytest.NewCSR(t, pki.ECDSAP256, "a.example.com", "b.example.com")
	good := chainFor(t, csr, noon, profile.ServerAuth)
	if issued, err := checkChain(good, csr, noon); err != nil || len(issued.Chain) != 3 {
		t.Fatalf("got %v, %v", issued, err)
	}
	other := *csr
	other.Names = pki.Names{DNS: []string{"a.example.com"}}
	for name, c := range map[string]struct {
		data  []byte
		csr   *pki.CSR
		now   time.Time
		words string
	}{
		"fewer names asked":  {good, &other, noon, "asked for was"},
		"expired":            {good, csr, noon.Add(2 * time.Hour), "the clock says"},
		"from tomorrow":      {good, csr, noon.Add(-time.Hour), "the clock says"},
		"client certificate": {chainFor(t, csr, noon, profile.ClientAuth), csr, noon, "not for serverAuth"},
		"a CA first":         {rest(good), csr, noon, "another key"},
	} {
		if _, err := checkChain(c.data, c.csr, c.now); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: got %v, want %q", name, err, c.words)
		}
	}
}

func FuzzCheckChain(f *testing.F) {
	csr := authoritytest.NewCSR(f, pki.ECDSAP256, "a.example.com")
	good := chainFor(f, csr, noon, profile.ServerAuth)
	f.Add(good)
	f.Add(rest(good))
	f.Add(first(good))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		issued, err := checkChain(b, csr, noon)
		if err == nil && issued.SPKI != csr.SPKIHash {
			t.Error("a chain for another key was taken")
		}
	})
}
