package callers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/sallyport-pki/sallyport/auditlog"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// ground is a file system in memory, of the jail alone.
const ground = "/mnt"

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "16") // they wait for streams and certificates to end
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, m.Run))
}

// patience is how long anything may take before it counts as never.
const patience = 90 * time.Second

// config makes the loops quick, and lets one address and one agent make all the calls of this test.
var config = map[string]string{
	"":         "limits: {caller_rate: 10000, anonymous_rate: 10000}\n",
	"deployer": "rollout: {retry_after: [100ms], ask_issuer_every: 1s}\n",
	"issuer":   "identity_max_age: 100ms\norders: {poll: 100ms, poll_max: 500ms, host_patience: 5m}\n",
	"audit":    "checkpoint_interval: 100ms\n",
}

// domain is the trust domain of the control plane.
const domain = "sallyport.local"

// site is a control plane, by one server or four, and its callers.
type site struct {
	*lab.Lab
	plane    *lab.Plane
	audit    auditv1.AuditServiceClient
	deployer deployerv1.DeployerServiceClient
	servers  []string                    // by the service that one is named after: serve is the deployer's
	trust    []string                    // where the command line finds the trust domain's root
	callers  map[string]*tls.Certificate // nil shows none

	// What is alpha's.
	assignment, challenge string

	mu      sync.Mutex
	refused map[string]refusal // by request id
}

// refusal is a call that was refused, and must have its record.
type refusal struct{ what, kind, subject, actor, reason string }

// newSite starts serve.
func newSite(t *testing.T) *site {
	t.Helper()
	s := newLab(t)
	text := config[""]
	for _, service := range []string{"deployer", "issuer", "audit"} {
		text += service + ":\n  " + strings.ReplaceAll(strings.TrimSpace(config[service]), "\n", "\n  ") + "\n"
	}
	s.plane = ok(s.Serve(t.Context(), "control", lab.ServeOptions{Config: text}))(t)
	s.servers, s.trust = []string{"deployer"}, []string{"--data", s.plane.Data}
	return s.begin(t)
}

// newDaemons starts the four daemons.
func newDaemons(t *testing.T) *site {
	t.Helper()
	s := newLab(t)
	d := ok(s.NewDaemons(t.Context(), "control", lab.DaemonsOptions{TrustDomain: domain, Config: config}))(t)
	must(t, d.Start(t.Context()))
	s.plane, s.servers, s.trust = d.Plane, lab.Services, []string{"--dir", d.Trust()}
	return s.begin(t)
}

// server is where a service is reached, by the name of that server.
func (s *site) server(service string) string {
	if len(s.servers) == 1 {
		return s.servers[0]
	}
	return service
}

func newLab(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp(ground, "")
	must(t, err)
	s := &site{
		Lab: lab.New(dir, bin(t)), callers: map[string]*tls.Certificate{"nobody": nil},
		refused: map[string]refusal{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, path := range logs {
				text, _ := os.ReadFile(path)
				lines := strings.Split(strings.TrimSpace(string(text)), "\n")
				t.Logf("--- %s\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
		}
		s.Close()
	})
	return s
}

// begin gives the control plane a CA that waits for alpha to answer its challenge.
func (s *site) begin(t *testing.T) *site {
	t.Helper()
	s.audit = auditv1.NewAuditServiceClient(ok(s.plane.Dial("audit"))(t))
	s.deployer = deployerv1.NewDeployerServiceClient(ok(s.plane.Dial("deployer"))(t))

	ca := ok(pebbletest.Start(pebbletest.Options{HTTPPort: ok(lab.FreePort())(t)}))(t)
	s.OnClose(ca.Close)
	bundle := strings.ReplaceAll(strings.TrimSpace(ca.CABundlePEM()), "\n", "\n    ")
	const profile = "key_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\n"
	ok(s.plane.Apply(t.Context(), strings.Join([]string{
		"kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n",
		"kind: Profile\nname: corp\nauthority: corp\nlifetime: 90d\n" + profile,
		fmt.Sprintf("kind: Authority\nname: public\nacme:\n  directory: %s\n  terms_agreed: true\n  ca_bundle_pem: |\n    %s\n", ca.Directory(), bundle),
		"kind: Profile\nname: public\nauthority: public\nacme_profile: default\n" + profile,
		deployment("desk", "corp", "desk"), deployment("shop", "public", "shop"),
	}, "---\n")))(t)
	return s
}

// deployment to targets of alpha, of an identity of the same name.
func deployment(name, profile string, targets ...string) string {
	text := fmt.Sprintf(`kind: Identity
name: %[1]s
owner: team-%[1]s@example.com
purpose: callers
names: {dns: [%[1]s.example.com]}
---
kind: Deployment
name: %[1]s
identity: %[1]s
profile: %[2]s
rollout: {max_parallel: 100, max_failures: 100}
targets:
`, name, profile)
	for _, target := range targets {
		text += fmt.Sprintf("- {host: alpha, name: %[1]s, connector: files, settings: {certificate: /srv/%[1]s.pem, key: /srv/%[1]s.key}}\n", target)
	}
	return text
}

// bin is the folder that `make build` fills.
func bin(t *testing.T) string {
	t.Helper()
	dir := ok(filepath.Abs("../../bin"))(t)
	if _, err := os.Stat(filepath.Join(dir, "sallyport")); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	return dir
}

// ok takes the result of a call that must succeed.
func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) await(t *testing.T, what string, check func() error) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, what, check, s.plane.Process))
}

