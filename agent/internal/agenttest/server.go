// Package agenttest is a control plane for tests of the agent: a small one, on
// the real rpc server, with real identities and a real CA, that keeps what it is
// told and can be told to fail.
package agenttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/heldport"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// Issue makes a chain for a CSR, DER, leaf first.
type Issue func(csr *pki.CSR) ([][]byte, error)

// Config says how the control plane is.
type Config struct {
	Issue Issue
	// TTL is the life of an SVID; default an hour.
	TTL time.Duration
	// RenewAfter is when an SVID is to be renewed; default half its life.
	RenewAfter time.Duration
	Heartbeat  time.Duration
	Scan       time.Duration
	// Skew is how far the server's clock is ahead.
	Skew time.Duration
	// Listen makes what is served on; default TCP on loopback.
	Listen func() (net.Listener, error)
}

// Server is the control plane. Its fields but the first are for its own use.
type Server struct {
	agentv1.UnimplementedAgentServiceServer
	Authority *identity.Authority
	Address   string

	t    testing.TB
	cfg  Config
	stop func()

	mu         sync.Mutex
	fail       map[string]func() error // by method
	tokens     map[string]*token
	keys       map[string][2]string // host -> SPKI hash in use, pending
	session    int
	revision   int64
	changed    map[string]int64 // id -> revision
	wake       chan struct{}
	assigned   map[string]*agentv1.Assignment
	challenges map[string]*agentv1.Challenge
	withdrawn  map[string]int64
	calls      map[string]int
	reports    []*agentv1.ReportAssignmentRequest
	csrs       map[string][][]byte // "id/generation/attempt" -> different CSRs seen
	ready      map[string]*agentv1.ReportChallengeRequest
	scans      map[string][]*eventv1.Sighting
	complete   []string
	subscribed []*agentv1.SubscribeRequest
}

type token struct {
	secret [sha256.Size]byte
	key    string
}

// Start starts a control plane on loopback; it ends with the test.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.TTL == 0 {
		cfg.TTL = time.Hour
	}
	if cfg.RenewAfter == 0 {
		cfg.RenewAfter = cfg.TTL / 2
	}
	authority, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("test.example"), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Authority: authority, t: t, cfg: cfg, session: 1, fail: map[string]func() error{}, tokens: map[string]*token{}, keys: map[string][2]string{},
		changed: map[string]int64{}, wake: make(chan struct{}), assigned: map[string]*agentv1.Assignment{}, challenges: map[string]*agentv1.Challenge{},
		withdrawn: map[string]int64{}, calls: map[string]int{}, csrs: map[string][][]byte{}, ready: map[string]*agentv1.ReportChallengeRequest{},
		scans: map[string][]*eventv1.Sighting{},
	}
	if s.Address = "deployer.test:8443"; cfg.Listen == nil {
		s.Address = heldport.Address(t)
		s.cfg.Listen = func() (net.Listener, error) { return net.Listen("tcp", s.Address) }
	}
	s.Up()
	t.Cleanup(s.Down)
	return s
}

