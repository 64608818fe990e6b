package issuance

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

func TestMachine(t *testing.T) {
	want := map[State]map[Event]State{
		Accepted:   {BeginOrder: Ordering, Issue: Issued, Refuse: Refused, Cancel: Cancelled},
		Ordering:   {HaveOrder: Ordered, Refuse: Refused, Cancel: Cancelled},
		Ordered:    {Authorize: Authorized, Reorder: Accepted, Refuse: Refused, Cancel: Cancelled},
		Authorized: {BeginFinalize: Finalizing, Reorder: Accepted, Refuse: Refused, Cancel: Cancelled},
		Finalizing: {Issue: Issued, Reorder: Accepted, Refuse: Refused},
		Issued:     {}, Refused: {}, Cancelled: {},
	}
	pairs := Machine.Pairs()
	if len(pairs) != 8*8 {
		t.Errorf("%d pairs of state and event, want 64", len(pairs))
	}
	for _, p := range pairs {
		to, ok := want[p.State][p.Event]
		if ok != p.Allowed || ok && to != p.To {
			t.Errorf("%s in %s: leads to %q (%v), want %q (%v)", p.Event, p.State, p.To, p.Allowed, to, ok)
		}
		got, err := Machine.Next(p.State, p.Event)
		if ok && (err != nil || got != to) || !ok && fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s in %s: got %q, %v", p.Event, p.State, got, err)
		}
	}
	for s, events := range want {
		if s.Ended() != (len(events) == 0) {
			t.Errorf("%s: ended is %v", s, s.Ended())
		}
	}
}

func TestChallengeMachine(t *testing.T) {
	want := map[ChallengeState]map[ChallengeEvent]ChallengeState{
		Presented: {Answered: Ready, Unanswerable: Failed, Withdraw: Withdrawn},
		Ready:     {Unanswerable: Failed, Trigger: Triggered, Withdraw: Withdrawn},
		Triggered: {Withdraw: Withdrawn},
		Failed:    {Answered: Ready, PresentAgain: Presented, Withdraw: Withdrawn},
		Withdrawn: {},
	}
	pairs := ChallengeMachine.Pairs()
	if len(pairs) != 5*5 {
		t.Errorf("%d pairs of state and event, want 25", len(pairs))
	}
	for _, p := range pairs {
		to, ok := want[p.State][p.Event]
		if ok != p.Allowed || ok && to != p.To {
			t.Errorf("%s in %s: leads to %q (%v), want %q (%v)", p.Event, p.State, p.To, p.Allowed, to, ok)
		}
	}
}

func TestDigest(t *testing.T) {
	base := Content{Identity: "shop", Profile: "web", CSR: []byte{1, 2, 3}, Replaces: "ab"}
	seen := map[string]Content{base.Digest(): base}
	for _, c := range []Content{
		{Identity: "shopw", Profile: "eb", CSR: []byte{1, 2, 3}, Replaces: "ab"}, // a border moved
		{Identity: "other", Profile: "web", CSR: []byte{1, 2, 3}, Replaces: "ab"},
		{Identity: "shop", Profile: "other", CSR: []byte{1, 2, 3}, Replaces: "ab"},
		{Identity: "shop", Profile: "web", CSR: []byte{1, 2, 4}, Replaces: "ab"},
		{Identity: "shop", Profile: "web", CSR: []byte{1, 2, 3}},
		{},
	} {
		if other, ok := seen[c.Digest()]; ok {
			t.Errorf("%+v and %+v have one digest", c, other)
		}
		seen[c.Digest()] = c
	}
	if again := (Content{Identity: "shop", Profile: "web", CSR: []byte{1, 2, 3}, Replaces: "ab"}); again.Digest() != base.Digest() || len(base.Digest()) != 2*sha256.Size {
		t.Error("the digest is not a function of the content")
	}
}

