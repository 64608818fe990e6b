package deployer_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func TestEnrolment(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	key := newKey(t)
	token, shown := b.token(&deployerv1.CreateJoinTokenRequest{})
	if d := shown.GetExpires().AsTime().Sub(shown.GetCreated().AsTime()); d != time.Hour || shown.GetCreatedBy() != "spiffe://test.example/operator/ann" {
		t.Fatalf("token: %v", shown)
	}
	first, err := b.enrol(token, "Web-1.Example.com", key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.enrol(token, "web-1.example.com", key) // the answer was lost
	if err != nil {
		t.Fatal(err)
	}
	if string(first.GetGrant().GetChain()[0]) == string(again.GetGrant().GetChain()[0]) {
		t.Error("the second SVID is not fresh")
	}
	if at := time.Until(again.GetGrant().GetRenewAt().AsTime()); at < 11*time.Hour || at > 15*time.Hour {
		t.Errorf("to be renewed in %s", at)
	}
	h := &host{b: b, name: "web-1.example.com"}
	h.connect(again.GetGrant(), key)
	h.subscribe(nil).cancel()

	_, err = b.enrol(token, "web-1.example.com", newKey(t))
	wantFault(t, err, fault.Denied, "TOKEN_USED")
	other, _ := b.token(&deployerv1.CreateJoinTokenRequest{Host: "web-2.example.com"})
	_, err = b.enrol(other, "web-3.example.com", newKey(t))
	wantFault(t, err, fault.Denied, "TOKEN_HOST")
	forTaken, _ := b.token(&deployerv1.CreateJoinTokenRequest{})
	_, err = b.enrol(forTaken, "web-1.example.com", newKey(t))
	wantFault(t, err, fault.Denied, "HOST_TAKEN")
	wrong := other
	wrong.Secret = make([]byte, 32)
	_, err = b.enrol(wrong, "web-2.example.com", newKey(t))
	wantFault(t, err, fault.Unauthenticated, "TOKEN_INVALID")
	unknown := other
	unknown.ID = "0000000000000000"
	_, unknownErr := b.enrol(unknown, "web-2.example.com", newKey(t))
	if unknownErr == nil || unknownErr.Error() != err.Error() {
		t.Errorf("an unknown token and a wrong secret are told apart: %v, %v", unknownErr, err)
	}
	if _, err := b.operator.RevokeJoinToken(b.ctx, &deployerv1.RevokeJoinTokenRequest{Id: other.ID}); err != nil {
		t.Fatal(err)
	}
	_, err = b.enrol(other, "web-2.example.com", newKey(t))
	wantFault(t, err, fault.Denied, "TOKEN_REVOKED")
	brief, _ := b.token(&deployerv1.CreateJoinTokenRequest{Ttl: durationpb.New(time.Minute)})
	b.clock.advance(2 * time.Minute)
	_, err = b.enrol(brief, "web-2.example.com", newKey(t))
	wantFault(t, err, fault.Denied, "TOKEN_EXPIRED")
	b.clock.advance(-2 * time.Minute)

	list, err := b.operator.ListJoinTokens(b.ctx, &deployerv1.ListJoinTokensRequest{PageSize: 2})
	if err != nil || len(list.GetJoinTokens()) != 2 || list.GetNextPageToken() == "" {
		t.Fatalf("page: %v %v", list, err)
	}
	rest, err := b.operator.ListJoinTokens(b.ctx, &deployerv1.ListJoinTokensRequest{PageSize: 2, PageToken: list.GetNextPageToken()})
	if err != nil || len(rest.GetJoinTokens()) != 2 || rest.GetNextPageToken() != "" || rest.GetJoinTokens()[1].GetUsedBy() != "web-1.example.com" {
		t.Fatalf("page: %v %v", rest, err)
	}
	for field, req := range map[string]*deployerv1.CreateJoinTokenRequest{
		"ttl":  {Ttl: durationpb.New(8 * 24 * time.Hour)},
		"host": {Host: "web_1"},
	} {
		_, err := b.operator.CreateJoinToken(b.ctx, req)
		wantField(t, err, field)
	}
	eventually(t, "refusals are told", func() bool { return len(b.events.of("deployer.token.refused")) == 7 })
}

// wantField fails unless err names the field.
func wantField(t *testing.T, err error, field string) {
	t.Helper()
	f := fault.Of(err)
	if f == nil || f.Kind != fault.InvalidArgument || f.Field != field {
		t.Fatalf("got %v (field %q), want field %q", err, f.Field, field)
	}
}

func TestBadEnrolment(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	client := agentv1.NewAgentServiceClient(b.server.Anonymous())
	good := func() *agentv1.EnrollRequest {
		return &agentv1.EnrollRequest{TokenId: "t", TokenSecret: make([]byte, 32), Csr: bareCSR(t, newKey(t)), Host: "web-1", Info: info}
	}
	for field, change := range map[string]func(*agentv1.EnrollRequest){
		"token_id":        func(r *agentv1.EnrollRequest) { r.TokenId = "a b" },
		"token_secret":    func(r *agentv1.EnrollRequest) { r.TokenSecret = []byte("short") },
		"csr":             func(r *agentv1.EnrollRequest) { r.Csr = []byte{0x30} },
		"host":            func(r *agentv1.EnrollRequest) { r.Host = "../etc" },
		"info.version":    func(r *agentv1.EnrollRequest) { r.Info = &agentv1.AgentInfo{Version: string(make([]byte, 65))} },
		"info.connectors": func(r *agentv1.EnrollRequest) { r.Info = &agentv1.AgentInfo{Connectors: make([]string, 33)} },
		"info.connectors[0]": func(r *agentv1.EnrollRequest) {
			r.Info = &agentv1.AgentInfo{Connectors: []string{string(make([]byte, 65))}}
		},
	} {
		req := good()
		change(req)
		_, err := client.Enroll(b.ctx, req)
		wantField(t, err, field)
	}
	_, err := client.Enroll(b.ctx, good())
	wantFault(t, err, fault.Unauthenticated, "TOKEN_INVALID")
}

func TestRenewIdentity(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	same, err := h.client.RenewIdentity(b.ctx, &agentv1.RenewIdentityRequest{Csr: bareCSR(t, h.key)})
	if err != nil {
		t.Fatal(err)
	}
	h.connect(same.GetGrant(), h.key)
	old := *h
	next := newKey(t)
	resp, err := h.client.RenewIdentity(b.ctx, &agentv1.RenewIdentityRequest{Csr: bareCSR(t, next)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.client.ReportObservation(b.ctx, &agentv1.ReportObservationRequest{Info: info}); err != nil {
		t.Fatalf("the old key until the new one is used: %v", err)
	}
	h.connect(resp.GetGrant(), next)
	h.subscribe(nil).cancel()
	eventually(t, "the new key took over", func() bool { return len(b.events.of("deployer.agent.key_changed")) == 1 })
	eventually(t, "the old key is refused", func() bool {
		_, err = old.client.ReportObservation(b.ctx, &agentv1.ReportObservationRequest{Info: info})
		return err != nil
	})
	wantFault(t, err, fault.Denied, "KEY_UNKNOWN")
	_, err = h.client.RenewIdentity(b.ctx, &agentv1.RenewIdentityRequest{Csr: []byte("no")})
	wantField(t, err, "csr")
	replaced := b.domain.Caller(b.domain.Agent("web-1.example.com"))
	der, err := x509.MarshalPKIXPublicKey(&old.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	replaced.Key = string(pki.FingerprintOf(der))
	b.kill()
	for range 1000 { // all agents renew at once, and nobody is asked
		if f := fault.Of(b.service.Deny(replaced)); f == nil || f.Reason != "KEY_UNKNOWN" {
			t.Fatalf("the key that was replaced: %v", f)
		}
	}
}

// sign makes the return that the protocol describes.
func sign(t *testing.T, host string, key *ecdsa.PrivateKey, at time.Time) *agentv1.ReturnRequest {
	t.Helper()
	csr := bareCSR(t, key)
	sum := sha256.Sum256(csr)
	digest := sha256.Sum256(fmt.Appendf(nil, "sallyport agent return v1\n%s\n%d\n%s", host, at.Unix(), hex.EncodeToString(sum[:])))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.ReturnRequest{Host: host, Csr: csr, Time: timestamppb.New(time.Unix(at.Unix(), 0)), Signature: sig, Info: info}
}

func TestReturn(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	anonymous := agentv1.NewAgentServiceClient(b.server.Anonymous())
	b.clock.advance(30 * 24 * time.Hour)
	req := sign(t, h.name, h.key, b.clock.now())
	for range 2 { // the answer was lost, or somebody plays it again
		resp, err := anonymous.Return(b.ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetGrant().GetChain()) == 0 || len(resp.GetGrant().GetBundle()) == 0 {
			t.Fatalf("grant: %v", resp)
		}
	}
	a, err := b.operator.GetAgent(b.ctx, &deployerv1.GetAgentRequest{Host: h.name})
	if err != nil || a.GetAgent().GetSvidExpires().AsTime().Before(b.clock.now().Add(23*time.Hour)) {
		t.Fatalf("agent: %v %v", a, err)
	}
	b.clock.advance(6 * time.Minute)
	_, err = anonymous.Return(b.ctx, req)
	wantFault(t, err, fault.Denied, "RETURN_NOT_FRESH")
	_, err = anonymous.Return(b.ctx, sign(t, h.name, newKey(t), b.clock.now()))
	wantFault(t, err, fault.Denied, "RETURN_REFUSED")
	_, nobody := anonymous.Return(b.ctx, sign(t, "web-9.example.com", h.key, b.clock.now()))
	if nobody == nil || nobody.Error() != err.Error() {
		t.Errorf("a wrong key and an unknown host are told apart: %v, %v", err, nobody)
	}
	if _, err := b.operator.LockAgent(b.ctx, &deployerv1.LockAgentRequest{Host: h.name, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	_, err = anonymous.Return(b.ctx, sign(t, h.name, h.key, b.clock.now()))
	wantFault(t, err, fault.Denied, "AGENT_LOCKED")
	if _, err := b.operator.UnlockAgent(b.ctx, &deployerv1.UnlockAgentRequest{Host: h.name}); err != nil {
		t.Fatal(err)
	}
	b.clock.advance(92 * 24 * time.Hour)
	_, err = anonymous.Return(b.ctx, sign(t, h.name, h.key, b.clock.now()))
	wantFault(t, err, fault.Denied, "RETURN_TOO_LATE")
	if _, err := b.operator.RemoveAgent(b.ctx, &deployerv1.RemoveAgentRequest{Host: h.name}); err != nil {
		t.Fatal(err)
	}
	_, err = anonymous.Return(b.ctx, sign(t, h.name, h.key, b.clock.now()))
	wantFault(t, err, fault.Denied, "RETURN_REFUSED")
	for field, change := range map[string]func(*agentv1.ReturnRequest){
		"host":      func(r *agentv1.ReturnRequest) { r.Host = "" },
		"time":      func(r *agentv1.ReturnRequest) { r.Time = nil },
		"csr":       func(r *agentv1.ReturnRequest) { r.Csr = nil },
		"signature": func(r *agentv1.ReturnRequest) { r.Signature = make([]byte, 257) },
	} {
		bad := sign(t, h.name, h.key, b.clock.now())
		change(bad)
		_, err := anonymous.Return(b.ctx, bad)
		wantField(t, err, field)
	}
	eventually(t, "the returns are told", func() bool {
		return len(b.events.of("deployer.agent.returned")) == 2 && len(b.events.of("deployer.agent.return_refused")) == 7 // with that of no name
	})
}

func TestReturnOff(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t), func(c *deployer.Config) { c.Agents.ReturnOff = true })
	h := b.join("web-1.example.com")
	_, err := agentv1.NewAgentServiceClient(b.server.Anonymous()).Return(b.ctx, sign(t, h.name, h.key, b.clock.now()))
	wantFault(t, err, fault.Denied, "RETURN_OFF")
}

func TestLockAndRemove(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	locked, err := b.operator.LockAgent(b.ctx, &deployerv1.LockAgentRequest{Host: h.name, Reason: "stolen"})
	if err != nil || locked.GetAgent().GetState() != deployerv1.AgentState_AGENT_STATE_LOCKED || locked.GetAgent().GetLockReason() != "stolen" {
		t.Fatalf("%v %v", locked, err)
	}
	_, err = h.client.ReportObservation(b.ctx, &agentv1.ReportObservationRequest{Info: info})
	wantFault(t, err, fault.Denied, "AGENT_LOCKED")
	stuck := time.AfterFunc(patience, s.cancel)
	wantFault(t, s.next(), fault.Denied, "AGENT_LOCKED")
	stuck.Stop()
	b.restart() // it is still locked
	h.connect(h.grant, h.key)
	_, err = h.trySubscribe(nil)
	wantFault(t, err, fault.Denied, "AGENT_LOCKED")
	token, _ := b.token(&deployerv1.CreateJoinTokenRequest{Host: h.name})
	_, err = b.enrol(token, h.name, h.key)
	wantFault(t, err, fault.Denied, "AGENT_LOCKED")
	if _, err := b.operator.UnlockAgent(b.ctx, &deployerv1.UnlockAgentRequest{Host: h.name}); err != nil {
		t.Fatal(err)
	}
	h.subscribe(nil)
	agents, err := b.operator.ListAgents(b.ctx, &deployerv1.ListAgentsRequest{})
	if err != nil || len(agents.GetAgents()) != 1 || !agents.GetAgents()[0].GetConnected() || agents.GetAgents()[0].GetVersion() != "v0.1.0" {
		t.Fatalf("%v %v", agents, err)
	}

	// Removed: the old identity is nobody's, and stays so when the host has enrolled anew.
	if _, err := b.operator.RemoveAgent(b.ctx, &deployerv1.RemoveAgentRequest{Host: h.name, Reason: "scrapped"}); err != nil {
		t.Fatal(err)
	}
	_, err = h.trySubscribe(nil)
	wantFault(t, err, fault.Denied, "AGENT_UNKNOWN")
	_, err = b.operator.GetAgent(b.ctx, &deployerv1.GetAgentRequest{Host: h.name})
	wantFault(t, err, fault.NotFound, "AGENT_NOT_FOUND")
	anew := b.join(h.name)
	anew.subscribe(nil)
	_, err = h.trySubscribe(nil)
	wantFault(t, err, fault.Denied, "KEY_UNKNOWN")
}

// TestStrangers has callers try what is not theirs; each refusal is told.
func TestStrangers(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	asAgent := b.server.As(newSource(t, h.grant, h.key))
	_, err := deployerv1.NewDeployerServiceClient(asAgent).ListAgents(b.ctx, &deployerv1.ListAgentsRequest{})
	wantFault(t, err, fault.Denied, "ROLE_NOT_ALLOWED")
	_, err = agentv1.NewAgentServiceClient(b.server.As(b.domain.Operator("ann"))).SubmitCSR(b.ctx, &agentv1.SubmitCSRRequest{})
	wantFault(t, err, fault.Denied, "ROLE_NOT_ALLOWED")
	_, err = deployerv1.NewDeployerServiceClient(b.server.Anonymous()).ListAgents(b.ctx, &deployerv1.ListAgentsRequest{})
	wantFault(t, err, fault.Unauthenticated, "NO_CERTIFICATE")
	_, err = agentv1.NewAgentServiceClient(b.server.As(b.domain.Agent("web-7"))).ReportObservation(b.ctx, &agentv1.ReportObservationRequest{})
	wantFault(t, err, fault.Denied, "AGENT_UNKNOWN")
	eventually(t, "the denied calls are told", func() bool { return len(b.events.of("deployer.call.denied")) == 4 })
	e := b.events.of("deployer.call.denied")[0]
	if e.GetActor() != "spiffe://test.example/agent/web-1.example.com" || e.GetSubject() != "methods/sallyport.deployer.v1.DeployerService/ListAgents" ||
		e.GetReason() != "ROLE_NOT_ALLOWED" || e.GetFacts()["peer"] == "" {
		t.Fatalf("event: %v", e)
	}
	if _, err := identity.CallerOf(b.domain.Caller(b.domain.Operator("ann")).ID); err != nil {
		t.Fatal(err)
	}
}

// TestUnsureOfTheKey: an agent gives up a new identity whose key is unknown. So that is said by nobody who could not look.
func TestUnsureOfTheKey(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	stranger := b.domain.Caller(b.domain.Agent("web-7"))
	if f := fault.Of(b.service.Deny(stranger)); f == nil || f.Reason != "AGENT_UNKNOWN" {
		t.Fatalf("looked up: %v", f)
	}
	b.kill()
	reasons := map[string]int{}
	for range 10000 {
		f := fault.Of(b.service.Deny(stranger))
		if f == nil || f.Kind != fault.Transient && f.Kind != fault.Exhausted {
			t.Fatalf("without having looked: %v", f)
		}
		reasons[f.Reason]++
	}
	if reasons["UNAVAILABLE"] == 0 || reasons["TOO_MANY_REQUESTS"] == 0 {
		t.Errorf("10,000 times: %v", reasons)
	}
}

func TestAdmission(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t), func(c *deployer.Config) { c.Agents.StreamsBurst, c.Agents.StreamsPerSecond = 1, 0.01 })
	one, two := b.join("web-1.example.com"), b.join("web-2.example.com")
	one.subscribe(nil)
	_, err := two.trySubscribe(nil)
	wantFault(t, err, fault.Exhausted, "BUSY")
	if wait := fault.Of(err).RetryAfter; wait < 50*time.Second || wait > 150*time.Second {
		t.Fatalf("told to come again in %s", wait)
	}
}

func TestObservations(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	beat := func(off time.Duration) {
		t.Helper()
		resp, err := h.client.ReportObservation(b.ctx, &agentv1.ReportObservationRequest{Info: info, Time: timestamppb.New(b.clock.now().Add(off))})
		if err != nil || resp.GetTime().AsTime().Sub(b.clock.now()).Abs() > time.Minute {
			t.Fatalf("%v %v", resp, err)
		}
	}
	for range 5 {
		beat(0)
	}
	eventually(t, "a heartbeat is told", func() bool { return len(b.events.of("deployer.host.observed")) == 1 })
	beat(time.Hour)
	beat(time.Hour)
	beat(0)
	eventually(t, "the clock is told of, once each", func() bool {
		return len(b.events.of("deployer.agent.clock_wrong")) == 1 && len(b.events.of("deployer.agent.clock_right")) == 1
	})
	eventually(t, "the heartbeats with them are told", func() bool { return len(b.events.of("deployer.host.observed")) == 3 })
	b.clock.advance(time.Minute)
	beat(0)
	eventually(t, "one more a minute later", func() bool { return len(b.events.of("deployer.host.observed")) == 4 })

	// A scan too large for one event goes on in parts; the last one completes it.
	req := &agentv1.ReportObservationRequest{Info: info, ScanId: "scan-1", ScanComplete: true}
	for i := range 100 {
		req.Sightings = append(req.Sightings, sighting(fmt.Sprintf("/etc/ssl/%d.pem", i), 10_000))
	}
	if _, err := h.client.ReportObservation(b.ctx, req); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the whole scan is told", func() bool {
		n, complete := 0, 0
		for _, e := range b.events.of("deployer.host.observed") {
			if o := e.GetHostObserved(); o.GetScanId() == "scan-1" {
				n += len(o.GetSightings())
				if o.GetScanComplete() {
					complete++
				}
			}
		}
		return n == 100 && complete == 1
	})
}