// issue makes an identity by the command line: from the control plane's own root, or from that of the trust domain in dir.
func (s *site) issue(t *testing.T, who, dir string, more ...string) *tls.Certificate {
	t.Helper()
	out := ok(os.MkdirTemp(s.Dir, "identity-"))(t)
	args := []string{"trust", "issue", who, "--out", out}
	if dir == "" {
		args = append(args, s.trust...)
	} else {
		args = append(args, "--dir", dir)
	}
	ok(s.plane.Do(t.Context(), append(args, more...)...))(t)
	pair := ok(tls.LoadX509KeyPair(filepath.Join(out, identity.FileSVID), filepath.Join(out, identity.FileKey)))(t)
	return &pair
}

// domainOf makes another trust domain and gives its folder.
func (s *site) domainOf(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(ok(os.MkdirTemp(s.Dir, "domain-"))(t), "trust")
	ok(s.plane.Do(t.Context(), "trust", "init", "--dir", dir, "--trust-domain", name))(t)
	return dir
}

// dial connects to a server as the caller, whose certificate is nil when it shows none. Whom it reaches is of no interest here.
func (s *site) dial(t *testing.T, cert *tls.Certificate, server string) *grpc.ClientConn {
	t.Helper()
	if cert == nil {
		cert = &tls.Certificate{}
	}
	address := s.plane.Address
	if at := s.plane.At[server]; at != "" {
		address = at
	}
	conn := ok(grpc.NewClient("dns:///"+address, grpc.WithAuthority(server+rpc.ServerNameSuffix), grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // see above
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
		}))))(t)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// named gives a call an id by which its record is found.
func named(ctx context.Context) (context.Context, string) {
	id := trace.NewRequest()
	return metadata.AppendToOutgoingContext(ctx, "x-request-id", id), id
}

// agent is an agent that does only what the test does.
type agent struct {
	agentv1.AgentServiceClient
	conn *grpc.ClientConn
	host string
	key  *ecdsa.PrivateKey
	cert *tls.Certificate
}

// enrol lets an agent in.
func (s *site) enrol(t *testing.T, host string) *agent {
	t.Helper()
	made := ok(s.deployer.CreateJoinToken(t.Context(), &deployerv1.CreateJoinTokenRequest{Host: host}))(t)
	token := ok(identity.ParseJoinToken(made.GetToken()))(t)
	key := newKey(t)
	got := ok(agentv1.NewAgentServiceClient(s.dial(t, nil, "deployer")).Enroll(t.Context(), &agentv1.EnrollRequest{
		TokenId: token.ID, TokenSecret: token.Secret, Csr: request(t, key, x509.CertificateRequest{}), Host: host,
	}))(t)
	return s.agent(t, host, key, got.GetGrant())
}

