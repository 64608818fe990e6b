package deployer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// clock is the deployer's clock: the machine's, moved.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// bench is a deployer on real parts, with an issuer and an inventory that the test plays.
type bench struct {
	t         *testing.T
	ctx       context.Context
	clock     *clock
	domain    *servicetest.Domain
	nats      *nats.Conn
	cfg       deployer.Config
	deps      deployer.Deps
	issuer    *issuer
	inventory *inventory
	events    *recorder

	service  *deployer.Service
	server   *servicetest.Server
	operator deployerv1.DeployerServiceClient
	stop     func()
	kill     func() // takes the storage away first, so that nothing more gets stored
}

func newBench(t *testing.T, database db.Config, change ...func(*deployer.Config)) *bench {
	t.Helper()
	b := &bench{t: t, ctx: t.Context(), clock: &clock{}, domain: servicetest.TrustDomain(t), nats: servicetest.NATS(t)}
	js, err := jetstream.New(b.nats)
	if err != nil {
		t.Fatal(err)
	}
	if err := event.EnsureStreams(b.ctx, js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	b.issuer = newIssuer(t, b.nats)
	b.inventory = &inventory{names: map[string]*typev1.Names{"shop": {Dns: []string{"shop.example.com", "www.shop.example.com"}}}}
	issuerServer := b.domain.Serve("issuer", rpc.ServerConfig{Methods: methods(&issuerv1.IssuerService_ServiceDesc)}, func(r grpc.ServiceRegistrar) {
		issuerv1.RegisterIssuerServiceServer(r, b.issuer)
	})
	inventoryServer := b.domain.Serve("inventory", rpc.ServerConfig{Methods: methods(&inventoryv1.InventoryService_ServiceDesc)}, func(r grpc.ServiceRegistrar) {
		inventoryv1.RegisterInventoryServiceServer(r, b.inventory)
	})
	b.events = record(t, b.nats)

	cert, key := b.domain.Authority.Marshal()
	ca, err := identity.LoadAuthority(cert, key, b.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	self := b.domain.Service("deployer")
	b.cfg = deployer.Config{Database: database}
	b.cfg.Rollout.RetryAfter = []config.Duration{config.Duration(100 * time.Millisecond)}
	b.cfg.Rollout.AskIssuerEvery = config.Duration(200 * time.Millisecond)
	for _, c := range change {
		c(&b.cfg)
	}
	b.deps = deployer.Deps{Source: self, NATS: b.nats, AgentCA: ca, Issuer: issuerServer.As(self), Inventory: inventoryServer.As(self),
		Log: servicetest.Log(t), Now: b.clock.now}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// start makes the service from what is stored, and a server for it.
func (b *bench) start() {
	b.t.Helper()
	s, err := deployer.New(b.ctx, b.cfg, b.deps)
	if err != nil {
		b.t.Fatalf("making the deployer: %v", err)
	}
	b.service = s
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	var once sync.Once
	end := func() {
		cancel()
		if err := <-ran; err != nil {
			b.t.Errorf("running the deployer: %v", err)
		}
	}
	closing := func() {
		if err := s.Close(); err != nil {
			b.t.Errorf("closing the deployer: %v", err)
		}
	}
	b.stop = func() { once.Do(func() { end(); closing() }) }
	b.kill = func() { once.Do(func() { closing(); end() }) }
	b.server = b.domain.Serve("deployer", rpc.ServerConfig{Methods: deployer.Methods(), OnDenied: s.OnDenied, Deny: s.Deny}, s.Register)
	b.operator = deployerv1.NewDeployerServiceClient(b.server.As(b.domain.Operator("ann")))
}

// restart stops the service and starts another on the same store.
func (b *bench) restart() {
	b.t.Helper()
	b.stop()
	b.start()
}

func methods(d *grpc.ServiceDesc) map[string][]identity.Role {
	table := map[string][]identity.Role{}
	for _, m := range d.Methods {
		table["/"+d.ServiceName+"/"+m.MethodName] = []identity.Role{identity.RoleDeployer}
	}
	for _, m := range d.Streams {
		table["/"+d.ServiceName+"/"+m.StreamName] = []identity.Role{identity.RoleDeployer}
	}
	return table
}

// patience is for a machine that many share.
const patience = 2 * time.Minute

// eventually waits until what is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// wantFault fails unless err is a fault with that kind and reason.
func wantFault(t *testing.T, err error, kind fault.Kind, reason string) {
	t.Helper()
	f := fault.Of(err)
	if f == nil || f.Kind != kind || f.Reason != reason {
		t.Fatalf("got %v (%+v), want %v %s", err, f, kind, reason)
	}
}

// recorder keeps the events of the deployer as they pass through JetStream.
type recorder struct {
	mu   sync.Mutex
	all  []*eventv1.Event
	seen map[string]bool // by id: after a crash a message may come twice
}

func record(t *testing.T, nc *nats.Conn) *recorder {
	r := &recorder{seen: map[string]bool{}}
	sub, err := nc.Subscribe("sallyport.v1.deployer.*", func(m *nats.Msg) {
		var b eventv1.EventBatch
		if err := proto.Unmarshal(m.Data, &b); err != nil {
			t.Errorf("events: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range b.GetEvents() {
			if !r.seen[e.GetId()] {
				r.seen[e.GetId()] = true
				r.all = append(r.all, e)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	return r
}

func (r *recorder) of(kind string) []*eventv1.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*eventv1.Event
	for _, e := range r.all {
		if e.GetType() == kind {
			list = append(list, e)
		}
	}
	return list
}

// inventory knows identities.
type inventory struct {
	inventoryv1.UnimplementedInventoryServiceServer
	mu    sync.Mutex
	names map[string]*typev1.Names
}

func (i *inventory) GetIdentity(_ context.Context, req *inventoryv1.GetIdentityRequest) (*inventoryv1.GetIdentityResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.names[req.GetName()]
	if n == nil {
		return nil, fault.New(fault.NotFound, "IDENTITY_NOT_FOUND", "no identity %q", req.GetName())
	}
	return &inventoryv1.GetIdentityResponse{Identity: &inventoryv1.Identity{Name: req.GetName(), Names: n}}, nil
}

// issuer is a CA with as many moods as a test needs.
type issuer struct {
	issuerv1.UnimplementedIssuerServiceServer
	t    *testing.T
	nats *nats.Conn
	key  *ecdsa.PrivateKey
	cert *x509.Certificate

	mu        sync.Mutex
	life      time.Duration
	now       func() time.Time
	answer    func(*issuerv1.SubmitRequestRequest) error // when not nil, asked first
	hold      bool                                       // keep requests under way
	requests  map[string]*issuerv1.Request
	submitted []*issuerv1.SubmitRequestRequest
	cancelled []string
	reports   []*issuerv1.ReportChallengeRequest
	keyTypes  []typev1.KeyType
}

func newIssuer(t *testing.T, nc *nats.Conn) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{t: t, nats: nc, key: key, cert: cert, life: 90 * 24 * time.Hour, now: time.Now, requests: map[string]*issuerv1.Request{},
		keyTypes: []typev1.KeyType{typev1.KeyType_KEY_TYPE_ECDSA_P256, typev1.KeyType_KEY_TYPE_RSA_2048}}
}

func (i *issuer) with(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) GetProfile(_ context.Context, req *issuerv1.GetProfileRequest) (*issuerv1.GetProfileResponse, error) {
	if req.GetName() != "web" {
		return nil, fault.New(fault.NotFound, "PROFILE_NOT_FOUND", "no profile %q", req.GetName())
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return &issuerv1.GetProfileResponse{Profile: &issuerv1.Profile{Name: "web", Authority: "ca", KeyTypes: i.keyTypes}}, nil
}

func (i *issuer) SubmitRequest(_ context.Context, req *issuerv1.SubmitRequestRequest) (*issuerv1.SubmitRequestResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.submitted = append(i.submitted, req)
	if i.answer != nil {
		if err := i.answer(req); err != nil {
			return nil, err
		}
	}
	r := i.requests[req.GetRequestId()]
	if r == nil {
		r = &issuerv1.Request{Id: req.GetRequestId(), Identity: req.GetIdentity(), Profile: req.GetProfile(), State: issuerv1.RequestState_REQUEST_STATE_ORDERED}
		i.requests[r.GetId()] = r
	}
	if !i.hold {
		i.issue(r, req)
	}
	return &issuerv1.SubmitRequestResponse{Request: proto.CloneOf(r)}, nil
}

// issue signs what the CSR asks for.
func (i *issuer) issue(r *issuerv1.Request, req *issuerv1.SubmitRequestRequest) {
	if r.GetState() == issuerv1.RequestState_REQUEST_STATE_ISSUED {
		return
	}
	csr, err := pki.CheckCSR(req.GetCsr())
	if err != nil {
		i.t.Errorf("the deployer passed on a bad CSR: %v", err)
		return
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl := &x509.Certificate{SerialNumber: serial, NotBefore: i.now().Add(-time.Second).Truncate(time.Second), NotAfter: i.now().Add(i.life).Truncate(time.Second), DNSNames: csr.Names.DNS,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.cert, csr.Request.PublicKey, i.key)
	if err != nil {
		i.t.Errorf("signing: %v", err)
		return
	}
	r.State, r.Chain, r.Fingerprint = issuerv1.RequestState_REQUEST_STATE_ISSUED, [][]byte{der, i.cert.Raw}, string(pki.FingerprintOf(der))
}

// release issues all that was held, and says so as an event.
func (i *issuer) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, req := range i.submitted {
		r := i.requests[req.GetRequestId()]
		if r.GetState() == issuerv1.RequestState_REQUEST_STATE_ISSUED {
			continue
		}
		i.issue(r, req)
		i.publish(&eventv1.Event{Type: "issuer.request.issued", Subject: "requests/" + r.GetId(), Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{RequestId: r.GetId(), Chain: r.GetChain()}}})
	}
}

func (i *issuer) publish(events ...*eventv1.Event) {
	publish(i.t, i.nats, "sallyport.v1.issuer.facts", events...)
}

func publish(t *testing.T, nc *nats.Conn, subject string, events ...*eventv1.Event) {
	t.Helper()
	for _, e := range events {
		e.Id, e.Time = uuid.NewString(), timestamppb.Now()
	}
	data, err := proto.Marshal(&eventv1.EventBatch{Events: events})
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := js.Publish(ctx, subject, data); err != nil {
		t.Errorf("publishing: %v", err)
	}
}

func (i *issuer) GetRequest(_ context.Context, req *issuerv1.GetRequestRequest) (*issuerv1.GetRequestResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.requests[req.GetRequestId()]
	if r == nil {
		return nil, fault.New(fault.NotFound, "REQUEST_NOT_FOUND", "no request %q", req.GetRequestId())
	}
	return &issuerv1.GetRequestResponse{Request: proto.CloneOf(r)}, nil
}

func (i *issuer) CancelRequest(_ context.Context, req *issuerv1.CancelRequestRequest) (*issuerv1.CancelRequestResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cancelled = append(i.cancelled, req.GetRequestId())
	return &issuerv1.CancelRequestResponse{}, nil
}

func (i *issuer) ReportChallenge(_ context.Context, req *issuerv1.ReportChallengeRequest) (*issuerv1.ReportChallengeResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.reports = append(i.reports, req)
	return &issuerv1.ReportChallengeResponse{}, nil
}

// host is an agent as the protocol describes it.
type host struct {
	b      *bench
	name   string
	key    *ecdsa.PrivateKey
	grant  *agentv1.IdentityGrant
	client agentv1.AgentServiceClient
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func bareCSR(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

var info = &agentv1.AgentInfo{Version: "v0.1.0", Platform: "linux/amd64", Connectors: []string{"nginx", "files"}, Capability: 1}

// token makes a join token.
func (b *bench) token(req *deployerv1.CreateJoinTokenRequest) (identity.JoinToken, *deployerv1.JoinToken) {
	b.t.Helper()
	resp, err := b.operator.CreateJoinToken(b.ctx, req)
	if err != nil {
		b.t.Fatalf("making a join token: %v", err)
	}
	token, err := identity.ParseJoinToken(resp.GetToken())
	if err != nil {
		b.t.Fatalf("reading the join token: %v", err)
	}
	return token, resp.GetJoinToken()
}

// enrol enrols by a token, at first contact.
func (b *bench) enrol(token identity.JoinToken, name string, key *ecdsa.PrivateKey) (*agentv1.EnrollResponse, error) {
	b.t.Helper()
	conn, err := rpc.DialFirstContact(b.server.Address, token, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	return agentv1.NewAgentServiceClient(conn).Enroll(b.ctx, &agentv1.EnrollRequest{
		TokenId: token.ID, TokenSecret: token.Secret, Csr: bareCSR(b.t, key), Host: name, Info: info,
	})
}

// join makes an enrolled host.
func (b *bench) join(name string) *host {
	b.t.Helper()
	token, _ := b.token(&deployerv1.CreateJoinTokenRequest{Host: name})
	h := &host{b: b, name: name, key: newKey(b.t)}
	resp, err := b.enrol(token, name, h.key)
	if err != nil {
		b.t.Fatalf("enrolling %s: %v", name, err)
	}
	h.connect(resp.GetGrant(), h.key)
	return h
}

// connect makes connections with a granted identity from now on.
func (h *host) connect(grant *agentv1.IdentityGrant, key *ecdsa.PrivateKey) {
	h.b.t.Helper()
	h.grant, h.key = grant, key
	h.client = agentv1.NewAgentServiceClient(h.b.server.As(newSource(h.b.t, grant, key)))
}

// source is a granted identity.
type source struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

func newSource(t *testing.T, grant *agentv1.IdentityGrant, key crypto.Signer) *source {
	t.Helper()
	chain, err := pki.ParseChainDER(grant.GetChain())
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := pki.ParseChainDER(grant.GetBundle())
	if err != nil {
		t.Fatal(err)
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return &source{svid: &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, bundle: x509bundle.FromX509Authorities(id.TrustDomain(), bundle)}
}

func (s *source) GetX509SVID() (*x509svid.SVID, error) { return s.svid, nil }
func (s *source) GetX509BundleForTrustDomain(spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.bundle, nil
}
func (s *source) Close() error { return nil }

// stream is an agent's view of what it was told.
type stream struct {
	t      *testing.T
	client agentv1.AgentService_SubscribeClient
	cancel context.CancelFunc

	session     string
	revision    int64
	last        *agentv1.SubscribeResponse
	assignments map[string]*agentv1.Assignment
	challenges  map[string]*agentv1.Challenge
}

// subscribe opens the host's stream, going on from another where given.
// subscribe comes again, as agents do, while streams that were cancelled still count.
func (h *host) subscribe(from *stream) *stream {
	h.b.t.Helper()
	s, err := h.trySubscribe(from)
	for end := time.Now().Add(time.Minute); err != nil && fault.Of(err).Reason == rpc.ReasonTooManyStreams && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		s, err = h.trySubscribe(from)
	}
	if err != nil {
		h.b.t.Fatalf("subscribing %s: %v", h.name, err)
	}
	return s
}

func (h *host) trySubscribe(from *stream) (*stream, error) {
	s := &stream{t: h.b.t, assignments: map[string]*agentv1.Assignment{}, challenges: map[string]*agentv1.Challenge{}}
	req := &agentv1.SubscribeRequest{Info: info}
	if from != nil {
		req.Session, req.Revision = from.session, from.revision
		s.assignments, s.challenges = from.assignments, from.challenges
	}
	ctx, cancel := context.WithCancel(h.b.ctx)
	s.cancel = cancel
	var err error
	if s.client, err = h.client.Subscribe(ctx, req); err != nil {
		cancel()
		return nil, err
	}
	if err := s.next(); err != nil {
		cancel()
		return nil, err
	}
	return s, nil
}

// next takes one message over.
func (s *stream) next() error {
	m, err := s.client.Recv()
	if err != nil {
		return err
	}
	if m.GetSnapshot() {
		s.assignments, s.challenges = map[string]*agentv1.Assignment{}, map[string]*agentv1.Challenge{}
	}
	for _, a := range m.GetAssignments() {
		s.assignments[a.GetId()] = a
	}
	for _, id := range m.GetWithdrawnAssignments() {
		delete(s.assignments, id)
	}
	for _, c := range m.GetChallenges() {
		s.challenges[c.GetId()] = c
	}
	for _, id := range m.GetWithdrawnChallenges() {
		delete(s.challenges, id)
	}
	s.session, s.revision, s.last = m.GetSession(), m.GetRevision(), m
	return nil
}

// until takes messages over until the assignment that is told is as wanted.
func (s *stream) until(what string, ok func(*agentv1.Assignment) bool) *agentv1.Assignment {
	s.t.Helper()
	stuck := time.AfterFunc(patience, s.cancel)
	defer stuck.Stop()
	for {
		for _, a := range s.assignments {
			if ok(a) {
				return a
			}
		}
		if err := s.next(); err != nil {
			s.t.Fatalf("waiting for %s: %v (told: %v)", what, err, s.assignments)
		}
	}
}

func open(a *agentv1.Assignment) bool   { return len(a.GetChain()) == 0 && !a.GetCsrReceived() }
func issued(a *agentv1.Assignment) bool { return len(a.GetChain()) > 0 }

// csr makes a key and the CSR that an assignment asks for.
func csr(t *testing.T, a *agentv1.Assignment) []byte {
	t.Helper()
	names, err := pki.ParseNames(a.GetNames().GetDns(), a.GetNames().GetIp())
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewCSR(newKey(t), names)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (h *host) submit(a *agentv1.Assignment, der []byte) error {
	_, err := h.client.SubmitCSR(h.b.ctx, &agentv1.SubmitCSRRequest{Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(), Csr: der})
	return err
}

func fingerprint(a *agentv1.Assignment) string { return string(pki.FingerprintOf(a.GetChain()[0])) }

func (h *host) report(a *agentv1.Assignment, outcome agentv1.Outcome, served string) error {
	req := &agentv1.ReportAssignmentRequest{ReportId: uuid.NewString(), Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(),
		Outcome: outcome, Served: served, Address: "127.0.0.1:443", Time: timestamppb.Now()}
	if outcome == agentv1.Outcome_OUTCOME_RESTORED {
		req.Reason, req.Message = "RELOAD_FAILED", "nginx: [emerg] no"
	}
	_, err := h.client.ReportAssignment(h.b.ctx, req)
	return err
}

// serve does an assignment's whole work: CSR, certificate, report.
func (h *host) serve(s *stream) *agentv1.Assignment {
	h.b.t.Helper()
	a := s.until("an open assignment", open)
	if err := h.submit(a, csr(h.b.t, a)); err != nil {
		h.b.t.Fatalf("handing in a CSR: %v", err)
	}
	a = s.until("the certificate", func(n *agentv1.Assignment) bool {
		return n.GetId() == a.GetId() && n.GetGeneration() == a.GetGeneration() && issued(n)
	})
	if err := h.report(a, agentv1.Outcome_OUTCOME_SERVED, fingerprint(a)); err != nil {
		h.b.t.Fatalf("reporting: %v", err)
	}
	return a
}

func shop(hosts ...string) *deployerv1.Deployment {
	d := &deployerv1.Deployment{Name: "shop", Identity: "shop", Profile: "web"}
	for _, h := range hosts {
		d.Targets = append(d.Targets, &deployerv1.Target{Host: h, Connector: "nginx", Settings: map[string]string{"site": "shop"}})
	}
	return d
}

func (b *bench) apply(d *deployerv1.Deployment) *deployerv1.ApplyDeploymentResponse {
	b.t.Helper()
	resp, err := b.operator.ApplyDeployment(b.ctx, &deployerv1.ApplyDeploymentRequest{Deployment: d})
	if err != nil {
		b.t.Fatalf("applying %s: %v", d.GetName(), err)
	}
	return resp
}

func (b *bench) get(name string) *deployerv1.Deployment {
	b.t.Helper()
	resp, err := b.operator.GetDeployment(b.ctx, &deployerv1.GetDeploymentRequest{Name: name})
	if err != nil {
		b.t.Fatalf("getting %s: %v", name, err)
	}
	return resp.GetDeployment()
}

func (b *bench) becomes(name string, want deployerv1.DeploymentState) *deployerv1.Deployment {
	b.t.Helper()
	var d *deployerv1.Deployment
	eventually(b.t, name+" becomes "+want.String(), func() bool {
		d = b.get(name)
		return d.GetStatus().GetState() == want
	})
	return d
}

const (
	healthy     = deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY
	progressing = deployerv1.DeploymentState_DEPLOYMENT_STATE_PROGRESSING
	failing     = deployerv1.DeploymentState_DEPLOYMENT_STATE_FAILED
	unverified  = deployerv1.DeploymentState_DEPLOYMENT_STATE_UNVERIFIED
)

// sighting is a certificate of that many bytes in a file.
func sighting(location string, size int) *eventv1.Sighting {
	return &eventv1.Sighting{Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: location, Chain: [][]byte{make([]byte, size)}}
}
