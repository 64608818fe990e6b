package loop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// nobody is a connection to a service that is away.
type nobody struct{ grpc.ClientConnInterface }

func (nobody) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return fault.New(fault.Transient, "AWAY", "nobody is there")
}

type fixture struct {
	*Loops
	mu sync.Mutex
	at time.Time
}

func (f *fixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

func (f *fixture) advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = f.at.Add(d)
}

func setUp(t *testing.T, perSecond float64) *fixture {
	t.Helper()
	f := &fixture{at: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	s, err := store.Open(t.Context(), store.Config{Database: servicetest.SQLite(t), Pause: func(int) time.Duration { return time.Minute },
		Away: 3 * time.Minute, Claim: 20 * time.Second, OnChange: func(store.Change) {}, Now: f.now, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	f.Loops, err = New(Config{Store: s, Peers: peer.New(nobody{}, nobody{}), Hub: session.NewHub(), Streams: session.NewStreams(1), Standing: fleet.NewStanding(time.Now),
		Hints: NewHints(), Replica: "r", RenewalsPerSecond: perSecond, AskEvery: time.Second, CheckEvery: time.Hour, Now: f.now, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// serve makes n deployments, each with one target that serves a certificate.
func (f *fixture) serve(t *testing.T, n int) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	names, err := pki.ParseNames([]string{"a.example.com"}, nil)
	must(err)
	key, err := pki.GenerateKey(pki.ECDSAP256)
	must(err)
	csr, err := pki.NewCSR(key, names)
	must(err)
	secret := []byte(strings.Repeat("s", 32))
	must(f.Store.CreateToken(ctx, fleet.Token{ID: "t", SecretHash: sha256.Sum256(secret), Expires: f.now().Add(time.Hour), Created: f.now()}))
	must(f.Store.Enrol(ctx, "t", fleet.Join{Secret: secret, Host: "web-1", Key: fleet.Key{Hash: "k", DER: []byte("k")}}, fleet.Info{}, f.now()))
	for i := range n {
		d := rollout.Deployment{Name: fmt.Sprintf("d%d", i), Identity: "shop", Profile: "web", Targets: []rollout.Target{{Name: "x", Host: "web-1", Connector: "files"}},
			Rules: rollout.Rules{MaxParallel: 1, MaxFailures: 1}, Wanted: rollout.Wanted{Identity: "shop", Profile: "web", KeyType: pki.ECDSAP256, Names: names}}
		applied, err := f.Store.Apply(ctx, d, false)
		must(err)
		a := applied.View.Assignments[0]
		must(f.Store.TakeCSR(ctx, "web-1", a.ID, 1, 1, csr))
		must(f.Store.Issue(ctx, a, rollout.Certificate{Fingerprint: a.ID, NotBefore: f.now(), NotAfter: f.now().Add(90 * 24 * time.Hour)}, [][]byte{{0x30, 0}}))
		must(f.Store.TakeReport(ctx, "web-1", rollout.Report{ID: a.ID, Assignment: a.ID, Generation: 1, Attempt: 1, Outcome: rollout.OutcomeServed, Served: a.ID}))
	}
}

func (f *fixture) renewed(t *testing.T) int {
	t.Helper()
	list, err := f.Store.ListAssignments(t.Context(), store.AssignmentFilter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, a := range list {
		if a.Generation == 2 {
			n++
		}
	}
	return n
}

// TestNoStampede has 20 renewals fall due in one moment, as after a long stop: they begin at the rate, not at once.
func TestNoStampede(t *testing.T) {
	const perSecond, due = 5, 20
	f := setUp(t, perSecond)
	f.serve(t, due)
	f.advance(80 * 24 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	begun := time.Now()
	go func() { done <- f.schedule(ctx) }()
	for n := 0; n < due; {
		n = f.renewed(t)
		took := time.Since(begun) // measured after counting: a slow machine cannot fail the test
		if most := perSecond + perSecond*took.Seconds(); float64(n) > most+1 {
			t.Errorf("%d renewals within %s at %d a second", n, took, perSecond)
			break
		}
		if took > time.Minute {
			t.Errorf("only %d of %d renewals within %s", n, due, took)
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAway goes on though issuer and inventory are away: nothing is lost, failed or begun anew.
func TestAway(t *testing.T) {
	f := setUp(t, 5)
	f.serve(t, 1)
	names, err := pki.ParseNames([]string{"a.example.com"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := f.Store.Renew(t.Context(), "d0", "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, names)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Store.TakeCSR(t.Context(), "web-1", list[0].ID, 2, 1, csr); err != nil {
		t.Fatal(err)
	}
	var left leftovers
	for tries := range 10 {
		q, ok, err := f.Store.Request(t.Context(), list[0].ID)
		if err != nil || !ok || q.Tries != tries {
			t.Fatalf("try %d: %+v %v %v", tries, q, ok, err)
		}
		f.request(t.Context(), list[0].ID, &left)
		f.advance(time.Minute)
	}
	f.advance(2 * time.Hour)
	s := &schedule{Loops: f.Loops}
	s.check(t.Context())
	v, err := f.Store.Deployment(t.Context(), "d0")
	if err != nil || v.Deployment.Problem != "" || v.Assignments[0].State != rollout.Requested || v.Assignments[0].Failures != 0 {
		t.Fatalf("%+v %v", v, err)
	}
	if list, err := f.Store.Unchecked(t.Context(), f.now().Add(-time.Hour), 9); err != nil || len(list) != 0 {
		t.Fatalf("checked again at once: %v %v", list, err)
	}
	f.advance(2 * time.Minute)
	if list, err := f.Store.Unchecked(t.Context(), f.now().Add(-time.Hour), 9); err != nil || len(list) != 1 {
		t.Fatalf("not checked again soon: %v %v", list, err)
	}
}

func TestFinal(t *testing.T) {
	for kind, want := range map[fault.Kind]bool{
		fault.InvalidArgument: true, fault.NotFound: true, fault.AlreadyExists: true, fault.Precondition: true, fault.Permanent: true,
		fault.Conflict: false, fault.Internal: false, fault.Unauthenticated: false, fault.Denied: false, fault.Exhausted: false, fault.Transient: false,
	} {
		if got := final(fmt.Errorf("asking: %w", fault.New(kind, "X", "x")), 0); got != want {
			t.Errorf("%s is final: %v", kind, got)
		}
	}
	if final(errors.New("what"), 99) || final(context.DeadlineExceeded, 99) {
		t.Error("an error that says nothing is final")
	}
	conflict := fault.New(fault.Conflict, "WRONG_STATE", "moved")
	if final(conflict, 4) || !final(conflict, 5) || !final(conflict.With("state", "issued"), 0) || !final(fault.New(fault.Conflict, "REQUEST_ID_REUSED", "x"), 0) {
		t.Error("conflicts")
	}
	if got := clip(strings.Repeat("ä", 2000) + "\x00"); len(got) != 2048 || !utf8.ValidString(got) {
		t.Errorf("clipped to %d bytes", len(got))
	}
	if got := clip("a\x00b\nc"); got != "a b c" {
		t.Errorf("clipped to %q", got)
	}
}

func TestHints(t *testing.T) {
	h := NewHints()
	for range 5000 {
		h.Deployment("a")
		h.Deployment("b")
		h.Request("x")
		h.Intent()
		h.Claim()
	}
	if got := h.takeDeployments(); strings.Join(got, " ") != "a b" {
		t.Errorf("deployments %v", got)
	}
	if got := h.takeDeployments(); len(got) != 0 {
		t.Errorf("deployments again: %v", got)
	}
	if len(h.requests) != cap(h.requests) || len(h.intents) != 1 || len(h.claim) != 1 {
		t.Error("hints are not bounded")
	}
}

func TestBackOff(t *testing.T) {
	for tries, want := range map[int]time.Duration{-1: time.Second, 0: time.Second, 3: 8 * time.Second, 6: time.Minute, 99: time.Minute} {
		for range 50 {
			if got := backOff(tries); got < want*3/4 || got > want*5/4 {
				t.Fatalf("%d tries: %s", tries, got)
			}
		}
	}
}

func TestWanted(t *testing.T) {
	ours := rollout.RequestID("01890a5d-ac96-774b-bcce-b302099a8057", 3, 1)
	for _, c := range []struct {
		kind, subject string
		want          bool
	}{
		{"issuer.request.issued", "requests/" + ours, true},
		{"issuer.request.refused", "requests/" + ours, true},
		{"issuer.request.issued", "requests/by-hand", false},
		{"issuer.request.cancelled", "requests/", false},
		{"issuer.request.accepted", "", true},
		{"issuer.challenge.presented", "requests/by-hand", true},
		{"issuer.certificate.renewal_window_changed", "certificates/ab", true},
		{"issuer.profile.applied", "profiles/web", true},
		{"inventory.identity.applied", "identities/shop", true},
	} {
		if got := Wanted(c.kind, c.subject); got != c.want {
			t.Errorf("%s on %q: %v", c.kind, c.subject, got)
		}
	}
}

// TestForeignEvents hands the consumer what is none of the deployer's business, or makes no sense.
func TestForeignEvents(t *testing.T) {
	f := setUp(t, 1)
	for _, e := range []*eventv1.Event{
		{},
		{Type: "issuer.request.issued", Payload: &eventv1.Event_RequestIssued{}},
		{Payload: &eventv1.Event_RequestEnded{RequestEnded: &eventv1.RequestEnded{RequestId: "---"}}},
		{Payload: &eventv1.Event_ChallengePresented{ChallengePresented: &eventv1.ChallengePresented{RequestId: "x-1-1", ChallengeId: "c"}}},
		{Payload: &eventv1.Event_ChallengeWithdrawn{ChallengeWithdrawn: &eventv1.ChallengeWithdrawn{ChallengeId: "c2"}}},
		{Payload: &eventv1.Event_RenewalWindowChanged{RenewalWindowChanged: &eventv1.RenewalWindowChanged{Fingerprint: "f"}}},
		{Type: "inventory.identity.applied", Subject: "identities/none"},
		{Type: "inventory.identity.applied", Subject: "nonsense"},
		{Type: "issuer.profile.deleted", Subject: "profiles/none"},
		{Type: "issuer.authority.applied", Subject: "authorities/ca", Payload: &eventv1.Event_AuthorityChanged{}},
	} {
		err := f.Store.DB().Write(t.Context(), func(ctx context.Context, tx db.Tx) error { return f.Handle(ctx, tx, e) })
		if err != nil {
			t.Errorf("%v: %v", e, err)
		}
	}
}