// agent speaks with an identity that was granted.
func (s *site) agent(t *testing.T, host string, key *ecdsa.PrivateKey, g *agentv1.IdentityGrant) *agent {
	t.Helper()
	return s.speak(t, host, &tls.Certificate{Certificate: g.GetChain(), PrivateKey: key})
}

func (s *site) speak(t *testing.T, host string, cert *tls.Certificate) *agent {
	t.Helper()
	conn := s.dial(t, cert, "deployer")
	return &agent{AgentServiceClient: agentv1.NewAgentServiceClient(conn), conn: conn, host: host, key: cert.PrivateKey.(*ecdsa.PrivateKey), cert: cert}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func request(t *testing.T, key *ecdsa.PrivateKey, template x509.CertificateRequest) []byte {
	t.Helper()
	return ok(x509.CreateCertificateRequest(rand.Reader, &template, key))(t)
}

// stream is an agent's stream, with what it has told so far.
type stream struct {
	agentv1.AgentService_SubscribeClient
	assignments map[string]*agentv1.Assignment
	challenges  map[string]*agentv1.Challenge
	session     string
	revision    int64
}

func (a *agent) subscribe(ctx context.Context, t *testing.T, req *agentv1.SubscribeRequest) *stream {
	t.Helper()
	s := &stream{assignments: map[string]*agentv1.Assignment{}, challenges: map[string]*agentv1.Challenge{}}
	s.AgentService_SubscribeClient = ok(a.Subscribe(ctx, req))(t)
	return s
}

// until reads on until found is content.
func (s *stream) until(t *testing.T, what string, found func() bool) {
	t.Helper()
	for !found() {
		msg, err := s.Recv()
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		s.session, s.revision = msg.GetSession(), msg.GetRevision()
		for _, a := range msg.GetAssignments() {
			s.assignments[a.GetTarget().GetName()] = a
		}
		for _, c := range msg.GetChallenges() {
			s.challenges[c.GetId()] = c
		}
	}
}

// assigned waits until the target's assignment is as wanted.
func (s *stream) assigned(t *testing.T, target string, wanted func(*agentv1.Assignment) bool) *agentv1.Assignment {
	t.Helper()
	s.until(t, "the assignment of "+target, func() bool { return s.assignments[target] != nil && wanted(s.assignments[target]) })
	return s.assignments[target]
}

// records of this type, by request id.
func (s *site) records(ctx context.Context, kind string) (map[string][]auditlog.Record, error) {
	all := map[string][]auditlog.Record{}
	q := &auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{Type: kind}}
	for {
		page, err := s.audit.ListRecords(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, raw := range page.GetRecords() {
			r, err := auditlog.ParseRecord(raw.GetJson())
			if err != nil {
				return nil, err
			}
			all[r.RequestID] = append(all[r.RequestID], r)
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return all, nil
		}
	}
}

// checkRecords wants one record for each refusal, and none of a refusal that nobody has seen.
func (s *site) checkRecords(t *testing.T) {
	t.Helper()
	found := map[string][]auditlog.Record{}
	s.await(t, "the records of all refusals", func() error {
		clear(found)
		for _, service := range slices.Compact(slices.Sorted(maps.Values(recorders))) {
			of, err := s.records(t.Context(), service+".call.denied")
			if err != nil {
				return err
			}
			for id, records := range of {
				found[id] = append(found[id], records...)
			}
		}
		for id, r := range s.refused {
			if len(found[id]) == 0 {
				return fmt.Errorf("%s: no record", r.what)
			}
		}
		return nil
	})
	for id, r := range s.refused {
		if n := len(found[id]); n != 1 {
			t.Errorf("%s: %d records", r.what, n)
		}
		got := found[id][0]
		if (refusal{r.what, got.Type, got.Subject, got.Actor, got.Reason}) != r || got.Result != "refused" {
			t.Errorf("%s: want the record %+v, got %+v", r.what, r, got)
		}
	}
	for id, records := range found {
		if _, known := s.refused[id]; !known {
			t.Errorf("records of a refusal that nobody has seen: %+v", records)
		}
	}
	t.Logf("%d refusals, each with its record", len(s.refused))
}
