package acme

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/authoritytest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
)

// lab is a CA, a host that answers its challenges, and an account as it is stored.
type lab struct {
	*pebbletest.Pebble
	t        *testing.T
	host     *host
	key      crypto.Signer
	settings authority.ACME
	secrets  map[string]string

	mu      sync.Mutex
	account authority.Account
	taken   map[string]bool
}

func newLab(t *testing.T, o pebbletest.Options) *lab {
	t.Helper()
	h := newHost(t)
	o.HTTPPort = h.port
	p, err := pebbletest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return &lab{
		Pebble: p, t: t, host: h, key: key, taken: map[string]bool{}, secrets: map[string]string{},
		settings: authority.ACME{Directory: p.Directory(), CABundlePEM: p.CABundlePEM(), TermsAgreed: true, Contacts: []string{"mailto:pki@example.com"}},
	}
}

// open gives the CA as a new process has it.
func (l *lab) open() *CA {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	ca, err := New(Config{
		Settings: l.settings, Key: l.key, Account: l.account,
		Save: func(_ context.Context, a authority.Account) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.account = a
			return nil
		},
		Taken: func(_ context.Context, urls []string) (map[string]bool, error) { return l.taken, nil },
		Secrets: func(name string) ([]byte, error) {
			text, ok := l.secrets[name]
			if !ok {
				return nil, fault.New(fault.Precondition, ReasonSecret, "no such file")
			}
			return []byte(text), nil
		},
		UserAgent: "sallyport/test", Now: time.Now,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(ca.Close)
	return ca
}

func (l *lab) harness() authoritytest.Harness {
	roots, err := l.Roots(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return authoritytest.Harness{
		Open: func() authority.Authority { return l.open() }, Roots: roots, Issued: l.Issued, Public: true, ACMEProfile: "default",
		Answer: func(c issuance.Challenge) { l.host.answer(c.Token, c.KeyAuthorization) },
	}
}

// host answers challenges.
type host struct {
	port    int
	mu      sync.Mutex
	answers map[string]string
}

func newHost(t *testing.T) *host {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{port: lis.Addr().(*net.TCPAddr).Port, answers: map[string]string{}}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return h
}

func (h *host) answer(token, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers["/.well-known/acme-challenge/"+token] = text
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	text, ok := h.answers[r.URL.Path]
	h.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, text)
}

func TestConformance(t *testing.T) {
	authoritytest.Run(t, func(t *testing.T) authoritytest.Harness { return newLab(t, pebbletest.Options{}).harness() })
}

func TestConformanceWithBadNonces(t *testing.T) {
	authoritytest.Run(t, func(t *testing.T) authoritytest.Harness {
		return newLab(t, pebbletest.Options{BadNonces: 20}).harness()
	})
}

func TestConformanceWithReusedAuthorizations(t *testing.T) {
	authoritytest.Run(t, func(t *testing.T) authoritytest.Harness {
		return newLab(t, pebbletest.Options{AuthorizationReuse: 100}).harness()
	})
}

// request drives one request by hand.
type request struct {
	*lab
	ca         *CA
	csr        *pki.CSR
	r          issuance.Request
	challenges []issuance.Challenge
	replaces   *x509.Certificate
	fresh      bool
	last       authority.Progress
}

func (l *lab) request(dns ...string) *request {
	csr := authoritytest.NewCSR(l.t, pki.ECDSAP256, dns...)
	return &request{lab: l, ca: l.open(), csr: csr, r: issuance.Request{
		ID: "r1", State: issuance.Accepted, Names: csr.Names, Order: issuance.Order{Profile: "default"},
	}}
}

func (q *request) step() (authority.Progress, error) {
	return q.ca.Step(q.t.Context(), authority.Work{Request: q.r, CSR: q.csr, Challenges: slices.Clone(q.challenges), Replaces: q.replaces, Fresh: q.fresh})
}

func (q *request) apply(p authority.Progress) {
	q.t.Helper()
	q.r.Order = p.Order
	for _, c := range p.Present {
		q.host.answer(c.Token, c.KeyAuthorization)
		c.State = issuance.Ready
		q.challenges = append(q.challenges, c)
	}
	for _, id := range p.Trigger {
		for i := range q.challenges {
			if q.challenges[i].ID == id {
				q.challenges[i].State = issuance.Triggered
			}
		}
	}
	if p.Event == "" {
		q.fresh = p.Dropped != ""
		return
	}
	next, err := issuance.Machine.Next(q.r.State, p.Event)
	if err != nil {
		q.t.Fatal(err)
	}
	q.r.State, q.fresh = next, p.Event == issuance.BeginOrder || p.Event == issuance.BeginFinalize
}

// until steps until the request is in a state.
func (q *request) until(s issuance.State) authority.Progress {
	q.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	var last authority.Progress
	for q.r.State != s {
		p, err := q.step()
		if err != nil {
			q.t.Fatalf("in %s: %v", q.r.State, err)
		}
		if time.Now().After(deadline) {
			q.t.Fatalf("still %s", q.r.State)
		}
		q.apply(p)
		last = p
	}
	q.last = last
	return last
}

// untilTriggered steps until the CA is about to be told that the host answers.
func (q *request) untilTriggered() {
	q.t.Helper()
	q.until(issuance.Ordered)
	for len(q.challenges) == 0 || q.challenges[0].State != issuance.Triggered {
		p, err := q.step()
		if err != nil {
			q.t.Fatal(err)
		}
		q.apply(p)
	}
}

func (q *request) fails(want fault.Kind, reason string) *fault.Error {
	q.t.Helper()
	p, err := q.step()
	f := fault.Of(err)
	if f == nil || f.Kind != want || f.Reason != reason {
		q.t.Fatalf("in %s: got %+v and %v (%+v), want %s %s", q.r.State, p, err, f, want, reason)
	}
	return f
}

func TestErrorsOfTheCA(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  pebbletest.Fault
		kind   fault.Kind
		reason string
		after  time.Duration
		words  string
	}{
		{"rate limited", pebbletest.Fault{Status: 429, Type: "rateLimited", Detail: "too many", RetryAfter: "3600"}, fault.Transient, ReasonRateLimited, time.Hour, "too many"},
		{"a proxy's 429", pebbletest.Fault{Status: 429, Body: "<html>", RetryAfter: "5"}, fault.Transient, ReasonRateLimited, 5 * time.Second, "429"},
		{"unavailable", pebbletest.Fault{Status: 503, Type: "serverInternal", Detail: "maintenance", RetryAfter: "120"}, fault.Transient, ReasonUnavailable, 2 * time.Minute, "maintenance"},
		{"HTML 502", pebbletest.Fault{Status: 502, Body: "<html><h1>Bad Gateway</h1></html>"}, fault.Transient, ReasonUnavailable, 0, "502"},
		{"a proxy's 403", pebbletest.Fault{Status: 403, Body: "<html>blocked by policy</html>"}, fault.Transient, ReasonUnavailable, 0, "403"},
		{"not JSON", pebbletest.Fault{Status: 200, Body: "<html>"}, fault.Transient, ReasonUnreachable, 0, "unmarshal"},
		{"huge", pebbletest.Fault{Status: 200, Body: strings.Repeat("x", 2<<20)}, fault.Transient, ReasonUnreachable, 0, "larger"},
		{"rejected name", pebbletest.Fault{Status: 400, Type: "rejectedIdentifier", Detail: "not this name"}, fault.Permanent, ReasonRejectedIdentifier, 0, "not this name"},
		{"account", pebbletest.Fault{Status: 403, Type: "unauthorized", Detail: "account deactivated"}, fault.Permanent, ReasonAccountRefused, 0, "deactivated"},
		{"profile", pebbletest.Fault{Status: 400, Type: "invalidProfile", Detail: "no such profile"}, fault.Permanent, ReasonInvalidProfile, 0, "no such profile"},
		{"user action", pebbletest.Fault{Status: 403, Type: "userActionRequired", Detail: "read the terms"}, fault.Precondition, ReasonTerms, 0, "read the terms"},
		{"something new", pebbletest.Fault{Status: 400, Type: "neverHeardOf", Detail: "hm"}, fault.Permanent, ReasonRefused, 0, "neverHeardOf: hm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, pebbletest.Options{})
			q := l.request("a.example.com")
			q.until(issuance.Ordering)
			c.fault.Path, c.fault.Times = pebbletest.NewOrder, 1
			l.Inject(c.fault)
			f := q.fails(c.kind, c.reason)
			if f.RetryAfter != c.after {
				t.Errorf("Retry-After %s, want %s", f.RetryAfter, c.after)
			}
			if !strings.Contains(f.Message, c.words) {
				t.Errorf("message %q, want %q in it", f.Message, c.words)
			}
			if c.kind != fault.Transient {
				return
			}
			q.fresh = false
			q.until(issuance.Issued)
			if n := l.Issued(); n != 1 {
				t.Errorf("%d certificates", n)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	q := l.request("a.example.com")
	l.Close()
	if f := q.fails(fault.Transient, ReasonUnreachable); !strings.Contains(f.Message, "127.0.0.1") {
		t.Errorf("message %q does not say what cannot be reached", f.Message)
	}
}

func TestForeignEndpointIsRefused(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	l.settings.CABundlePEM = newLab(t, pebbletest.Options{}).CABundlePEM()
	if f := l.request("a.example.com").fails(fault.Transient, ReasonUnreachable); !strings.Contains(f.Message, "certificate") {
		t.Errorf("message %q", f.Message)
	}
}

func TestNonceBurst(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	q := l.request("a.example.com")
	q.until(issuance.Ordering)
	l.Inject(pebbletest.Fault{Path: pebbletest.NewOrder, Times: 3, Status: 400, Type: "badNonce"})
	q.until(issuance.Issued)
}

// The answer to each call is lost after the CA has acted; the next process goes on.
func TestLostAnswers(t *testing.T) {
	for path, in := range map[string]issuance.State{
		pebbletest.NewAccount: issuance.Accepted, pebbletest.NewOrder: issuance.Ordering, pebbletest.Order: issuance.Ordered,
		pebbletest.Authorization: issuance.Ordered, pebbletest.Challenge: issuance.Ordered,
		pebbletest.Finalize: issuance.Finalizing, pebbletest.Certificate: issuance.Finalizing,
	} {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			l := newLab(t, pebbletest.Options{})
			q := l.request("a.example.com")
			l.Inject(pebbletest.Fault{Path: path, Times: 1, After: true, Status: 504, Body: "<html>504</html>"})
			lost := 0
			for q.r.State != issuance.Issued {
				p, err := q.step()
				if err != nil {
					if lost++; lost > 1 || q.r.State != in || fault.KindOf(err) != fault.Transient {
						t.Fatalf("in %s: %v", q.r.State, err)
					}
					q.fresh, q.ca = false, l.open()
					continue
				}
				q.apply(p)
			}
			if lost != 1 || l.Issued() != 1 {
				t.Errorf("%d answers lost, %d certificates", lost, l.Issued())
			}
		})
	}
}

func TestLostOrderIsTakenUp(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	other := l.request("other.example.com")
	other.until(issuance.Ordered)
	q := l.request("a.example.com", "b.example.com")
	q.until(issuance.Ordering)
	l.Inject(pebbletest.Fault{Path: pebbletest.NewOrder, Times: 1, After: true, Status: 504})
	_ = q.fails(fault.Transient, ReasonUnavailable)
	q.fresh = false
	before := l.Hits(pebbletest.NewOrder)
	p := q.until(issuance.Ordered)
	if !p.Adopted || l.Hits(pebbletest.NewOrder) != before {
		t.Errorf("adopted %v, %d more orders", p.Adopted, l.Hits(pebbletest.NewOrder)-before)
	}
	// Another request for the same names must not take the same order.
	l.taken[q.r.Order.URL] = true
	again := l.request("a.example.com", "b.example.com")
	again.until(issuance.Ordering)
	again.fresh = false
	if p := again.until(issuance.Ordered); p.Adopted || again.r.Order.URL == q.r.Order.URL {
		t.Error("an order was taken twice")
	}
	q.until(issuance.Issued)
	again.until(issuance.Issued)
}

// The host's second report takes the request from a worker that tells the CA to look at this very moment.
func TestValidationBegunByAnother(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	q := l.request("a.example.com")
	q.untilTriggered()
	if _, err := q.step(); err != nil { // tells it
		t.Fatal(err)
	}
	status := regexp.MustCompile(`"status": *"(ready|processing|valid)"`)
	before := func(body []byte) []byte { return status.ReplaceAll(body, []byte(`"status": "pending"`)) }
	l.Inject(pebbletest.Fault{Path: pebbletest.Order, Times: 1, Rewrite: before})
	l.Inject(pebbletest.Fault{Path: pebbletest.Authorization, Times: 1, Rewrite: before})
	told := l.Hits(pebbletest.Challenge)
	p, err := q.step()
	if err != nil || p.Event != "" || l.Hits(pebbletest.Challenge) != told+1 {
		t.Fatalf("got %+v and %v, told %d times more", p, err, l.Hits(pebbletest.Challenge)-told)
	}
	q.until(issuance.Issued)
	if n := l.Issued(); n != 1 {
		t.Errorf("%d certificates", n)
	}
	// What the CA refuses otherwise remains refused.
	other := l.request("b.example.com")
	other.untilTriggered()
	l.Inject(pebbletest.Fault{Path: pebbletest.Challenge, Times: 1, Status: 400, Type: "malformed", Detail: "no"})
	_ = other.fails(fault.Permanent, ReasonRefused)
}

func TestFailedValidation(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	q := l.request("a.example.com")
	q.until(issuance.Ordered)
	p, err := q.step()
	if err != nil {
		t.Fatal(err)
	}
	p.Present[0].KeyAuthorization = "something else"
	q.apply(p)
	for range 1000 {
		p, err = q.step()
		if err != nil {
			t.Fatal(err)
		}
		if p.Event != "" {
			break
		}
		q.apply(p)
	}
	if p.Event != issuance.Reorder || p.Trouble.Reason != ReasonValidation || !strings.Contains(p.Trouble.Message, "a.example.com") {
		t.Fatalf("got %+v, trouble %v", p, p.Trouble)
	}
	if p.Order.URL != "" || p.Order.Count != 1 {
		t.Errorf("order is %+v", p.Order)
	}
	q.challenges = nil
	q.apply(p)
	q.until(issuance.Issued)
	if q.r.Order.Count != 2 || l.Issued() != 1 {
		t.Errorf("%d orders, %d certificates", q.r.Order.Count, l.Issued())
	}
}

func TestOrderGone(t *testing.T) {
	gone := pebbletest.Fault{Path: pebbletest.Order, Times: 1, Status: 404, Type: "malformed", Detail: "no such order"}
	t.Run("before it was finalized", func(t *testing.T) {
		l := newLab(t, pebbletest.Options{})
		q := l.request("a.example.com")
		q.until(issuance.Ordered)
		l.Inject(gone)
		p, err := q.step()
		if err != nil || p.Event != issuance.Reorder {
			t.Fatalf("got %+v, %v", p, err)
		}
	})
	t.Run("after", func(t *testing.T) {
		l := newLab(t, pebbletest.Options{})
		q := l.request("a.example.com")
		q.until(issuance.Finalizing)
		q.fresh = false
		l.Inject(gone)
		_ = q.fails(fault.Permanent, ReasonOrderLost)
	})
}

func TestBlockedName(t *testing.T) {
	l := newLab(t, pebbletest.Options{BlockedDomains: []string{"blocked.example"}})
	q := l.request("blocked.example")
	q.until(issuance.Ordering)
	_ = q.fails(fault.Permanent, ReasonRejectedIdentifier)
}

func TestUnknownProfile(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	q := l.request("a.example.com")
	q.r.Order.Profile = "nonsense"
	q.until(issuance.Ordering)
	_ = q.fails(fault.Permanent, ReasonInvalidProfile)
}

func TestReplaces(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	first := l.request("a.example.com")
	p := first.until(issuance.Issued)
	old, err := x509.ParseCertificate(p.Issued.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if p.Issued.RenewalID != RenewalID(old) {
		t.Error("wrong renewal id")
	}
	second := l.request("a.example.com")
	second.replaces = old
	second.until(issuance.Issued)

	third := l.request("a.example.com")
	third.replaces = old
	third.until(issuance.Ordering)
	p, err = third.step()
	if err != nil || !strings.Contains(p.Dropped, "alreadyReplaced") || !p.Order.Plain || p.Event != "" {
		t.Fatalf("already replaced: got %+v, %v", p, err)
	}
	third.apply(p)
	third.until(issuance.Issued)
	if n := l.Issued(); n != 3 {
		t.Errorf("%d certificates", n)
	}
}

// A CA that was set up anew knows nothing of the certificate, and has no error of its own for that.
func TestReplacesWhatTheCADoesNotKnow(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	old := parse(t, newLab(t, pebbletest.Options{}).request("a.example.com").until(issuance.Issued).Issued.Chain)[0]
	q := l.request("a.example.com")
	q.replaces = old
	q.until(issuance.Ordering)
	p, err := q.step()
	if err != nil || !strings.Contains(p.Dropped, "does not know") || !p.Order.Plain {
		t.Fatalf("got %+v, %v", p, err)
	}
	q.apply(p)
	q.until(issuance.Issued)

	// An error that has nothing to do with it leaves it alone.
	next := l.request("a.example.com")
	next.replaces = parse(t, q.last.Issued.Chain)[0]
	next.until(issuance.Ordering)
	l.Inject(pebbletest.Fault{Path: pebbletest.NewOrder, Times: 1, Status: 500, Type: "serverInternal"})
	_ = next.fails(fault.Transient, ReasonUnavailable)
	next.until(issuance.Issued)
	if next.r.Order.Plain {
		t.Error("replaces was dropped")
	}
}

// A CA that fails on each order that names what it replaces must not keep a certificate from being renewed.
func TestReplacesThatTheCAFailsOn(t *testing.T) {
	for _, answer := range []pebbletest.Fault{
		{Path: pebbletest.NewOrder, Times: -1, Status: 500, Type: "serverInternal"},
		{Path: pebbletest.NewOrder, Times: -1, Status: 502, Body: "<html>502</html>"},
	} {
		l := newLab(t, pebbletest.Options{})
		old := parse(t, l.request("a.example.com").until(issuance.Issued).Issued.Chain)[0]
		q := l.request("a.example.com")
		q.replaces = old
		q.until(issuance.Ordering)
		l.Inject(answer)
		for ; q.r.Failures < stumbles; q.r.Failures++ {
			_ = q.fails(fault.Transient, ReasonUnavailable)
		}
		p, err := q.step()
		if err != nil || !strings.Contains(p.Dropped, "failed 4 times") || !p.Order.Plain || p.Event != "" {
			t.Fatalf("got %+v, %v", p, err)
		}
		l.Heal()
		q.apply(p)
		q.until(issuance.Issued)
	}
}

func TestLostAccountAnswerStillFindsOrders(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	q := l.request("a.example.com")
	q.until(issuance.Ordering)
	l.account.Orders = ""
	q.ca = l.open()
	l.Inject(pebbletest.Fault{Path: pebbletest.NewOrder, Times: 1, After: true, Status: 504})
	_ = q.fails(fault.Transient, ReasonUnavailable)
	q.fresh = false
	if p := q.until(issuance.Ordered); !p.Adopted {
		t.Error("the lost order was not found")
	}
}

func TestWrongChains(t *testing.T) {
	other := newLab(t, pebbletest.Options{})
	stranger := pki.EncodeChainPEM(parse(t, other.request("a.example.com").until(issuance.Issued).Issued.Chain))
	for name, c := range map[string]struct {
		change func([]byte) []byte
		words  string
	}{
		"another key":    {func([]byte) []byte { return stranger }, "another key"},
		"another issuer": {func(b []byte) []byte { return append(first(b), rest(stranger)...) }, "not the issuer"},
		"wrong order":    {func(b []byte) []byte { return append(rest(b), first(b)...) }, "another key"},
		"a key in it": {func(b []byte) []byte {
			return append(b, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...)
		}, "not a certificate"},
		"nothing":          {func([]byte) []byte { return nil }, "no certificate"},
		"an HTML page":     {func([]byte) []byte { return []byte("<html>") }, "no certificate"},
		"twice the issuer": {func(b []byte) []byte { return append(b, rest(b)...) }, "not the issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, pebbletest.Options{})
			q := l.request("a.example.com")
			q.until(issuance.Finalizing)
			l.Inject(pebbletest.Fault{Path: pebbletest.Certificate, Times: -1, Rewrite: c.change})
			var err error
			for range 100 {
				var p authority.Progress
				if p, err = q.step(); err != nil {
					break
				}
				q.apply(p)
			}
			if f := fault.Of(err); f == nil || f.Kind != fault.Permanent || f.Reason != ReasonChain || !strings.Contains(f.Message, c.words) {
				t.Fatalf("got %v, want %q", err, c.words)
			}
		})
	}
}

func parse(t *testing.T, ders [][]byte) []*x509.Certificate {
	t.Helper()
	certs, err := pki.ParseChainDER(ders)
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

const end = "-----END CERTIFICATE-----\n"

func first(b []byte) []byte { i := strings.Index(string(b), end); return slices.Clone(b[:i+len(end)]) }

func rest(b []byte) []byte { i := strings.Index(string(b), end); return slices.Clone(b[i+len(end):]) }

func TestAccount(t *testing.T) {
	mac := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	t.Run("with binding", func(t *testing.T) {
		l := newLab(t, pebbletest.Options{EABKeys: map[string]string{"kid1": mac}})
		l.settings.EABKeyID, l.settings.EABKeySecret = "kid1", "mac"
		l.secrets["mac"] = mac + "=\n"
		l.request("a.example.com").until(issuance.Issued)
	})
	for name, c := range map[string]struct {
		change func(*lab)
		reason string
		words  string
	}{
		"no binding":       {func(*lab) {}, ReasonEAB, "eab_key_id"},
		"no file":          {func(l *lab) { l.settings.EABKeyID, l.settings.EABKeySecret = "kid1", "nowhere" }, ReasonSecret, "no such file"},
		"short key":        {func(l *lab) { l.bind("kid1", base64.RawURLEncoding.EncodeToString(make([]byte, 31))) }, ReasonSecret, "31 bytes"},
		"not base64url":    {func(l *lab) { l.bind("kid1", "hunter2 hunter2") }, ReasonSecret, "base64url"},
		"wrong key":        {func(l *lab) { l.bind("kid1", base64.RawURLEncoding.EncodeToString(append(make([]byte, 31), 1))) }, ReasonEAB, "MAC key"},
		"unknown key id":   {func(l *lab) { l.bind("kid2", mac) }, ReasonEAB, "eab_key_id"},
		"terms not agreed": {func(l *lab) { l.bind("kid1", mac); l.settings.TermsAgreed = false }, ReasonTerms, "terms_agreed"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, pebbletest.Options{EABKeys: map[string]string{"kid1": mac}})
			c.change(l)
			f := l.request("a.example.com").fails(fault.Precondition, c.reason)
			if !strings.Contains(f.Message, c.words) || strings.Contains(f.Message, "hunter2") {
				t.Errorf("message %q, want %q in it", f.Message, c.words)
			}
		})
	}
	t.Run("one key, one account", func(t *testing.T) {
		l := newLab(t, pebbletest.Options{})
		l.Inject(pebbletest.Fault{Path: pebbletest.NewAccount, Times: 1, After: true, Status: 504})
		if err := l.open().Register(t.Context()); err == nil {
			t.Fatal("the answer was not lost")
		}
		if err := l.open().Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		url := l.account.URL
		l.account = authority.Account{}
		if err := l.open().Register(t.Context()); err != nil || l.account.URL != url {
			t.Fatalf("second account %q, first %q: %v", l.account.URL, url, err)
		}
	})
	t.Run("contacts change", func(t *testing.T) {
		l := newLab(t, pebbletest.Options{})
		if err := l.open().Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.settings.Contacts = []string{"mailto:other@example.com"}
		if err := l.open().Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(l.account.Contacts, l.settings.Contacts) {
			t.Errorf("contacts are %v", l.account.Contacts)
		}
	})
}

