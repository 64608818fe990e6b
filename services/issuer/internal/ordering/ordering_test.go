package ordering

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/secret"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/authoritytest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/catalogue"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
	"google.golang.org/protobuf/proto"
)

var rules = Rules{
	Retry: issuance.Retry{
		Poll: 5 * time.Millisecond, PollMax: 50 * time.Millisecond, Network: 5 * time.Millisecond, NetworkMax: 50 * time.Millisecond,
		Validation: []time.Duration{time.Millisecond, time.Millisecond},
	},
	HostPatience: 300 * time.Millisecond, Workers: 4, Claim: time.Minute, Pass: 100 * time.Millisecond,
}

// site is a database, a CA and a host, over which processes come and go.
type site struct {
	t        *testing.T
	database db.Config
	box      *secret.Box
	ca       *pebbletest.Pebble
	host     *host
	ahead    atomic.Int64 // of the clock of its processes, in nanoseconds
}

func (s *site) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

// claimsRunOut has nobody wait for those of a process that was killed.
func (s *site) claimsRunOut() { s.ahead.Add(int64(rules.Claim)) }

func newSite(t *testing.T, database db.Config) *site {
	t.Helper()
	return newSiteAt(t, database, pebbletest.Options{})
}

// newSiteAt is newSite with a CA of these ways.
func newSiteAt(t *testing.T, database db.Config, ways pebbletest.Options) *site {
	t.Helper()
	box, err := secret.Create(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, database: database, box: box, host: newHost(t)}
	ways.HTTPPort = s.host.port
	if s.ca, err = pebbletest.Start(ways); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.ca.Close)
	p := s.process(nil)
	defer p.kill()
	spec := authority.Spec{Name: "public", ACME: &authority.ACME{Directory: s.ca.Directory(), CABundlePEM: s.ca.CABundlePEM(), TermsAgreed: true}}
	if _, _, err := p.catalogue.ApplyAuthority(t.Context(), spec, "", false); err != nil {
		t.Fatal(err)
	}
	web := profile.Profile{Name: "web", Authority: "public", KeyTypes: []pki.KeyType{pki.ECDSAP256}, Usages: []profile.Usage{profile.ServerAuth}, AllowedDomains: []string{"example.com"}, ACMEProfile: "default"}
	if _, _, err := p.catalogue.ApplyProfile(t.Context(), web, "", false); err != nil {
		t.Fatal(err)
	}
	return s
}