func names(t *testing.T, dns ...string) pki.Names {
	t.Helper()
	var plain, ips []string
	for _, s := range dns {
		if _, err := netip.ParseAddr(s); err == nil {
			ips = append(ips, s)
		} else {
			plain = append(plain, s)
		}
	}
	n, err := pki.ParseNames(plain, ips)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestJudge(t *testing.T) {
	web := profile.Profile{Name: "web", KeyTypes: []pki.KeyType{pki.ECDSAP256}, Usages: []profile.Usage{profile.ServerAuth}, AllowedDomains: []string{"example.com"}}
	with := func(change func(*profile.Profile)) profile.Profile {
		p := web
		change(&p)
		return p
	}
	both := with(func(p *profile.Profile) { p.Usages = []profile.Usage{profile.ClientAuth, profile.ServerAuth} })
	for _, c := range []struct {
		name     string
		csr      []string
		identity []string
		expected []string // nil: as in the CSR
		kt       pki.KeyType
		profile  profile.Profile
		public   bool
		replaces *Predecessor
		want     string // reasons
	}{
		{name: "plain", csr: []string{"a.example.com"}, identity: []string{"a.example.com", "b.example.com"}, profile: web},
		{name: "the domain itself", csr: []string{"example.com"}, identity: []string{"example.com"}, profile: web},
		{name: "renewal", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: web, replaces: &Predecessor{Known: true, Identity: "shop"}},
		{name: "public", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: web, public: true},
		{name: "wildcard", csr: []string{"*.example.com"}, identity: []string{"*.example.com"}, profile: with(func(p *profile.Profile) { p.AllowWildcards = true })},
		{name: "address", csr: []string{"192.0.2.1"}, identity: []string{"192.0.2.1"}, profile: with(func(p *profile.Profile) { p.AllowIP = true; p.AllowedDomains = nil })},

		{name: "not of the identity", csr: []string{"a.example.com", "c.example.com"}, identity: []string{"a.example.com"}, profile: web, want: ReasonNameNotOfIdentity},
		{name: "identity without names", csr: []string{"a.example.com"}, profile: web, want: ReasonNameNotOfIdentity},
		{name: "an identity's wildcard is no pattern", csr: []string{"a.example.com"}, identity: []string{"*.example.com"}, profile: web, want: ReasonNameNotOfIdentity},
		{name: "nor is a name a licence for its wildcard", csr: []string{"*.example.com"}, identity: []string{"a.example.com"}, profile: with(func(p *profile.Profile) { p.AllowWildcards = true }), want: ReasonNameNotOfIdentity},
		{name: "address not of the identity", csr: []string{"192.0.2.1"}, identity: []string{"192.0.2.2"}, profile: with(func(p *profile.Profile) { p.AllowIP = true }), want: ReasonNameNotOfIdentity},
		{name: "fewer than expected", csr: []string{"a.example.com"}, expected: []string{"a.example.com", "b.example.com"}, identity: []string{"a.example.com", "b.example.com"}, profile: web, want: ReasonNamesNotAsExpected},
		{name: "more than expected", csr: []string{"a.example.com", "b.example.com"}, expected: []string{"a.example.com"}, identity: []string{"a.example.com", "b.example.com"}, profile: web, want: ReasonNamesNotAsExpected},
		{name: "nothing expected", csr: []string{"a.example.com"}, expected: []string{}, identity: []string{"a.example.com"}, profile: web, want: ReasonNamesNotAsExpected},
		{name: "another domain", csr: []string{"a.example.org"}, identity: []string{"a.example.org"}, profile: web, want: ReasonNameNotAllowed},
		{name: "a domain that ends alike", csr: []string{"badexample.com"}, identity: []string{"badexample.com"}, profile: web, want: ReasonNameNotAllowed},
		{name: "wildcard not allowed", csr: []string{"*.example.com"}, identity: []string{"*.example.com"}, profile: web, want: ReasonWildcardNotAllowed},
		{name: "wildcard above the domain", csr: []string{"*.example.com"}, identity: []string{"*.example.com"}, profile: with(func(p *profile.Profile) { p.AllowWildcards = true; p.AllowedDomains = []string{"a.example.com"} }), want: ReasonNameNotAllowed},
		{name: "address not allowed", csr: []string{"192.0.2.1"}, identity: []string{"192.0.2.1"}, profile: web, want: ReasonIPNotAllowed},
		{name: "key type", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, kt: pki.RSA2048, profile: web, want: ReasonKeyTypeNotAllowed},
		{name: "no usage", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: with(func(p *profile.Profile) { p.Usages = nil }), want: ReasonUsageNotAllowed},
		{name: "public client certificate", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: both, public: true, want: ReasonUsageNotAllowed},
		{name: "client certificate of our own", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: both},
		{name: "renews nothing known", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: web, replaces: &Predecessor{}, want: ReasonReplacesUnknown},
		{name: "renews another's", csr: []string{"a.example.com"}, identity: []string{"a.example.com"}, profile: web, replaces: &Predecessor{Known: true, Identity: "bank"}, want: ReasonReplacesOther},
		{name: "all at once", csr: []string{"*.example.org", "192.0.2.1"}, expected: []string{"x.example.com"}, kt: pki.RSA2048, profile: web,
			want: strings.Join([]string{ReasonNameNotOfIdentity, ReasonNameNotOfIdentity, ReasonNamesNotAsExpected, ReasonWildcardNotAllowed, ReasonNameNotAllowed, ReasonIPNotAllowed, ReasonKeyTypeNotAllowed}, " ")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.kt == "" {
				c.kt = pki.ECDSAP256
			}
			if c.expected == nil {
				c.expected = c.csr
			}
			found := Judge(Case{
				CSR: &pki.CSR{Names: names(t, c.csr...), KeyType: c.kt}, Expected: names(t, c.expected...), Identity: "shop",
				IdentityNames: names(t, c.identity...), Profile: c.profile, Public: c.public, Replaces: c.replaces,
			})
			var reasons []string
			for _, f := range found {
				reasons = append(reasons, f.Reason)
				if f.Message == "" {
					t.Errorf("%s without a message", f.Reason)
				}
			}
			if got := strings.Join(reasons, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if len(found) > 0 {
				if f := Refusal(found); f.Kind != fault.Permanent || f.Reason != reasons[0] || !strings.Contains(f.Message, found[len(found)-1].Message) {
					t.Errorf("refusal is %+v", f)
				}
			}
		})
	}
}

func TestRefusalIsBounded(t *testing.T) {
	var many []Finding
	for i := range 100 {
		many = append(many, Finding{Reason: ReasonNameNotOfIdentity, Message: fmt.Sprintf("%d %s", i, strings.Repeat("x", 250))})
	}
	if n := len(Refusal(many).Message); n > maxRefusal+10 {
		t.Errorf("%d bytes", n)
	}
}

func TestRetry(t *testing.T) {
	r := Retry{
		Poll: time.Second, PollMax: 15 * time.Second, Network: 2 * time.Second, NetworkMax: 10 * time.Minute,
		Validation: []time.Duration{time.Minute, 10 * time.Minute, 100 * time.Minute, 24 * time.Hour},
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		got, want time.Duration
	}{
		{r.AfterPoll(0, 0), time.Second}, {r.AfterPoll(3, 0), 8 * time.Second}, {r.AfterPoll(4, 0), 15 * time.Second}, {r.AfterPoll(1000, 0), 15 * time.Second},
		{r.AfterPoll(0, time.Hour), time.Hour}, {r.AfterPoll(0, 1000*time.Hour), 24 * time.Hour}, {r.AfterPoll(3, time.Second), 8 * time.Second},
		{r.AfterTrouble(0, 0), 2 * time.Second}, {r.AfterTrouble(1, 0), 4 * time.Second}, {r.AfterTrouble(99, 0), 10 * time.Minute},
		{r.AfterTrouble(0, 3*time.Minute), 3 * time.Minute}, {r.AfterTrouble(0, 48*time.Hour), 24 * time.Hour},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
	for n, want := range map[int]time.Duration{1: time.Minute, 2: 10 * time.Minute, 3: 100 * time.Minute, 4: 24 * time.Hour} {
		if got, ok := r.AfterOrder(n); !ok || got != want {
			t.Errorf("after order %d: %s, %v", n, got, ok)
		}
	}
	for _, n := range []int{0, 5, 100} {
		if _, ok := r.AfterOrder(n); ok {
			t.Errorf("after order %d another is made", n)
		}
	}
	for name, bad := range map[string]Retry{
		"poll": {Poll: 2, PollMax: 1, Network: 1, NetworkMax: 1}, "network": {Poll: 1, PollMax: 1, NetworkMax: 1},
		"validation": {Poll: 1, PollMax: 1, Network: 1, NetworkMax: 1, Validation: []time.Duration{2, 1}},
	} {
		if bad.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"a-1": true, strings.Repeat("x", 128): true, "": false, strings.Repeat("x", 129): false, "a b": false, "a/b": false, "ä": false, "a\n": false,
	} {
		if err := CheckID("request_id", id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
	for s, ok := range map[string]bool{"": true, strings.Repeat("a", 64): true, strings.Repeat("A", 64): false, strings.Repeat("a", 63): false, "x": false} {
		if _, err := ParseFingerprint("replaces", s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
