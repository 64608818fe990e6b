package disk

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sallyport-pki/sallyport/auditlog"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// try is one attempt of one generation of an assignment: one wish for one certificate.
type try struct {
	assignment string
	generation int64
	attempt    int32
}

func (t try) before(o try) bool {
	return t.generation < o.generation || t.generation == o.generation && t.attempt < o.attempt
}

// witness is a host whose agent is played by the test, and an operator beside it. It remembers, outside of the disk that is
// cut off, all that was acknowledged to it.
type witness struct {
	key  *ecdsa.PrivateKey
	cert *tls.Certificate

	mu          sync.Mutex
	keys        map[try]*ecdsa.PrivateKey // of CSRs that were handed in
	csrs        map[try]bool              // that were taken
	chains      map[try]string            // fingerprints that were received
	reports     map[string]try            // by assignment: the newest that was confirmed
	deployments map[string]int64          // that were accepted, and the generation
	hosts       []string                  // whose tokens were made
	checkpoint  auditlog.Checkpoint
	verifier    string
	broken      []string // promises that were seen to be broken
	dark        bool     // the power is gone: nobody hears an answer any more
}

func newWitness(t *testing.T, s *site) *witness {
	t.Helper()
	w := &witness{
		key: newKey(), keys: map[try]*ecdsa.PrivateKey{}, csrs: map[try]bool{}, chains: map[try]string{}, reports: map[string]try{},
		deployments: map[string]int64{},
	}
	made := ok(os.ReadFile(ok(s.plane.Token(t.Context(), "witness"))(t)))(t)
	token := ok(identity.ParseJoinToken(strings.TrimSpace(string(made))))(t)
	conn := s.agentConn(t, &tls.Certificate{})
	defer conn.Close()
	got := ok(agentv1.NewAgentServiceClient(conn).Enroll(t.Context(), &agentv1.EnrollRequest{
		TokenId: token.ID, TokenSecret: token.Secret, Csr: ok(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, w.key))(t), Host: "witness",
	}))(t)
	w.cert = &tls.Certificate{Certificate: got.GetGrant().GetChain(), PrivateKey: w.key}
	return w
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// agentConn connects as an agent. Whom it reaches is of no interest here.
func (s *site) agentConn(t *testing.T, cert *tls.Certificate) *grpc.ClientConn {
	t.Helper()
	return ok(grpc.NewClient("dns:///"+s.plane.Address, grpc.WithAuthority("deployer"+rpc.ServerNameSuffix), grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // see above
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
		}))))(t)
}

// note runs fn with the witness's memory.
func (w *witness) note(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

// promised is note for what was acknowledged while there was power. Just after a Cut a kernel may call a write synced whose journal it
// has given up a moment before; with the power gone, that answer would reach nobody.
func (w *witness) promised(fn func()) {
	w.note(func() {
		if !w.dark {
			fn()
		}
	})
}

// cut takes the power away, after the last answer that was heard.
func (w *witness) cut(t *testing.T, s *site) {
	t.Helper()
	w.note(func() { w.dark = true })
	s.cut(t)
}

// work makes load until ctx ends: it applies, renews, answers as an agent and reads the audit log.
func (w *witness) work(ctx context.Context, t *testing.T, s *site, round int) *sync.WaitGroup {
	t.Helper()
	wg := w.answers(ctx, t, s)
	deployer := deployerv1.NewDeployerServiceClient(ok(s.plane.Dial("deployer"))(t))
	inventory := inventoryv1.NewInventoryServiceClient(ok(s.plane.Dial("inventory"))(t))
	audit := auditv1.NewAuditServiceClient(ok(s.plane.Dial("audit"))(t))
	wg.Go(func() { w.apply(ctx, deployer, inventory, round) })
	wg.Go(func() { w.renew(ctx, deployer) })
	wg.Go(func() { w.read(ctx, audit) })
	return wg
}

// answers plays the agent alone.
func (w *witness) answers(ctx context.Context, t *testing.T, s *site) *sync.WaitGroup {
	t.Helper()
	w.note(func() { w.dark = false })
	var wg sync.WaitGroup
	conn := s.agentConn(t, w.cert)
	t.Cleanup(func() { conn.Close() })
	wg.Go(func() { w.serve(ctx, agentv1.NewAgentServiceClient(conn)) })
	return &wg
}

// maxDeployments keeps below what one host may have.
const maxDeployments = 150

// apply makes join tokens, and declares one deployment after the other.
func (w *witness) apply(ctx context.Context, deployer deployerv1.DeployerServiceClient, inventory inventoryv1.InventoryServiceClient, round int) {
	for n := 0; ctx.Err() == nil; n++ {
		host := fmt.Sprintf("h-%d-%d", round, n)
		if _, err := deployer.CreateJoinToken(ctx, &deployerv1.CreateJoinTokenRequest{Host: host}); err == nil {
			w.promised(func() { w.hosts = append(w.hosts, host) })
		}
		pause(ctx, 5*time.Millisecond)
		var have int
		w.note(func() { have = len(w.deployments) })
		if have >= maxDeployments {
			continue
		}
		name := fmt.Sprintf("d-%d-%d", round, n)
		_, err := inventory.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
			Name: name, Owner: "team@example.com", Purpose: "powercut", Names: &typev1.Names{Dns: []string{name + ".example.com"}},
		}})
		if err == nil {
			_, err = deployer.ApplyDeployment(ctx, &deployerv1.ApplyDeploymentRequest{Deployment: &deployerv1.Deployment{
				Name: name, Identity: name, Profile: "corp",
				Targets: []*deployerv1.Target{{Host: "witness", Connector: "files", Settings: map[string]string{"certificate": "/srv/" + name + ".pem", "key": "/srv/" + name + ".key"}}},
			}})
		}
		if err == nil {
			w.promised(func() { w.deployments[name] = 1 })
		}
	}
}