// Up starts to serve, at the same address as before.
func (s *Server) Up() {
	s.t.Helper()
	lis, err := s.cfg.Listen()
	if err != nil {
		s.t.Fatal(err)
	}
	id, err := identity.ServiceID(s.Authority.TrustDomain(), "deployer")
	if err != nil {
		s.t.Fatal(err)
	}
	src, err := identity.NewMinted(s.Authority, id, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	const service = "/sallyport.agent.v1.AgentService/"
	methods := map[string][]identity.Role{service + "Enroll": {identity.RoleAnonymous}, service + "Return": {identity.RoleAnonymous}}
	for _, m := range []string{"RenewIdentity", "Subscribe", "SubmitCSR", "ReportAssignment", "ReportChallenge", "ReportObservation"} {
		methods[service+m] = []identity.Role{identity.RoleAgent}
	}
	server, err := rpc.NewServer(rpc.ServerConfig{
		Sources: map[string]identity.Source{"deployer": src}, Default: "deployer", Methods: methods, Deny: s.deny, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	agentv1.RegisterAgentServiceServer(server.Registrar(), s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, lis) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	}
}

// Down stops to serve; what it knows stays.
func (s *Server) Down() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// Forget makes the sessions of all streams unknown, as a server does that was
// set up again.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session++
}

// Client calls as the agent of a host that has enrolled.
func (s *Server) Client(host string) agentv1.AgentServiceClient {
	s.t.Helper()
	id, err := identity.AgentID(s.Authority.TrustDomain(), host)
	if err != nil {
		s.t.Fatal(err)
	}
	src, err := identity.NewMinted(s.Authority, id, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	svid, err := src.GetX509SVID()
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.keys[host] = [2]string{pki.SPKIHash(svid.PrivateKey.Public()), ""}
	s.mu.Unlock()
	conn, err := rpc.Dial(rpc.ClientConfig{Address: s.Address, Service: "deployer", Source: src})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return agentv1.NewAgentServiceClient(conn)
}

// Fail has a method answer with what f gives, until f gives nil; a nil f ends it.
func (s *Server) Fail(method string, f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail[method] = f
}

func (s *Server) called(method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
	if f := s.fail[method]; f != nil {
		return f()
	}
	return nil
}

// Calls says how often a method was called.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Token makes a join token.
func (s *Server) Token(id string) identity.JoinToken {
	s.t.Helper()
	tok, err := identity.NewJoinToken(s.Authority.TrustDomain(), id, s.Authority.RootHash())
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[id] = &token{secret: tok.SecretHash()}
	return tok
}

func (s *Server) deny(c identity.Caller) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[c.Name]; c.Role == identity.RoleAgent && c.Key != k[0] && c.Key != k[1] {
		return fault.New(fault.Denied, "KEY_UNKNOWN", "this key is no longer the agent's")
	}
	return nil
}

// use makes a pending key the one in use at its first call.
func (s *Server) use(ctx context.Context) string {
	c := identity.FromContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[c.Name]; k[1] != "" && c.Key == k[1] {
		s.keys[c.Name] = [2]string{k[1], ""}
		if f := s.fail["first use"]; f != nil {
			_ = f() // to be told, not to refuse
		}
	}
	return c.Name
}

func (s *Server) grant(host string, csr []byte) (*agentv1.IdentityGrant, string, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, "", fault.Invalid("csr", "%v", err)
	}
	id, err := identity.AgentID(s.Authority.TrustDomain(), host)
	if err != nil {
		return nil, "", fault.Invalid("host", "%v", err)
	}
	chain, err := s.Authority.Mint(id, req.PublicKey, s.cfg.TTL)
	if err != nil {
		return nil, "", err
	}
	g := &agentv1.IdentityGrant{RenewAt: timestamppb.New(time.Now().Add(s.cfg.RenewAfter))}
	for _, c := range chain {
		g.Chain = append(g.Chain, c.Raw)
	}
	for _, c := range s.Authority.Bundle().X509Authorities() {
		g.Bundle = append(g.Bundle, c.Raw)
	}
	return g, pki.SPKIHash(req.PublicKey), nil
}