// process is one issuer process, as far as orders go. Every challenge it presents is answered at once.
type process struct {
	t         *testing.T
	store     *store.Store
	catalogue *catalogue.Catalogue
	worker    *Worker
	host      *host
	died      chan struct{}

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// process opens the database; crash is asked at each point, numbered from 1.
func (s *site) process(crash func(n int, point string) bool) *process {
	s.t.Helper()
	st, err := store.Open(s.t.Context(), store.Config{Database: s.database, Now: s.now})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := st.ReleaseLeftovers(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	cat, err := catalogue.New(catalogue.Config{Store: st, Box: s.box, UserAgent: "sallyport/test", Now: s.now})
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{t: s.t, store: st, catalogue: cat, host: s.host, died: make(chan struct{})}
	var mu sync.Mutex
	n, dead := 0, false
	p.worker, err = New(Config{
		Store: st, Authorities: cat, Rules: rules, Log: servicetest.Log(s.t), Now: s.now,
		Crash: func(point string) bool {
			mu.Lock()
			defer mu.Unlock()
			n++
			if !dead && crash != nil && crash(n, point) {
				dead = true
				close(p.died)
			}
			return dead
		},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (p *process) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.done.Go(func() {
		if err := p.worker.Run(ctx); err != nil {
			p.t.Errorf("running: %v", err)
		}
	})
	p.done.Go(func() {
		for ctx.Err() == nil {
			p.answer(ctx)
			<-time.After(2 * time.Millisecond)
		}
	})
}

// answer plays the host for everything that is presented.
func (p *process) answer(ctx context.Context) {
	var ids []string
	err := p.store.DB().Read(ctx, func(ctx context.Context, tx db.Tx) error {
		ids = nil
		rows, err := tx.Query(ctx, `SELECT id, token, key_authorization FROM challenge WHERE state = 'presented'`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id, token, text string
			if err := rows.Scan(&id, &token, &text); err != nil {
				return err
			}
			p.host.set(token, text)
			ids = append(ids, id)
		}
		return rows.Err()
	})
	for _, id := range ids {
		if e := p.worker.Report(ctx, id, true, ""); e != nil && ctx.Err() == nil {
			p.t.Errorf("reporting: %v", e)
		}
	}
	if err != nil && ctx.Err() == nil {
		p.t.Errorf("reading challenges: %v", err)
	}
}

func (p *process) kill() {
	if p.cancel != nil {
		p.cancel()
		p.done.Wait()
	}
	p.catalogue.Close()
	if err := p.store.Close(); err != nil {
		p.t.Errorf("closing: %v", err)
	}
}

func (p *process) submit(id string, csr *pki.CSR) {
	p.t.Helper()
	rule, err := p.catalogue.Rule(p.t.Context(), "web", false)
	if err != nil {
		p.t.Fatal(err)
	}
	_, _, err = p.store.Begin(p.t.Context(), store.Decision{
		Request: issuance.Request{
			ID: id, Digest: id, Identity: "shop", Profile: "web", Authority: "public", Names: csr.Names, State: issuance.Accepted,
			Order: issuance.Order{Profile: "default"},
		},
		CSR: csr.Raw, AuthorityUID: rule.Authority.UID, ProfileETag: rule.Profile.ETag, AuthorityETag: rule.Authority.ETag, Usages: rule.Profile.Usages,
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) await(id string, state issuance.State) issuance.Request {
	p.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		r, err := p.store.Request(p.t.Context(), id)
		if err != nil {
			p.t.Fatal(err)
		}
		if r.State == state {
			return r
		}
		if r.State.Ended() || time.Now().After(deadline) {
			p.t.Fatalf("request %s is %s: %s %s", id, r.State, r.Reason, r.Message)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// told counts the events in the outbox by type.
func (p *process) told() map[string]int {
	p.t.Helper()
	counts := map[string]int{}
	err := p.store.DB().Read(p.t.Context(), func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT payload FROM outbox`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var payload []byte
			var e eventv1.Event
			if err := rows.Scan(&payload); err != nil {
				return err
			}
			if err := proto.Unmarshal(payload, &e); err != nil {
				return err
			}
			counts[e.GetType()]++
		}
		return rows.Err()
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return counts
}

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

func (h *host) set(token, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers["/.well-known/acme-challenge/"+token] = text
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprint(w, h.answers[r.URL.Path])
}

// The process dies between any two steps, and between a step and the storing of what it did; another goes on.
func TestCrashes(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		s := newSite(t, database)
		n := 0
		for _, state := range []issuance.State{issuance.Accepted, issuance.Ordering, issuance.Ordered, issuance.Authorized, issuance.Finalizing} {
			for _, moment := range []string{"before ", "after "} {
				n++
				s.crash(moment+string(state), n)
				if t.Failed() {
					return
				}
			}
		}
	})
}

// crash lets the n-th request of the site meet a crash at a point.
func (s *site) crash(point string, n int) {
	t := s.t
	t.Helper()
	id := fmt.Sprintf("r-%d", n)
	first := s.process(func(_ int, at string) bool { return at == point })
	first.submit(id, authoritytest.NewCSR(t, pki.ECDSAP256, fmt.Sprintf("a%d.example.com", n), "b.example.com"))
	first.run()
	select {
	case <-first.died:
	case <-time.After(60 * time.Second):
		t.Fatalf("never came to %q", point)
	}
	first.kill()
	s.claimsRunOut()

	second := s.process(nil)
	defer second.kill()
	second.run()
	r := second.await(id, issuance.Issued)
	if got := s.ca.Issued(); got != n {
		t.Errorf("crash %s: %d certificates for %d requests", point, got, n)
	}
	if r.Order.Count != 1 || s.ca.Hits(pebbletest.NewOrder) != n {
		t.Errorf("crash %s: %d orders, the CA saw %d for %d requests", point, r.Order.Count, s.ca.Hits(pebbletest.NewOrder), n)
	}
	told := second.told()
	for _, what := range []string{"accepted", "ordering", "ordered", "authorized", "finalizing", "issued"} {
		if told["issuer.request."+what] != n {
			t.Errorf("crash %s: %d events %s for %d requests", point, told["issuer.request."+what], what, n)
		}
	}
}

// The answer to an order is lost twice with the process. What there may be of orders then is what the CA does with the second
// and third asking; a certificate there is one.
func TestLostAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		ways          pebbletest.Options
		asked, orders int
	}{
		"it keeps a list":            {pebbletest.Options{}, 1, 1},
		"it gives the same again":    {pebbletest.Options{Unlisted: true, ReuseOrders: true}, 3, 1},
		"it knows nothing of either": {pebbletest.Options{Unlisted: true}, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSiteAt(t, servicetest.SQLite(t), c.ways)
			for i := range 2 {
				p := s.process(func(_ int, at string) bool { return at == "after ordering" })
				if i == 0 {
					p.submit("r-1", authoritytest.NewCSR(t, pki.ECDSAP256, "a.example.com"))
				}
				p.run()
				select {
				case <-p.died:
				case <-time.After(60 * time.Second):
					t.Fatal("it never came to that")
				}
				p.kill()
				s.claimsRunOut()
			}
			p := s.process(nil)
			defer p.kill()
			p.run()
			if r := p.await("r-1", issuance.Issued); r.Order.Count != 1 {
				t.Errorf("%d orders were noted", r.Order.Count)
			}
			if asked, orders := s.ca.Hits(pebbletest.NewOrder), len(s.ca.Orders()); asked != c.asked || orders != c.orders || s.ca.Issued() != 1 {
				t.Errorf("asked %d times, %d orders, %d certificates; want %d, %d, 1", asked, orders, s.ca.Issued(), c.asked, c.orders)
			}
		})
	}
}

// A CA that answers the same wish with the same order until that is finalized: requests for the same names take their turns, and
// the order of one that was given up is the next one's. Nobody asks the CA again and again meanwhile.
func TestTheSameOrderAgain(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		s := newSiteAt(t, database, pebbletest.Options{ReuseOrders: true, Unlisted: true})
		p := s.process(nil)
		defer p.kill()
		ctx, names := t.Context(), []string{"a.example.com", "b.example.com"}
		p.submit("given-up", authoritytest.NewCSR(t, pki.ECDSAP256, names...))
		silent, stop := context.WithCancel(ctx) // no host answers
		var done sync.WaitGroup
		done.Go(func() { _ = p.worker.Run(silent) })
		first := p.await("given-up", issuance.Ordered).Order.URL
		p.submit("waits", authoritytest.NewCSR(t, pki.ECDSAP256, names...))
		deadline := time.Now().Add(60 * time.Second)
		for r := p.await("waits", issuance.Ordering); r.Reason != store.ReasonOrderTaken; r = p.await("waits", issuance.Ordering) {
			if time.Now().After(deadline) {
				t.Fatalf("it is in no trouble: %+v", r)
			}
			<-time.After(time.Millisecond)
		}
		if _, err := p.store.Cancel(ctx, "given-up", "test"); err != nil {
			t.Fatal(err)
		}
		if got := p.await("waits", issuance.Ordered).Order.URL; got != first {
			t.Errorf("it got the order %s, the CA has %s for it", got, first)
		}
		stop()
		done.Wait()

		const n = 6
		for i := range n {
			p.submit(fmt.Sprintf("r-%d", i), authoritytest.NewCSR(t, pki.ECDSAP256, names...))
		}
		p.run()
		orders := map[string]string{p.await("waits", issuance.Issued).Order.URL: "waits"}
		for i := range n {
			r := p.await(fmt.Sprintf("r-%d", i), issuance.Issued)
			if other := orders[r.Order.URL]; other != "" || r.Order.Count != 1 {
				t.Errorf("%s has the order of %q, its %d.", r.ID, other, r.Order.Count)
			}
			orders[r.Order.URL] = r.ID
		}
		if got := s.ca.Issued(); got != n+1 || len(s.ca.Orders()) != n+1 {
			t.Errorf("%d certificates by %d orders for %d requests", got, len(s.ca.Orders()), n+1)
		}
		answered := 0
		for _, id := range []string{"given-up", "waits", "r-0", "r-1", "r-2", "r-3", "r-4", "r-5"} {
			r, err := p.store.Request(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			answered += r.Order.Count + r.Attempts
		}
		if asked := s.ca.Hits(pebbletest.NewOrder); asked > answered { // other troubles are noted too
			t.Errorf("the CA was asked for an order %d times, of which %d were noted, with a pause after each that was in vain", asked, answered)
		}
	})
}

// Two processes share the work; nothing is done twice.
func TestReplicas(t *testing.T) {
	s := newSite(t, servicetest.Postgres(t))
	a, b := s.process(nil), s.process(nil)
	defer a.kill()
	defer b.kill()
	const n = 20
	for i := range n {
		a.submit(fmt.Sprintf("r-%d", i), authoritytest.NewCSR(t, pki.ECDSAP256, fmt.Sprintf("a%d.example.com", i)))
	}
	a.run()
	b.run()
	for i := range n {
		if r := b.await(fmt.Sprintf("r-%d", i), issuance.Issued); r.Order.Count != 1 {
			t.Errorf("%s: %d orders", r.ID, r.Order.Count)
		}
	}
	if got, orders := s.ca.Issued(), s.ca.Hits(pebbletest.NewOrder); got != n || orders != n {
		t.Errorf("%d certificates, %d orders", got, orders)
	}
	told := a.told()
	if told["issuer.request.issued"] != n {
		t.Errorf("%d events", told["issuer.request.issued"])
	}
}

// A worker that is too late cannot write.
func TestFence(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		s := newSite(t, database)
		p := s.process(nil)
		defer p.kill()
		ctx := t.Context()
		p.submit("r-1", authoritytest.NewCSR(t, pki.ECDSAP256, "a.example.com"))
		claim := func(until time.Duration) []*store.Claim {
			t.Helper()
			claims, err := p.store.Claim(ctx, "test", time.Now().Add(until), 10)
			if err != nil {
				t.Fatal(err)
			}
			return claims
		}
		late := claim(-time.Second) // has run out already
		if len(late) != 1 {
			t.Fatalf("%d claims", len(late))
		}
		now := claim(time.Minute)
		if len(now) != 1 || len(claim(time.Minute)) != 0 {
			t.Fatal("a request is claimed by one at a time")
		}
		ch := store.Change{Event: issuance.BeginOrder, Next: time.Now(), Keep: true}
		if err := p.store.Apply(ctx, late[0], ch); fault.Of(err) == nil || fault.Of(err).Reason != store.ReasonClaimLost {
			t.Errorf("the late one wrote: %v", err)
		}
		if err := p.store.Apply(ctx, now[0], ch); err != nil {
			t.Error(err)
		}
		if err := p.store.Apply(ctx, now[0], ch); fault.KindOf(err) != fault.Conflict {
			t.Errorf("begun twice: %v", err)
		}
		if _, err := p.store.Cancel(ctx, "r-1", "test"); err != nil {
			t.Fatal(err)
		}
		if err := p.store.Apply(ctx, now[0], store.Change{Event: issuance.HaveOrder}); fault.Of(err) == nil || fault.Of(err).Reason != store.ReasonClaimLost {
			t.Errorf("a cancelled request moved: %v", err)
		}
	})
}

func TestAccountsAreMadeWithoutARequest(t *testing.T) {
	s := newSite(t, servicetest.SQLite(t))
	s.ca.Inject(pebbletest.Fault{Path: pebbletest.NewAccount, Times: -1, Status: 503, Type: "serverInternal", Detail: "busy just now"})
	p := s.process(nil)
	defer p.kill()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.worker.KeepAccounts(ctx) }()
	deadline := time.Now().Add(60 * time.Second)
	troubled := false
	for {
		a, err := p.store.Authority(ctx, "public")
		if err != nil {
			t.Fatal(err)
		}
		if !troubled && strings.Contains(a.Problem, "busy just now") {
			troubled = true
			s.ca.Heal()
		}
		if a.Account.URL != "" && a.Problem == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("account %+v, problem %q", a.Account, a.Problem)
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	told := p.told()
	if !troubled || told["issuer.authority.troubled"] != 1 || told["issuer.authority.recovered"] != 1 || told["issuer.authority.registered"] != 1 {
		t.Errorf("seen in trouble: %v, told %v", troubled, told)
	}
}

func TestDecide(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	r := Rules{
		Retry: issuance.Retry{
			Poll: time.Second, PollMax: 8 * time.Second, Network: 2 * time.Second, NetworkMax: time.Minute, Validation: []time.Duration{time.Minute, 10 * time.Minute},
		},
		HostPatience: 15 * time.Minute,
	}
	order := issuance.Order{URL: "https://ca/1", Count: 1}
	calm := issuance.Request{State: issuance.Ordered, Order: order}
	troubledBefore := issuance.Request{State: issuance.Ordered, Order: order, Reason: "CA_UNAVAILABLE", Message: "busy", Attempts: 3, Failures: 2}
	for _, c := range []struct {
		name    string
		r       issuance.Request
		polls   int
		p       authority.Progress
		failure error
		want    store.Change
	}{
		{name: "progress", r: troubledBefore, p: authority.Progress{Event: issuance.Authorize, Order: order},
			want: store.Change{Event: issuance.Authorize, Order: order, Attempts: 3, Keep: true, Next: now}},
		{name: "first look", r: calm, p: authority.Progress{Order: order}, want: store.Change{Order: order, Polls: 1, Next: now.Add(time.Second)}},
		{name: "third look", r: calm, polls: 2, p: authority.Progress{Order: order}, want: store.Change{Order: order, Polls: 3, Next: now.Add(4 * time.Second)}},
		{name: "the CA asks for a minute", r: calm, p: authority.Progress{Order: order, After: time.Minute}, want: store.Change{Order: order, Polls: 1, Next: now.Add(time.Minute)}},
		{name: "waiting for the host", r: calm, p: authority.Progress{Order: order, Wait: true},
			want: store.Change{Order: order, Reason: ReasonAwaited, Message: "waiting for the host to answer the challenge", Next: now.Add(15 * time.Minute)}},
		{name: "waiting for the host after trouble with the CA", r: troubledBefore, p: authority.Progress{Order: order, Wait: true},
			want: store.Change{Order: order, Reason: ReasonAwaited, Message: "waiting for the host to answer the challenge", Attempts: 3, Next: now.Add(15 * time.Minute)}},
		{name: "asking the host again", r: issuance.Request{State: issuance.Ordered, Order: order, Reason: store.ReasonNotServed, Message: "no", Attempts: 2, Failures: 2}, p: authority.Progress{Order: order, Again: []string{"c"}, Wait: true},
			want: store.Change{Order: order, Reason: store.ReasonNotServed, Message: "no", Attempts: 2, Failures: 2, Again: []string{"c"}, Next: now.Add(15 * time.Minute)}},
		{name: "trigger", r: calm, p: authority.Progress{Order: order, Trigger: []string{"c"}}, want: store.Change{Order: order, Trigger: []string{"c"}, Keep: true, Next: now}},
		{name: "first trouble", r: calm, failure: fault.New(fault.Transient, "CA_UNAVAILABLE", "busy"),
			want: store.Change{Order: order, Reason: "CA_UNAVAILABLE", Message: "busy", Attempts: 1, Failures: 1, Delayed: true, Next: now.Add(2 * time.Second)}},
		{name: "the same again", r: troubledBefore, failure: fault.New(fault.Transient, "CA_UNAVAILABLE", "busy"),
			want: store.Change{Order: order, Reason: "CA_UNAVAILABLE", Message: "busy", Attempts: 4, Failures: 3, Next: now.Add(8 * time.Second)}},
		{name: "another trouble", r: troubledBefore, failure: fault.New(fault.Transient, "CA_RATE_LIMITED", "slow").After(time.Hour),
			want: store.Change{Order: order, Reason: "CA_RATE_LIMITED", Message: "slow", Attempts: 4, Failures: 3, Delayed: true, Next: now.Add(time.Hour)}},
		{name: "an operator must act", r: calm, failure: fault.New(fault.Precondition, "SECRET_FILE", "no file"),
			want: store.Change{Order: order, Reason: "SECRET_FILE", Message: "no file", Attempts: 1, Failures: 1, Delayed: true, Next: now.Add(2 * time.Second)}},
		{name: "our own mistake", r: calm, failure: fmt.Errorf("secret detail"),
			want: store.Change{Order: order, Reason: "INTERNAL", Message: "internal error", Attempts: 1, Failures: 1, Delayed: true, Next: now.Add(2 * time.Second)}},
		{name: "for good", r: calm, failure: fault.New(fault.Permanent, "CA_BAD_CSR", "no"),
			want: store.Change{Event: issuance.Refuse, Order: order, Reason: "CA_BAD_CSR", Message: "no", Attempts: 1, Failures: 1, Delayed: true}},
		{name: "first order failed", r: calm, p: authority.Progress{Event: issuance.Reorder, Order: issuance.Order{Count: 1}, Trouble: fault.New(fault.Transient, "VALIDATION_FAILED", "no answer")},
			want: store.Change{Event: issuance.Reorder, Order: issuance.Order{Count: 1}, Reason: "VALIDATION_FAILED", Message: "no answer", Attempts: 1, Delayed: true, Next: now.Add(time.Minute)}},
		{name: "last order failed", r: issuance.Request{State: issuance.Ordered, Order: issuance.Order{Count: 3}}, p: authority.Progress{Event: issuance.Reorder, Order: issuance.Order{Count: 3}, Trouble: fault.New(fault.Transient, "VALIDATION_FAILED", "no answer")},
			want: store.Change{Event: issuance.Refuse, Order: issuance.Order{Count: 3}, Reason: ReasonTooManyOrders, Message: "3 orders failed, the last so: no answer", Attempts: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decide(c.r, c.polls, c.p, c.failure, r, now)
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	if _, err := New(Config{Rules: rules}); err == nil {
		t.Error("without a store")
	}
}