// renew begins new generations of what is served.
func (w *witness) renew(ctx context.Context, deployer deployerv1.DeployerServiceClient) {
	for ctx.Err() == nil {
		all := []string{"web"}
		w.note(func() {
			for name := range w.deployments {
				if len(all) < 6 {
					all = append(all, name)
				}
			}
		})
		for _, name := range all {
			got, err := deployer.RenewDeployment(ctx, &deployerv1.RenewDeploymentRequest{Name: name, Reason: "powercut"})
			if err != nil {
				continue
			}
			w.promised(func() {
				for _, a := range got.GetAssignments() {
					w.deployments[name] = max(w.deployments[name], a.GetGeneration())
				}
			})
		}
		pause(ctx, 150*time.Millisecond)
	}
}

// serve is the agent: it answers assignments as fast as they come.
func (w *witness) serve(ctx context.Context, agent agentv1.AgentServiceClient) {
	for ; ctx.Err() == nil; pause(ctx, 20*time.Millisecond) {
		stream, err := agent.Subscribe(ctx, &agentv1.SubscribeRequest{})
		for err == nil {
			var msg *agentv1.SubscribeResponse
			if msg, err = stream.Recv(); err == nil {
				for _, a := range msg.GetAssignments() {
					w.answer(ctx, agent, a)
				}
			}
		}
	}
}

func (w *witness) answer(ctx context.Context, agent agentv1.AgentServiceClient, a *agentv1.Assignment) {
	id := try{a.GetId(), a.GetGeneration(), a.GetAttempt()}
	if len(a.GetChain()) > 0 {
		w.receive(id, a.GetChain()[0])
		sum := sha256.Sum256(a.GetChain()[0])
		_, err := agent.ReportAssignment(ctx, &agentv1.ReportAssignmentRequest{
			ReportId: fmt.Sprintf("%s-%d-%d", id.assignment, id.generation, id.attempt), Assignment: id.assignment, Generation: id.generation, Attempt: id.attempt,
			Outcome: agentv1.Outcome_OUTCOME_SERVED, Served: hex.EncodeToString(sum[:]), Address: "127.0.0.1:443",
		})
		if err == nil {
			w.promised(func() {
				if w.reports[id.assignment].before(id) {
					w.reports[id.assignment] = id
				}
			})
		}
		return
	}
	if a.GetCsrReceived() {
		return
	}
	var key *ecdsa.PrivateKey
	w.note(func() {
		if key = w.keys[id]; key == nil {
			key = newKey()
			w.keys[id] = key
		}
	})
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: a.GetNames().GetDns()}, key)
	if err == nil {
		_, err = agent.SubmitCSR(ctx, &agentv1.SubmitCSRRequest{Assignment: id.assignment, Generation: id.generation, Attempt: id.attempt, Csr: csr})
	}
	if err == nil {
		w.promised(func() { w.csrs[id] = true })
	}
}

// receive notes a certificate. One try has one, for its own key.
func (w *witness) receive(id try, der []byte) {
	leaf, err := x509.ParseCertificate(der)
	sum := sha256.Sum256(der)
	fingerprint := hex.EncodeToString(sum[:])
	w.promised(func() {
		switch have := w.chains[id]; {
		case err != nil:
			w.broken = append(w.broken, fmt.Sprintf("%v: %v", id, err))
		case w.keys[id] == nil || !w.keys[id].PublicKey.Equal(leaf.PublicKey):
			w.broken = append(w.broken, fmt.Sprintf("the certificate for %v is for another key", id))
		case have != "" && have != fingerprint:
			w.broken = append(w.broken, fmt.Sprintf("%v got the certificate %s, and later %s", id, have, fingerprint))
		}
		w.chains[id] = fingerprint
	})
}

// read is the auditor: it keeps the newest checkpoint.
func (w *witness) read(ctx context.Context, audit auditv1.AuditServiceClient) {
	for ; ctx.Err() == nil; pause(ctx, 10*time.Millisecond) {
		if err := w.readOn(ctx, audit); err != nil && ctx.Err() == nil {
			continue
		}
	}
}

