package deployer_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func TestResume(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	h.serve(s)
	b.becomes("shop", healthy)
	for s.revision < 2 {
		if err := s.next(); err != nil {
			t.Fatal(err)
		}
	}
	s.cancel()

	same := h.subscribe(s)
	if same.last.GetSnapshot() || len(same.last.GetAssignments()) != 0 || same.session != s.session || same.revision != s.revision {
		t.Fatalf("nothing happened, told was %v", same.last)
	}
	same.cancel()
	other := shop(h.name)
	other.Name, other.Targets[0].Name = "second", "second"
	b.apply(other)
	missed := h.subscribe(same)
	if missed.last.GetSnapshot() || len(missed.last.GetAssignments()) != 1 || missed.last.GetAssignments()[0].GetTarget().GetName() != "second" || len(missed.assignments) != 2 {
		t.Fatalf("missed was one assignment, told was %v", missed.last)
	}
	missed.cancel()
	if _, err := b.operator.DeleteDeployment(b.ctx, &deployerv1.DeleteDeploymentRequest{Name: "second"}); err != nil {
		t.Fatal(err)
	}
	gone := h.subscribe(missed)
	if gone.last.GetSnapshot() || len(gone.last.GetWithdrawnAssignments()) != 1 || len(gone.assignments) != 1 {
		t.Fatalf("told was %v", gone.last)
	}
	gone.cancel()

	for what, from := range map[string]*stream{"another session": {session: "other", revision: gone.revision}, "a revision of the future": {session: gone.session, revision: gone.revision + 1}} {
		if all := h.subscribe(from); !all.last.GetSnapshot() || len(all.last.GetAssignments()) != 1 || len(all.last.GetWithdrawnAssignments()) != 0 {
			t.Errorf("%s: told was %v", what, all.last)
		} else {
			all.cancel()
		}
	}
	// The agent resumes over a restart of the service, too.
	b.restart()
	h.connect(h.grant, h.key)
	after := h.subscribe(gone)
	if after.last.GetSnapshot() || len(after.last.GetAssignments()) != 0 {
		t.Fatalf("after a restart: %v", after.last)
	}
	// A new stream takes the old one's place.
	second := h.subscribe(after)
	stuck := time.AfterFunc(patience, after.cancel)
	wantFault(t, after.next(), fault.Conflict, "STREAM_REPLACED")
	stuck.Stop()
	b.apply(other)
	second.until("the new assignment", open)
	_, err := h.trySubscribe(&stream{revision: -1})
	wantField(t, err, "revision")
}

