package command_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// puppet is an agent that speaks the real protocol and ends every assignment
// with the outcome it was told.
type puppet struct {
	host    string
	outcome agentv1.Outcome
	client  agentv1.AgentServiceClient
	keys    map[string]*ecdsa.PrivateKey
	done    map[string]bool
}

var outcomes = map[string]agentv1.Outcome{
	"serves": agentv1.Outcome_OUTCOME_SERVED, "installs": agentv1.Outcome_OUTCOME_INSTALLED, "fails": agentv1.Outcome_OUTCOME_RESTORED,
}

// startAgent is the script command: agent HOST TOKEN-FILE serves|installs|fails.
func startAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 || outcomes[args[2]] == 0 {
		ts.Fatalf("usage: agent HOST TOKEN-FILE serves|installs|fails")
	}
	p := &puppet{host: args[0], outcome: outcomes[args[2]], keys: map[string]*ecdsa.PrivateKey{}, done: map[string]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	token, err := identity.ParseJoinToken(ts.ReadFile(args[1]))
	ts.Check(err)
	src, err := p.enrol(ctx, ts.Getenv("ADDR"), token, ts.MkAbs("agent-"+p.host))
	ts.Check(err)
	conn, err := rpc.Dial(rpc.ClientConfig{Address: ts.Getenv("ADDR"), Service: "deployer", Source: src})
	ts.Check(err)
	p.client = agentv1.NewAgentServiceClient(conn)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.work(ctx) // it ends with the connection or with ctx; scripts judge by what the services say
	}()
	ts.Defer(func() {
		cancel()
		<-ended
		_ = conn.Close()
		_ = src.Close()
	})
}

func (p *puppet) info() *agentv1.AgentInfo {
	return &agentv1.AgentInfo{Version: "v0", Platform: "linux/amd64", Connectors: []string{"files", "nginx"}, Capability: 1}
}

func (p *puppet) enrol(ctx context.Context, address string, token identity.JoinToken, dir string) (identity.Source, error) {
	first, err := rpc.DialFirstContact(address, token, nil)
	if err != nil {
		return nil, err
	}
	defer first.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	r, err := agentv1.NewAgentServiceClient(first).Enroll(ctx, &agentv1.EnrollRequest{
		TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Host: p.host, Info: p.info(),
	})
	if err != nil {
		return nil, err
	}
	chain, err := pki.ParseChainDER(r.GetGrant().GetChain())
	if err != nil {
		return nil, err
	}
	bundle, err := pki.ParseChainDER(r.GetGrant().GetBundle())
	if err != nil {
		return nil, err
	}
	keyPEM, err := pki.EncodeKeyPEM(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{
		identity.FileSVID: pki.EncodeChainPEM(chain), identity.FileKey: keyPEM, identity.FileBundle: pki.EncodeChainPEM(bundle),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	return identity.NewFiles(dir, nil)
}

func (p *puppet) work(ctx context.Context) error {
	s, err := p.client.Subscribe(ctx, &agentv1.SubscribeRequest{Info: p.info()})
	if err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		for _, a := range r.GetAssignments() {
			if err := p.step(ctx, a); err != nil {
				return err
			}
		}
	}
}

func (p *puppet) step(ctx context.Context, a *agentv1.Assignment) error {
	id := fmt.Sprintf("%s-%d-%d", a.GetId(), a.GetGeneration(), a.GetAttempt())
	switch {
	case p.done[id]:
		return nil
	case len(a.GetChain()) > 0:
		p.done[id] = true
		return p.report(ctx, id, a)
	case a.GetCsrReceived() || p.keys[id] != nil:
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	names, err := pki.ParseNames(a.GetNames().GetDns(), a.GetNames().GetIp())
	if err != nil {
		return err
	}
	csr, err := pki.NewCSR(key, names)
	if err != nil {
		return err
	}
	p.keys[id] = key
	_, err = p.client.SubmitCSR(ctx, &agentv1.SubmitCSRRequest{Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(), Csr: csr})
	return err
}

func (p *puppet) report(ctx context.Context, id string, a *agentv1.Assignment) error {
	q := &agentv1.ReportAssignmentRequest{
		ReportId: "report-" + id, Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(),
		Outcome: p.outcome, Address: "127.0.0.1:443", Time: timestamppb.New(time.Now()),
	}
	switch p.outcome {
	case agentv1.Outcome_OUTCOME_SERVED:
		q.Served = string(pki.FingerprintOf(a.GetChain()[0]))
	case agentv1.Outcome_OUTCOME_INSTALLED:
		q.Reason, q.Message = "NOT_VISIBLE", "nothing listens at 127.0.0.1:443"
	default:
		q.Reason, q.Message = "RELOAD_FAILED", "nginx -t: unknown directive"
	}
	_, err := p.client.ReportAssignment(ctx, q)
	return err
}