// Enroll implements the protocol.
func (s *Server) Enroll(_ context.Context, r *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	if err := s.called("Enroll"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	tok := s.tokens[r.GetTokenId()]
	s.mu.Unlock()
	if tok == nil || sha256.Sum256(r.GetTokenSecret()) != tok.secret {
		return nil, fault.New(fault.Unauthenticated, "TOKEN_INVALID", "the join token is not known here: ask an operator for a new one")
	}
	g, key, err := s.grant(r.GetHost(), r.GetCsr())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if tok.key != "" && tok.key != key {
		s.mu.Unlock()
		return nil, fault.New(fault.Denied, "TOKEN_USED", "the join token was used already, by another key or host: ask an operator for a new one")
	}
	tok.key = key
	s.keys[r.GetHost()] = [2]string{key, ""}
	s.mu.Unlock()
	if err := s.called("Enroll answer"); err != nil {
		return nil, err
	}
	return &agentv1.EnrollResponse{Grant: g}, nil
}

// Return implements the protocol.
func (s *Server) Return(_ context.Context, r *agentv1.ReturnRequest) (*agentv1.ReturnResponse, error) {
	if err := s.called("Return"); err != nil {
		return nil, err
	}
	g, key, err := s.grant(r.GetHost(), r.GetCsr())
	if err != nil {
		return nil, err
	}
	req, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(r.GetCsr())
	digest := sha256.Sum256(fmt.Appendf(nil, "sallyport agent return v1\n%s\n%d\n%s", r.GetHost(), r.GetTime().AsTime().Unix(), hex.EncodeToString(sum[:])))
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[r.GetHost()]
	if key != k[0] && key != k[1] || !ecdsa.VerifyASN1(req.PublicKey.(*ecdsa.PublicKey), digest[:], r.GetSignature()) {
		return nil, fault.New(fault.Denied, "RETURN_REFUSED", "no such agent with this key: enrol again with a join token")
	}
	s.keys[r.GetHost()] = [2]string{key, ""}
	return &agentv1.ReturnResponse{Grant: g}, nil
}

// RenewIdentity implements the protocol.
func (s *Server) RenewIdentity(ctx context.Context, r *agentv1.RenewIdentityRequest) (*agentv1.RenewIdentityResponse, error) {
	host := s.use(ctx)
	if err := s.called("RenewIdentity"); err != nil {
		return nil, err
	}
	g, key, err := s.grant(host, r.GetCsr())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[host] = [2]string{s.keys[host][0], key}
	if f := s.fail["RenewIdentity answer"]; f != nil {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return &agentv1.RenewIdentityResponse{Grant: g}, nil
}

// Key is the hash of the key the host's agent uses.
func (s *Server) Key(host string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[host][0]
}

func (s *Server) bump(id string) {
	s.revision++
	s.changed[id] = s.revision
	close(s.wake)
	s.wake = make(chan struct{})
}

// Assign assigns, or changes what is assigned.
func (s *Server) Assign(a *agentv1.Assignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assigned[a.GetId()] = proto.Clone(a).(*agentv1.Assignment)
	s.bump(a.GetId())
}

// Change changes an assignment.
func (s *Server) Change(id string, change func(*agentv1.Assignment)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := proto.Clone(s.assigned[id]).(*agentv1.Assignment)
	change(a)
	s.assigned[id] = a
	s.bump(id)
}

// Withdraw withdraws an assignment or a challenge.
func (s *Server) Withdraw(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.assigned, id)
	delete(s.challenges, id)
	s.bump(id)
	s.withdrawn[id] = s.revision
}

// Present presents a challenge.
func (s *Server) Present(c *agentv1.Challenge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.challenges[c.GetId()] = c
	s.bump(c.GetId())
}

// Subscribe implements the protocol.
func (s *Server) Subscribe(r *agentv1.SubscribeRequest, stream agentv1.AgentService_SubscribeServer) error {
	s.use(stream.Context())
	if err := s.called("Subscribe"); err != nil {
		return err
	}
	s.mu.Lock()
	s.subscribed = append(s.subscribed, r)
	s.mu.Unlock()
	session, from := r.GetSession(), r.GetRevision()
	for {
		m, wake := s.news(session, from)
		if m != nil {
			if err := stream.Send(m); err != nil {
				return err
			}
			session, from = m.GetSession(), m.GetRevision()
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-wake:
		}
	}
}

func (s *Server) news(session string, from int64) (*agentv1.SubscribeResponse, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &agentv1.SubscribeResponse{
		Session: fmt.Sprint("session-", s.session), Revision: s.revision,
		HeartbeatInterval: durationpb.New(s.cfg.Heartbeat), ScanInterval: durationpb.New(s.cfg.Scan),
	}
	m.Snapshot = session != m.Session
	for id, a := range s.assigned {
		if m.Snapshot || s.changed[id] > from {
			m.Assignments = append(m.Assignments, a)
		}
	}
	for id, c := range s.challenges {
		if m.Snapshot || s.changed[id] > from {
			m.Challenges = append(m.Challenges, c)
		}
	}
	for id, at := range s.withdrawn {
		if !m.Snapshot && at > from {
			m.WithdrawnAssignments = append(m.WithdrawnAssignments, id)
			m.WithdrawnChallenges = append(m.WithdrawnChallenges, id)
		}
	}
	return m, s.wake
}

// SubmitCSR implements the protocol: the certificate is there at once.
func (s *Server) SubmitCSR(ctx context.Context, r *agentv1.SubmitCSRRequest) (*agentv1.SubmitCSRResponse, error) {
	s.use(ctx)
	key := fmt.Sprintf("%s/%d/%d", r.GetAssignment(), r.GetGeneration(), r.GetAttempt())
	s.mu.Lock()
	if !slices.ContainsFunc(s.csrs[key], func(c []byte) bool { return string(c) == string(r.GetCsr()) }) {
		s.csrs[key] = append(s.csrs[key], r.GetCsr())
	}
	s.mu.Unlock()
	if err := s.called("SubmitCSR"); err != nil {
		return nil, err
	}
	csr, err := pki.CheckCSR(r.GetCsr())
	if err != nil {
		return nil, fault.Invalid("csr", "%v", err)
	}
	chain, err := s.cfg.Issue(csr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.assigned[r.GetAssignment()]
	if a == nil || a.GetGeneration() != r.GetGeneration() || a.GetAttempt() != r.GetAttempt() {
		return nil, fault.New(fault.Conflict, "STALE_ATTEMPT", "this attempt is over")
	}
	a = proto.Clone(a).(*agentv1.Assignment)
	a.CsrReceived, a.Chain = true, chain
	s.assigned[a.GetId()] = a
	s.bump(a.GetId())
	return &agentv1.SubmitCSRResponse{}, nil
}

// CSRs lists the different CSRs seen for one attempt.
func (s *Server) CSRs(id string, generation int64, attempt int32) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.csrs[fmt.Sprintf("%s/%d/%d", id, generation, attempt)]
}

// ReportAssignment implements the protocol.
func (s *Server) ReportAssignment(ctx context.Context, r *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	s.use(ctx)
	if err := s.called("ReportAssignment"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.reports = append(s.reports, r)
	s.mu.Unlock()
	if err := s.called("ReportAssignment answer"); err != nil {
		return nil, err
	}
	return &agentv1.ReportAssignmentResponse{}, nil
}

// Reports lists all reports in the order they came, doubles included.
func (s *Server) Reports() []*agentv1.ReportAssignmentRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

// Report waits for the nth report (from 1) and gives it.
func (s *Server) Report(n int) *agentv1.ReportAssignmentRequest {
	s.t.Helper()
	s.Await(fmt.Sprintf("report %d", n), func() bool { return len(s.Reports()) >= n })
	return s.Reports()[n-1]
}

// Await waits until the condition holds.
func (s *Server) Await(what string, holds func() bool) {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("waited for %s in vain", what)
		}
	}
}