func TestCSRIntake(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t), func(c *deployer.Config) {
		c.Rollout.RetryAfter = []config.Duration{config.Duration(time.Hour)}
	})
	b.issuer.hold = true
	h, other := b.join("web-1.example.com"), b.join("web-2.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	a := s.until("the assignment", open)
	der := csr(t, a)
	wantFault(t, other.submit(a, der), fault.NotFound, "ASSIGNMENT_NOT_FOUND")
	for field, change := range map[string]func(*agentv1.SubmitCSRRequest){
		"assignment": func(r *agentv1.SubmitCSRRequest) { r.Assignment = "" },
		"generation": func(r *agentv1.SubmitCSRRequest) { r.Generation = 0 },
		"attempt":    func(r *agentv1.SubmitCSRRequest) { r.Attempt = -1 },
		"csr":        func(r *agentv1.SubmitCSRRequest) { r.Csr = make([]byte, 16<<10+1) },
	} {
		req := &agentv1.SubmitCSRRequest{Assignment: a.GetId(), Generation: 1, Attempt: 1, Csr: der}
		change(req)
		_, err := h.client.SubmitCSR(b.ctx, req)
		wantField(t, err, field)
	}
	if err := h.submit(a, der); err != nil {
		t.Fatal(err)
	}
	if err := h.submit(a, der); err != nil { // the answer was lost
		t.Fatal(err)
	}
	wantFault(t, h.submit(a, csr(t, a)), fault.Conflict, "CSR_CONFLICT")
	late := &agentv1.Assignment{Id: a.GetId(), Generation: 1, Attempt: 2}
	wantFault(t, h.submit(late, der), fault.Conflict, "STALE_ATTEMPT")

	// What is not what was assigned is refused with the reason, recorded, and ends the attempt.
	for i, bad := range []struct {
		csr  func(a *agentv1.Assignment) []byte
		says string
	}{
		{func(*agentv1.Assignment) []byte {
			return forNames(t, pki.ECDSAP256, "shop.example.com", "evil.example.com")
		}, "evil.example.com"},
		{func(*agentv1.Assignment) []byte { return forNames(t, pki.ECDSAP256, "shop.example.com") }, "only"},
		{func(*agentv1.Assignment) []byte {
			return forNames(t, pki.ECDSAP384, "shop.example.com", "www.shop.example.com")
		}, "ecdsa-p384"},
		{func(*agentv1.Assignment) []byte { return bareCSR(t, newKey(t)) }, "no subject alternative name"},
		{func(*agentv1.Assignment) []byte { return []byte("noise") }, "CSR"},
	} {
		d := shop(h.name)
		d.Name, d.Targets[0].Name = fmt.Sprintf("bad-%d", i), fmt.Sprintf("bad-%d", i)
		b.apply(d)
		x := s.until("the assignment", func(n *agentv1.Assignment) bool { return n.GetTarget().GetName() == d.GetName() && open(n) })
		err := h.submit(x, bad.csr(x))
		wantFault(t, err, fault.InvalidArgument, "CSR_REFUSED")
		if !strings.Contains(err.Error(), bad.says) {
			t.Errorf("refused with %v, want a word of %q", err, bad.says)
		}
		st := b.becomes(d.GetName(), failing).GetStatus().GetAssignments()[0]
		if st.GetReason() != "CSR_REFUSED" || !strings.Contains(st.GetMessage(), bad.says) || st.GetNextAttempt() == nil {
			t.Errorf("status: %v", st)
		}
	}
	eventually(t, "the refusals are told", func() bool { return len(b.events.of("deployer.csr.refused")) == 5 })
}