func (w *witness) readOn(ctx context.Context, audit auditv1.AuditServiceClient) error {
	got, err := audit.GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
	if err != nil {
		return err
	}
	key, err := auditlog.ParseKey(got.GetVerifier())
	if err != nil {
		return err
	}
	c, err := auditlog.ParseCheckpoint([]byte(got.GetCheckpoint()), key)
	if err != nil {
		return err
	}
	w.promised(func() {
		if c.Size > w.checkpoint.Size || w.verifier == "" {
			w.checkpoint, w.verifier = c, got.GetVerifier()
		}
	})
	return nil
}

// keeps compares what was acknowledged with what there is. It waits for nothing: what was acknowledged was on disk.
func (w *witness) keeps(ctx context.Context, t *testing.T, s *site) {
	t.Helper()
	deployer := deployerv1.NewDeployerServiceClient(ok(s.plane.Dial("deployer"))(t))
	tokens := map[string]bool{}
	q := &deployerv1.ListJoinTokensRequest{PageSize: 1000}
	for {
		page := ok(deployer.ListJoinTokens(ctx, q))(t)
		for _, token := range page.GetJoinTokens() {
			tokens[token.GetHost()] = true
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	assignments := s.assignments(ctx, t, deployer)
	w.note(func() {
		for _, host := range w.hosts {
			if !tokens[host] {
				w.broken = append(w.broken, fmt.Sprintf("the join token of %s was made, and is not there", host))
			}
		}
		byID := map[string]*deployerv1.AssignmentStatus{}
		byDeployment := map[string]*deployerv1.AssignmentStatus{}
		for _, a := range assignments {
			byID[a.GetId()] = a
			byDeployment[a.GetDeployment()] = a
		}
		for name, generation := range w.deployments {
			if a := byDeployment[name]; generation > 1 && a.GetGeneration() < generation {
				w.broken = append(w.broken, fmt.Sprintf("generation %d of %s was begun, there is %d", generation, name, a.GetGeneration()))
			}
			if _, err := deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: name}); err != nil {
				w.broken = append(w.broken, fmt.Sprintf("the deployment %s was accepted, and now: %v", name, err))
			}
		}
		for id, report := range w.reports {
			a := byID[id]
			now := try{id, a.GetGeneration(), a.GetAttempt()}
			if now.before(report) || now == report && a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
				w.broken = append(w.broken, fmt.Sprintf("the report about %v was confirmed, and now it is %v", report, a))
			}
		}
		for id := range w.csrs {
			a := byID[id.assignment]
			if now := (try{id.assignment, a.GetGeneration(), a.GetAttempt()}); now.before(id) || now == id && a.GetState() <= deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED {
				w.broken = append(w.broken, fmt.Sprintf("the CSR of %v was taken, and now it is %v", id, a))
			}
		}
		for id, fingerprint := range w.chains {
			a := byID[id.assignment]
			if now := (try{id.assignment, a.GetGeneration(), a.GetAttempt()}); now == id && a.GetFingerprint() != fingerprint {
				w.broken = append(w.broken, fmt.Sprintf("the certificate %s was given for %v, and now it is %v", fingerprint, id, a))
			}
		}
	})
	w.verify(ctx, t, filepath.Join(s.plane.Data, "audit", "log"))
}

// tells makes errors of the promises that were seen to be broken.
func (w *witness) tells(t *testing.T) {
	t.Helper()
	for _, promise := range w.broken {
		t.Error(promise)
	}
	w.broken = nil
}

// verify holds the log's files against the records and the checkpoint that were seen.
func (w *witness) verify(ctx context.Context, t *testing.T, log string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.verifier == "" {
		return
	}
	report, err := auditlog.VerifyDir(ctx, log, auditlog.Options{Key: w.verifier, Older: w.checkpoint.Note})
	if err != nil {
		w.broken = append(w.broken, fmt.Sprintf("the audit log after a checkpoint of %d records: %v", w.checkpoint.Size, err))
		return
	}
	if report.Records < w.checkpoint.Size {
		w.broken = append(w.broken, fmt.Sprintf("a checkpoint covered %d records, there are %d", w.checkpoint.Size, report.Records))
	}
}

// assignments lists all.
func (s *site) assignments(ctx context.Context, t *testing.T, deployer deployerv1.DeployerServiceClient) []*deployerv1.AssignmentStatus {
	t.Helper()
	var all []*deployerv1.AssignmentStatus
	q := &deployerv1.ListAssignmentsRequest{PageSize: 1000}
	for {
		page := ok(deployer.ListAssignments(ctx, q))(t)
		all = append(all, page.GetAssignments()...)
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return all
		}
	}
}

// count says how much was acknowledged.
func (w *witness) count() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d deployments, %d tokens, %d CSRs, %d certificates, %d reports, %d records under a checkpoint", len(w.deployments), len(w.hosts), len(w.csrs), len(w.chains), len(w.reports), w.checkpoint.Size)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