// ReportChallenge implements the protocol.
func (s *Server) ReportChallenge(ctx context.Context, r *agentv1.ReportChallengeRequest) (*agentv1.ReportChallengeResponse, error) {
	s.use(ctx)
	if err := s.called("ReportChallenge"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[r.GetChallenge()] = r
	return &agentv1.ReportChallengeResponse{}, nil
}

// Ready is the last word about a challenge, nil if there was none.
func (s *Server) Ready(id string) *agentv1.ReportChallengeRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready[id]
}

// ReportObservation implements the protocol.
func (s *Server) ReportObservation(ctx context.Context, r *agentv1.ReportObservationRequest) (*agentv1.ReportObservationResponse, error) {
	s.use(ctx)
	if err := s.called("ReportObservation"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := r.GetScanId(); id != "" {
		s.scans[id] = append(s.scans[id], r.GetSightings()...)
		if r.GetScanComplete() {
			s.complete = append(s.complete, id)
		}
	}
	return &agentv1.ReportObservationResponse{Time: timestamppb.New(time.Now().Add(s.cfg.Skew))}, nil
}

// Scans lists the complete scans.
func (s *Server) Scans() [][]*eventv1.Sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out [][]*eventv1.Sighting
	for _, id := range s.complete {
		out = append(out, s.scans[id])
	}
	return out
}

// Subscriptions lists how streams were opened.
func (s *Server) Subscriptions() []*agentv1.SubscribeRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.subscribed)
}

// Assigned lists the ids of what is assigned.
func (s *Server) Assigned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.assigned))
}

// KeyLocked is Key for a function given to Fail, which runs under the lock.
func (s *Server) KeyLocked(host string) string { return s.keys[host][0] }