func forNames(t *testing.T, kt pki.KeyType, dns ...string) []byte {
	t.Helper()
	key, err := pki.GenerateKey(kt)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewCSR(key, names)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestInstallFails(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	a := s.until("the assignment", open)
	if err := h.submit(a, csr(t, a)); err != nil {
		t.Fatal(err)
	}
	first := s.until("the certificate", issued)
	if err := h.report(first, agentv1.Outcome_OUTCOME_RESTORED, ""); err != nil {
		t.Fatal(err)
	}
	second := s.until("a second attempt", func(n *agentv1.Assignment) bool { return n.GetAttempt() == 2 })
	if fingerprint(second) != fingerprint(first) || !second.GetCsrReceived() {
		t.Fatalf("the second attempt is with another certificate: %v", second)
	}
	if err := h.report(first, agentv1.Outcome_OUTCOME_SERVED, fingerprint(first)); err != nil { // a late report
		t.Fatal(err)
	}
	if err := h.report(second, agentv1.Outcome_OUTCOME_INSTALLED, ""); err != nil {
		t.Fatal(err)
	}
	b.becomes("shop", unverified)
	if err := h.report(second, agentv1.Outcome_OUTCOME_SERVED, fingerprint(second)); err != nil {
		t.Fatal(err)
	}
	b.becomes("shop", healthy)
	eventually(t, "the late report is told", func() bool { return len(b.events.of("deployer.report.stale")) == 1 })

	// Drift: never healthy while something else is served.
	if err := h.report(second, agentv1.Outcome_OUTCOME_DRIFTED, strings.Repeat("0", 64)); err != nil {
		t.Fatal(err)
	}
	third := s.until("a third attempt", func(n *agentv1.Assignment) bool { return n.GetAttempt() == 3 })
	st := b.get("shop").GetStatus()
	if st.GetState() == healthy || st.GetAssignments()[0].GetReason() != "SERVED_IS_NOT_ASSIGNED" || st.GetAssignments()[0].GetServed() != strings.Repeat("0", 64) {
		t.Fatalf("drifted: %v", st)
	}
	if err := h.report(third, agentv1.Outcome_OUTCOME_SERVED, fingerprint(third)); err != nil {
		t.Fatal(err)
	}
	b.becomes("shop", healthy)
	for field, change := range map[string]func(*agentv1.ReportAssignmentRequest){
		"report_id":  func(r *agentv1.ReportAssignmentRequest) { r.ReportId = "" },
		"assignment": func(r *agentv1.ReportAssignmentRequest) { r.Assignment = "a\nb" },
		"generation": func(r *agentv1.ReportAssignmentRequest) { r.Generation = 0 },
		"attempt":    func(r *agentv1.ReportAssignmentRequest) { r.Attempt = 0 },
		"outcome":    func(r *agentv1.ReportAssignmentRequest) { r.Outcome = 99 },
		"served":     func(r *agentv1.ReportAssignmentRequest) { r.Served = "ABC" },
		"reason":     func(r *agentv1.ReportAssignmentRequest) { r.Reason = "so so" },
		"address":    func(r *agentv1.ReportAssignmentRequest) { r.Address = strings.Repeat("a", 513) },
		"message":    func(r *agentv1.ReportAssignmentRequest) { r.Message = strings.Repeat("a", 2049) },
		"time":       func(r *agentv1.ReportAssignmentRequest) { r.Time = &timestamppb.Timestamp{Nanos: -1} },
	} {
		req := &agentv1.ReportAssignmentRequest{ReportId: uuid.NewString(), Assignment: a.GetId(), Generation: 1, Attempt: 3, Outcome: agentv1.Outcome_OUTCOME_SERVED}
		change(req)
		_, err := h.client.ReportAssignment(b.ctx, req)
		wantField(t, err, field)
	}
}

func TestIssuerAwayAndRefusing(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	n := 0
	b.issuer.with(func() {
		b.issuer.answer = func(*issuerv1.SubmitRequestRequest) error {
			switch n++; n {
			case 1:
				return fault.New(fault.Transient, "CA_UNAVAILABLE", "later")
			case 2:
				return fault.New(fault.Permanent, "NAME_NOT_ALLOWED", "the profile does not allow shop.example.com")
			}
			return nil
		}
	})
	b.apply(shop(h.name))
	a := s.until("the assignment", open)
	if err := h.submit(a, csr(t, a)); err != nil {
		t.Fatal(err)
	}
	again := s.until("a second attempt", func(n *agentv1.Assignment) bool { return n.GetAttempt() == 2 })
	if !open(again) {
		t.Fatalf("the second attempt: %v", again)
	}
	st := b.get("shop").GetStatus().GetAssignments()[0]
	if st.GetReason() != "NAME_NOT_ALLOWED" || !strings.Contains(st.GetMessage(), "profile does not allow") {
		t.Fatalf("status: %v", st)
	}
	h.serve(s)
	b.becomes("shop", healthy)
	var ids []string
	b.issuer.with(func() {
		for _, r := range b.issuer.submitted {
			ids = append(ids, r.GetRequestId())
		}
	})
	want := []string{a.GetId() + "-1-1", a.GetId() + "-1-1", a.GetId() + "-1-2"}
	if strings.Join(ids, " ") != strings.Join(want, " ") {
		t.Fatalf("requests %v, want %v", ids, want)
	}
}

// TestACME is a CA that wants an answer on the host first.
func TestACME(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		b := newBench(t, c, func(c *deployer.Config) { c.Rollout.AskIssuerEvery = config.Duration(time.Hour) })
		b.issuer.hold = true
		h, other := b.join("web-1.example.com"), b.join("web-2.example.com")
		s := h.subscribe(nil)
		b.apply(shop(h.name))
		a := s.until("the assignment", open)
		if err := h.submit(a, csr(t, a)); err != nil {
			t.Fatal(err)
		}
		request := a.GetId() + "-1-1"
		b.issuer.publish(&eventv1.Event{Type: "issuer.challenge.presented", Payload: &eventv1.Event_ChallengePresented{ChallengePresented: &eventv1.ChallengePresented{
			RequestId: request, ChallengeId: "ch-1", Domain: "shop.example.com", Token: "tok", KeyAuthorization: "tok.thumb"}}})
		for s.challenges["ch-1"] == nil {
			if err := s.next(); err != nil {
				t.Fatal(err)
			}
		}
		if ch := s.challenges["ch-1"]; ch.GetKeyAuthorization() != "tok.thumb" || ch.GetDomain() != "shop.example.com" || ch.GetToken() != "tok" {
			t.Fatalf("challenge: %v", ch)
		}
		_, err := other.client.ReportChallenge(b.ctx, &agentv1.ReportChallengeRequest{Challenge: "ch-1", Ready: true})
		wantFault(t, err, fault.NotFound, "CHALLENGE_NOT_FOUND")
		if _, err := h.client.ReportChallenge(b.ctx, &agentv1.ReportChallengeRequest{Challenge: "ch-1", Ready: true}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the issuer is told", func() (ok bool) {
			b.issuer.with(func() {
				ok = len(b.issuer.reports) == 1 && b.issuer.reports[0].GetChallengeId() == "ch-1" && b.issuer.reports[0].GetReady()
			})
			return ok
		})
		eventually(t, "the issuer has the request", func() (ok bool) {
			b.issuer.with(func() { ok = len(b.issuer.submitted) == 1 })
			return ok
		})
		b.issuer.release()
		b.issuer.publish(&eventv1.Event{Type: "issuer.challenge.withdrawn", Payload: &eventv1.Event_ChallengeWithdrawn{ChallengeWithdrawn: &eventv1.ChallengeWithdrawn{
			RequestId: request, ChallengeId: "ch-1"}}})
		s.until("the certificate", func(n *agentv1.Assignment) bool { return issued(n) && len(s.challenges) == 0 })
	})
}