func (l *lab) bind(id, mac string) {
	l.settings.EABKeyID, l.settings.EABKeySecret, l.secrets["mac"] = id, "mac", mac
}

func TestRenewalWindow(t *testing.T) {
	l := newLab(t, pebbletest.Options{})
	issued := l.request("a.example.com").until(issuance.Issued).Issued
	leaf := parse(t, issued.Chain)[0]
	ca := l.open()
	w, err := ca.RenewalWindow(t.Context(), issued.RenewalID)
	if err != nil {
		t.Fatal(err)
	}
	if !w.End.After(w.Start) || w.End.After(leaf.NotAfter) || w.After != 6*time.Hour {
		t.Errorf("window %+v", w)
	}
	start := time.Now().Add(-time.Hour).Truncate(time.Second).UTC()
	if err := l.SetRenewalWindow(t.Context(), leaf, start, start.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if w, err = ca.RenewalWindow(t.Context(), issued.RenewalID); err != nil || !w.Start.Equal(start) {
		t.Errorf("got %+v, %v", w, err)
	}
	for _, nonsense := range []string{"", "{}", "null", "[]", `{"suggestedWindow":{}}`, `{"suggestedWindow":{"start":"2026-01-02T00:00:00Z","end":"2026-01-01T00:00:00Z"}}`} {
		if err := l.SetRenewalAnswer(t.Context(), leaf, nonsense); err != nil {
			t.Fatal(err)
		}
		if nonsense == "" {
			continue // Pebble takes that for none
		}
		if w, err := ca.RenewalWindow(t.Context(), issued.RenewalID); err == nil {
			t.Errorf("%s: got %+v", nonsense, w)
		}
	}
	l.Inject(pebbletest.Fault{Path: pebbletest.RenewalInfo, Times: 1, Status: 503, Type: "serverInternal", RetryAfter: "77"})
	if _, err := ca.RenewalWindow(t.Context(), issued.RenewalID); err == nil || fault.Of(err).RetryAfter != 77*time.Second {
		t.Errorf("outage: got %v", err)
	}
}