// TestLostEvent has the issuer finish without a word: asking finds out. And a request that ends is tried anew.
func TestLostEvent(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	b.issuer.hold = true
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	a := s.until("the assignment", open)
	if err := h.submit(a, csr(t, a)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the issuer has the request", func() (ok bool) {
		b.issuer.with(func() {
			for _, r := range b.issuer.requests {
				r.State, r.Reason, r.Message = issuerv1.RequestState_REQUEST_STATE_REFUSED, "CAA_FORBIDS", "the CA may not issue for shop.example.com"
				ok = true
			}
		})
		return ok
	})
	next := s.until("a second attempt", func(n *agentv1.Assignment) bool { return n.GetAttempt() == 2 })
	if st := b.get("shop").GetStatus().GetAssignments()[0]; st.GetReason() != "CAA_FORBIDS" {
		t.Fatalf("status: %v", st)
	}
	if err := h.submit(next, csr(t, next)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the issuer has the second request", func() (ok bool) {
		b.issuer.with(func() {
			for _, req := range b.issuer.submitted {
				if r := b.issuer.requests[req.GetRequestId()]; req.GetRequestId() == a.GetId()+"-1-2" {
					b.issuer.issue(r, req)
					ok = true
				}
			}
		})
		return ok
	})
	s.until("the certificate", issued)
}

// TestWrongChain is an issuer that mixes certificates up: the chain never gets to the host.
func TestWrongChain(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	swapped := false
	b.issuer.with(func() {
		b.issuer.answer = func(req *issuerv1.SubmitRequestRequest) error {
			if !swapped {
				swapped = true
				alien := &issuerv1.SubmitRequestRequest{Csr: forNames(t, pki.ECDSAP256, "shop.example.com", "www.shop.example.com")}
				r := &issuerv1.Request{Id: req.GetRequestId()}
				b.issuer.issue(r, alien)
				b.issuer.requests[r.GetId()] = r
			}
			return nil
		}
	})
	b.apply(shop(h.name))
	a := s.until("the assignment", open)
	if err := h.submit(a, csr(t, a)); err != nil {
		t.Fatal(err)
	}
	s.until("a second attempt", func(n *agentv1.Assignment) bool {
		if issued(n) && n.GetAttempt() == 1 {
			t.Fatal("a certificate for another key was given to the host")
		}
		return n.GetAttempt() == 2 && open(n)
	})
	if st := b.get("shop").GetStatus().GetAssignments()[0]; st.GetReason() != "CHAIN_MISMATCH" {
		t.Fatalf("status: %v", st)
	}
	h.serve(s)
	b.becomes("shop", healthy)
}

func TestRenewal(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		b := newBench(t, c)
		h := b.join("web-1.example.com")
		s := h.subscribe(nil)
		b.apply(shop(h.name))
		first := h.serve(s)
		b.becomes("shop", healthy)

		// The CA asks for a new one.
		b.issuer.publish(&eventv1.Event{Type: "issuer.certificate.renewal_window_changed", Payload: &eventv1.Event_RenewalWindowChanged{RenewalWindowChanged: &eventv1.RenewalWindowChanged{
			Fingerprint: fingerprint(first), Start: timestamppb.New(time.Now().Add(-2 * time.Hour)), End: timestamppb.New(time.Now().Add(-time.Hour))}}})
		s.until("a second generation", func(n *agentv1.Assignment) bool { return n.GetGeneration() == 2 })
		st := b.get("shop").GetStatus()
		if got := st.GetAssignments()[0]; st.GetState() != progressing || got.GetPrevious() != fingerprint(first) || got.GetServed() != fingerprint(first) || got.GetFingerprint() != "" {
			t.Fatalf("while renewing: %v", st)
		}
		second := h.serve(s)
		if fingerprint(second) == fingerprint(first) {
			t.Fatal("the same certificate again")
		}
		d := b.becomes("shop", healthy)
		if got := d.GetStatus().GetAssignments()[0]; got.GetPrevious() != "" || got.GetServed() != fingerprint(second) {
			t.Fatalf("renewed: %v", got)
		}
		b.issuer.with(func() {
			if last := b.issuer.submitted[len(b.issuer.submitted)-1]; last.GetReplaces() != fingerprint(first) || last.GetRequestId() != second.GetId()+"-2-1" {
				t.Errorf("request: %v", last)
			}
		})

		// An operator asks for a new one, twice by mistake.
		for range 2 {
			resp, err := b.operator.RenewDeployment(b.ctx, &deployerv1.RenewDeploymentRequest{Name: "shop", Reason: "drill", RequestId: "r-1"})
			if err != nil || len(resp.GetAssignments()) != 1 || resp.GetAssignments()[0].GetGeneration() != 3 {
				t.Fatalf("%v %v", resp, err)
			}
		}
		h.serve(s)
		b.becomes("shop", healthy)

		// By the rule, when its time has come.
		b.clock.advance(70 * 24 * time.Hour)
		b.issuer.with(func() { b.issuer.now = b.clock.now })
		if _, err := h.client.ReportObservation(b.ctx, &agentv1.ReportObservationRequest{Info: info}); err != nil {
			t.Fatal(err)
		}
		s.until("a fourth generation", func(n *agentv1.Assignment) bool { return n.GetGeneration() == 4 })
		h.serve(s)
		b.becomes("shop", healthy)
		eventually(t, "the renewals are told", func() bool { return len(b.events.of("deployer.assignment.planned")) == 4 })
		var reasons []string
		for _, e := range b.events.of("deployer.assignment.planned") {
			reasons = append(reasons, e.GetReason())
		}
		want := []string{"the deployment was applied", "renewal is due: ari: window is past", "renewal asked for: drill", "renewal is due: one third of life left"}
		if strings.Join(reasons, "|") != strings.Join(want, "|") {
			t.Errorf("reasons %q, want %q", reasons, want)
		}
	})
}

func TestIdentityChanges(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	h.serve(s)
	b.inventory.mu.Lock()
	b.inventory.names["shop"] = &typev1.Names{Dns: []string{"shop.example.com", "new.shop.example.com"}}
	b.inventory.mu.Unlock()
	publish(t, b.nats, "sallyport.v1.inventory.facts", &eventv1.Event{Type: "inventory.identity.applied", Subject: "identities/shop"})
	a := s.until("a second generation", func(n *agentv1.Assignment) bool { return n.GetGeneration() == 2 })
	if got := strings.Join(a.GetNames().GetDns(), " "); got != "new.shop.example.com shop.example.com" {
		t.Fatalf("names %q", got)
	}
	h.serve(s)
	b.becomes("shop", healthy)

	// A profile that no longer allows the key type wants new keys; one that only says so in another order does not.
	b.issuer.with(func() { b.issuer.keyTypes = []typev1.KeyType{typev1.KeyType_KEY_TYPE_ECDSA_P384} })
	publish(t, b.nats, "sallyport.v1.issuer.facts", &eventv1.Event{Type: "issuer.profile.applied", Subject: "profiles/web"})
	a = s.until("a third generation", func(n *agentv1.Assignment) bool { return n.GetGeneration() == 3 })
	if a.GetKeyType() != typev1.KeyType_KEY_TYPE_ECDSA_P384 {
		t.Fatalf("key type %v", a.GetKeyType())
	}
	// An identity that lost its names: what is served stays, and the trouble is shown.
	b.inventory.mu.Lock()
	b.inventory.names["shop"] = &typev1.Names{}
	b.inventory.mu.Unlock()
	publish(t, b.nats, "sallyport.v1.inventory.facts", &eventv1.Event{Type: "inventory.identity.applied", Subject: "identities/shop"})
	eventually(t, "the trouble is shown", func() bool {
		return strings.Contains(b.get("shop").GetStatus().GetMessage(), `identity "shop" has no names`)
	})
	if n := b.get("shop").GetStatus().GetAssignments()[0].GetGeneration(); n != 3 {
		t.Fatalf("generation %d", n)
	}
}

// TestRestarts stops the service after each step; a new one on the same store goes on from there.
func TestRestarts(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		b := newBench(t, c)
		restarts(t, b, b.restart)
	})
}

// TestKills does the same to a service that can store nothing any more when its end comes.
func TestKills(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	restarts(t, b, func() {
		b.kill()
		b.start()
	})
}

func restarts(t *testing.T, b *bench, restart func()) {
	t.Helper()
	var h *host
	var s *stream
	again := func() {
		restart()
		if h != nil {
			h.connect(h.grant, h.key)
			s = h.subscribe(s)
		}
	}
	b.issuer.hold = true
	b.apply(shop("web-1.example.com"))
	again()
	h = b.join("web-1.example.com")
	again()
	a := s.until("the assignment", open)
	again()
	der := csr(t, a)
	if err := h.submit(a, der); err != nil {
		t.Fatal(err)
	}
	again()
	if err := h.submit(a, der); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the issuer has the request", func() (ok bool) {
		b.issuer.with(func() { ok = len(b.issuer.requests) == 1 })
		return ok
	})
	b.stop()
	b.issuer.release() // while nobody listens
	b.start()
	h.connect(h.grant, h.key)
	s = h.subscribe(s)
	a = s.until("the certificate", issued)
	again()
	if err := h.report(a, agentv1.Outcome_OUTCOME_RESTORED, ""); err != nil {
		t.Fatal(err)
	}
	again()
	a = s.until("a second attempt", func(n *agentv1.Assignment) bool { return n.GetAttempt() == 2 })
	if err := h.report(a, agentv1.Outcome_OUTCOME_SERVED, fingerprint(a)); err != nil {
		t.Fatal(err)
	}
	again()
	b.becomes("shop", healthy)
	ids := map[string]bool{}
	b.issuer.with(func() {
		for _, r := range b.issuer.submitted {
			ids[r.GetRequestId()] = true
		}
	})
	if len(ids) != 1 {
		t.Fatalf("several requests for one certificate: %v", ids)
	}
	eventually(t, "each step is told once", func() bool {
		for _, kind := range []string{"planned", "assigned", "requested", "served", "failed"} {
			if len(b.events.of("deployer.assignment."+kind)) != 1 {
				return false
			}
		}
		return len(b.events.of("deployer.assignment.issued")) == 2
	})
}

func TestWatch(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	watch, err := b.operator.WatchDeployment(b.ctx, &deployerv1.WatchDeploymentRequest{Name: "none"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = watch.Recv()
	wantFault(t, err, fault.NotFound, "DEPLOYMENT_NOT_FOUND")
	b.apply(shop(h.name))
	if watch, err = b.operator.WatchDeployment(b.ctx, &deployerv1.WatchDeploymentRequest{Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	now, err := watch.Recv()
	if err != nil || now.GetDeployment().GetStatus().GetState() != progressing {
		t.Fatalf("at once: %v %v", now, err)
	}
	h.serve(s)
	for {
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetDeployment().GetStatus().GetState() == healthy {
			break
		}
	}
	if _, err := b.operator.DeleteDeployment(b.ctx, &deployerv1.DeleteDeploymentRequest{Name: "shop", Reason: "closing"}); err != nil {
		t.Fatal(err)
	}
	for err == nil { // the same may be shown twice
		_, err = watch.Recv()
	}
	wantFault(t, err, fault.NotFound, "DEPLOYMENT_NOT_FOUND")
}

func TestApplyChecks(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	b.join("web-1.example.com")
	for field, change := range map[string]func(*deployerv1.Deployment){
		"deployment.name":                  func(d *deployerv1.Deployment) { d.Name = "Shop!" },
		"deployment.identity":              func(d *deployerv1.Deployment) { d.Identity = "nobody" },
		"deployment.profile":               func(d *deployerv1.Deployment) { d.Profile = "none" },
		"deployment.key_type":              func(d *deployerv1.Deployment) { d.KeyType = typev1.KeyType_KEY_TYPE_RSA_4096 },
		"deployment.names":                 func(d *deployerv1.Deployment) { d.Names = &typev1.Names{Dns: []string{"other.example.com"}} },
		"deployment.targets":               func(d *deployerv1.Deployment) { d.Targets = nil },
		"deployment.targets[0].host":       func(d *deployerv1.Deployment) { d.Targets[0].Host = "" },
		"deployment.renewal.before_expiry": func(d *deployerv1.Deployment) { d.Renewal = &deployerv1.Renewal{BeforeExpiry: durationpb.New(-1)} },
		"deployment.rollout.max_parallel":  func(d *deployerv1.Deployment) { d.Rollout = &deployerv1.Rollout{MaxParallel: -1} },
	} {
		d := shop("web-1.example.com")
		change(d)
		_, err := b.operator.ApplyDeployment(b.ctx, &deployerv1.ApplyDeploymentRequest{Deployment: d})
		wantField(t, err, field)
	}
	_, err := b.operator.ApplyDeployment(b.ctx, &deployerv1.ApplyDeploymentRequest{})
	wantField(t, err, "deployment")
	dry, err := b.operator.ApplyDeployment(b.ctx, &deployerv1.ApplyDeploymentRequest{Deployment: shop("web-1.example.com", "web-9.example.com"), ValidateOnly: true})
	if err != nil || !dry.GetChanged() || len(dry.GetWarnings()) != 1 || !strings.Contains(dry.GetWarnings()[0], "web-9.example.com") {
		t.Fatalf("%v %v", dry, err)
	}
	_, err = b.operator.GetDeployment(b.ctx, &deployerv1.GetDeploymentRequest{Name: "shop"})
	wantFault(t, err, fault.NotFound, "DEPLOYMENT_NOT_FOUND")
	d := shop("web-1.example.com")
	d.Targets[0].Connector = "haproxy"
	resp := b.apply(d)
	if len(resp.GetWarnings()) != 1 || !strings.Contains(resp.GetWarnings()[0], `"haproxy"`) || resp.GetDeployment().GetTargets()[0].GetName() != "haproxy" {
		t.Fatalf("%v", resp)
	}
	d.Etag = "stale"
	d.Rollout = &deployerv1.Rollout{MaxParallel: 3}
	_, err = b.operator.ApplyDeployment(b.ctx, &deployerv1.ApplyDeploymentRequest{Deployment: d})
	wantFault(t, err, fault.Conflict, "ETAG_MISMATCH")
	for i := range 4 {
		more := shop("web-1.example.com")
		more.Name = fmt.Sprintf("d%d", i)
		b.apply(more)
	}
	var names []string
	for token := ""; ; {
		page, err := b.operator.ListDeployments(b.ctx, &deployerv1.ListDeploymentsRequest{PageSize: 2, PageToken: token, States: []deployerv1.DeploymentState{progressing}})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page.GetDeployments() {
			names = append(names, d.GetName())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if strings.Join(names, " ") != "d0 d1 d2 d3 shop" {
		t.Fatalf("listed %v", names)
	}
	list, err := b.operator.ListAssignments(b.ctx, &deployerv1.ListAssignmentsRequest{Host: "web-1.example.com", PageSize: 3, States: []deployerv1.AssignmentState{deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED}})
	if err != nil || len(list.GetAssignments()) != 3 || list.GetNextPageToken() == "" {
		t.Fatalf("%v %v", list, err)
	}
	for field, call := range map[string]func() error{
		"page_size": func() error {
			_, err := b.operator.ListDeployments(b.ctx, &deployerv1.ListDeploymentsRequest{PageSize: 1001})
			return err
		},
		"page_token": func() error {
			_, err := b.operator.ListJoinTokens(b.ctx, &deployerv1.ListJoinTokensRequest{PageToken: "e30"})
			return err
		},
		"states[0]": func() error {
			_, err := b.operator.ListAssignments(b.ctx, &deployerv1.ListAssignmentsRequest{States: []deployerv1.AssignmentState{99}})
			return err
		},
		"name": func() error {
			_, err := b.operator.GetDeployment(b.ctx, &deployerv1.GetDeploymentRequest{Name: "a\x00b"})
			return err
		},
		"reason": func() error {
			_, err := b.operator.LockAgent(b.ctx, &deployerv1.LockAgentRequest{Host: "web-1.example.com", Reason: "a\nb"})
			return err
		},
	} {
		wantField(t, call(), field)
	}
}

// TestReplicas runs two of the service on one PostgreSQL.
func TestReplicas(t *testing.T) {
	b := newBench(t, servicetest.Postgres(t))
	second := *b
	second.start()
	t.Cleanup(func() { second.stop() })
	h := b.join("web-1.example.com")
	there := &host{b: &second, name: h.name}
	there.connect(h.grant, h.key) // enrolled at the one, at once at the other
	s := there.subscribe(nil)
	b.apply(shop(h.name)) // at the one, told by the other
	a := s.until("the assignment", open)
	if err := h.submit(a, csr(t, a)); err != nil {
		t.Fatal(err)
	}
	a = s.until("the certificate", issued)
	if err := h.report(a, agentv1.Outcome_OUTCOME_SERVED, fingerprint(a)); err != nil {
		t.Fatal(err)
	}
	b.becomes("shop", healthy)
	second.becomes("shop", healthy)

	// The agent's next stream comes in at the one: the other's ends.
	moved := h.subscribe(s)
	stuck := time.AfterFunc(patience, s.cancel)
	wantFault(t, s.next(), fault.Conflict, "STREAM_REPLACED")
	stuck.Stop()
	// Locked at the other: the one's ends, and both refuse it.
	if _, err := second.operator.LockAgent(b.ctx, &deployerv1.LockAgentRequest{Host: h.name}); err != nil {
		t.Fatal(err)
	}
	stuck = time.AfterFunc(patience, moved.cancel)
	wantFault(t, moved.next(), fault.Denied, "AGENT_LOCKED")
	stuck.Stop()
	_, err := there.trySubscribe(nil)
	wantFault(t, err, fault.Denied, "AGENT_LOCKED")
	second.stop()
	if _, err := b.operator.UnlockAgent(b.ctx, &deployerv1.UnlockAgentRequest{Host: h.name}); err != nil {
		t.Fatal(err)
	}
	h.subscribe(moved)
}

// TestWithdraw takes the target away while the issuer works for it.
func TestWithdraw(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	b.issuer.hold = true
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	a := s.until("the assignment", open)
	if err := h.submit(a, csr(t, a)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.operator.DeleteDeployment(b.ctx, &deployerv1.DeleteDeploymentRequest{Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	for len(s.assignments) > 0 {
		if err := s.next(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the request is given up", func() (ok bool) {
		b.issuer.with(func() { ok = len(b.issuer.cancelled) == 1 && b.issuer.cancelled[0] == a.GetId()+"-1-1" })
		return ok
	})
	if err := h.report(a, agentv1.Outcome_OUTCOME_RESTORED, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a report too late is told", func() bool { return len(b.events.of("deployer.report.stale")) == 1 })
}
