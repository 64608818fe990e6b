package daemons

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/auditlog"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const host, dns = "web-1", "shop.example.com"

// TestDaemons does the main job with four daemons on PostgreSQL and NATS, and goes on doing it while each of them, and the
// broker, is stopped and started again.
func TestDaemons(t *testing.T) {
	p := newPlant(t)
	for _, name := range services {
		p.start(name)
	}
	p.awaitAll()
	if got := p.schemas(); !slices.Equal(got, []string{"audit", "deployer", "inventory", "issuer"}) {
		t.Errorf("the schemas are %v", got)
	}
	p.strangerAtTheBroker()

	site := p.enrol()
	p.deploy(site)
	shop := &shop{plant: p, site: site, generation: 1, deployer: deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer"]))}
	shop.served()

	for _, stop := range append([]string{"broker", "agent"}, services...) {
		shop.withoutOne(stop)
	}
	p.replicas(shop)
	p.deniedCalls()
	p.auditVerifies(shop.generation)
	p.noErrors()
}

// withoutOne asks for a renewal while one part is away. Where the part is not needed for it, it is done meanwhile; else it is
// done once the part is back.
func (s *shop) withoutOne(name string) {
	s.t.Helper()
	s.t.Logf("a renewal while the %s is away", name)
	start := func() { s.start(name) }
	switch name {
	case "broker":
		s.broker.Stop()
		start = func() { must(s.t, s.broker.Start()) }
	case "agent":
		must(s.t, s.site.agent.Stop())
		start = func() { must(s.t, s.site.agent.Start()) }
	case "deployer": // the operator's command goes to it
		s.renew("deployer stops")
		s.stop(name)
		start()
		s.served()
		return
	default:
		s.stop(name)
	}
	s.renew(name + " is away")
	if name == "broker" || name == "audit" {
		s.served()
		start()
		return
	}
	start()
	s.served()
}

// awaitAll waits until all four services answer the operator.
func (p *plant) awaitAll() {
	p.t.Helper()
	for _, args := range [][]string{{"get", "identities"}, {"get", "authorities"}, {"get", "agents"}, {"audit", "list"}} {
		must(p.t, lab.Await(p.t.Context(), patience, strings.Join(args, " "), func() error {
			_, err := p.cli(p.t.Context(), args...)
			return err
		}))
	}
}

// strangerAtTheBroker shows that an operator's identity is good for nothing at the broker.
func (p *plant) strangerAtTheBroker() {
	p.t.Helper()
	dir := p.identity("alice")
	_, err := nats.Connect("tls://"+p.natsAt, nats.ClientCert(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid-key.pem")),
		nats.RootCAs(filepath.Join(dir, "bundle.pem")), nats.Secure())
	if err == nil {
		p.t.Fatal("an operator may connect to the broker")
	}
	if !errors.Is(err, nats.ErrAuthorization) && !strings.Contains(err.Error(), "x509") {
		p.t.Errorf("refused for another reason: %v", err)
	}
}

// machine is a host with nginx and an agent.
type machine struct {
	*lab.Site
	agent *hostAgent
}

// hostAgent runs by deploy/config/agent.yaml.
type hostAgent struct {
	*lab.Process
	p       *plant
	command lab.Command
}

func (a *hostAgent) Start() error {
	proc, err := a.p.Lab.Start(a.command)
	a.Process = proc
	return err
}

func (p *plant) enrol() *machine {
	p.t.Helper()
	site, err := p.Nginx(p.t.Context(), "nginx", dns)
	must(p.t, err)
	files := filepath.Join(p.Dir, "services")
	must(p.t, os.Mkdir(files, 0o755))
	config := p.configure("agent.yaml", "agent.yaml", map[string]string{
		"sallyport.example.com:8443": p.entry.address, "/var/lib/sallyport-agent": filepath.Join(p.state, "agent"),
		"/etc/nginx/tls": site.TLSDir, "/etc/nginx/nginx.conf": site.Config, "/run/nginx.pid": site.PIDFile, "/etc/pki/services": files,
		"/usr/bin/systemctl, reload, postfix": "/bin/true", "listen: :80": "listen: 127.0.0.1:0",
		"connectors:": "scan: {listeners: \"off\"} # it would find our own\nconnectors:",
	})
	a := &hostAgent{p: p, command: lab.Command{Name: "agent", Path: filepath.Join(cmp.Or(p.agent, p.Bin), "sallyport-agent"), Args: []string{"run", "--config", config}}}
	token := filepath.Join(p.Dir, "token")
	must(p.t, os.WriteFile(token, []byte(p.do("token", "create", "--host", host, "--quiet")), 0o600))
	enrolment := a.command
	enrolment.Args = []string{"enroll", "--config", config, "--token-file", token}
	r, err := p.Run(p.t.Context(), enrolment)
	must(p.t, err)
	if r.Code != 0 {
		p.t.Fatalf("enrolling: %s", r.Stderr)
	}
	must(p.t, a.Start())
	return &machine{Site: site, agent: a}
}

func (p *plant) deploy(m *machine) {
	p.t.Helper()
	p.apply(documents(m.Site)...)
}

// documents are all that the shop needs.
func documents(m *lab.Site) []string {
	return []string{
		"kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n",
		"kind: Profile\nname: web\nauthority: corp\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\nlifetime: 90d\n",
		"kind: Identity\nname: shop\nowner: web-team@example.com\npurpose: the shop\nnames: {dns: [" + dns + "]}\n",
		fmt.Sprintf("kind: Deployment\nname: shop\nidentity: shop\nprofile: web\ntargets:\n  - host: %s\n    connector: nginx\n    settings: {certificate: %q, key: %q, verify: %q}\n",
			host, m.Certificate, m.Key, m.Address),
	}
}

// shop is the one deployment.
type shop struct {
	*plant
	site       *machine
	deployer   deployerv1.DeployerServiceClient
	generation int64
	last       *x509.Certificate
}

// renew asks for the next generation.
func (s *shop) renew(why string) {
	s.t.Helper()
	s.do("renew", "deployment", "shop", "--reason", why)
	s.generation++
}

// served waits until the deployment is served in the generation that was asked for, by nginx itself, with a certificate that is
// new.
func (s *shop) served() {
	s.t.Helper()
	generation := s.generation
	began := time.Now()
	must(s.t, lab.Await(s.t.Context(), patience, fmt.Sprintf("generation %d to be served", generation), func() error {
		a, err := s.target(s.t.Context(), s.deployer, "shop")
		if err != nil {
			return err
		}
		if a.GetGeneration() < generation || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			return fmt.Errorf("generation %d, attempt %d, %s: %s %s", a.GetGeneration(), a.GetAttempt(), a.GetState(), a.GetReason(), a.GetMessage())
		}
		chain, err := lab.Served(s.t.Context(), s.site.Address, dns)
		if err != nil {
			return err
		}
		if got := lab.Fingerprint(chain[0]); got != a.GetFingerprint() {
			return fmt.Errorf("assigned is %s, served is %s", a.GetFingerprint(), got)
		}
		if s.last != nil && chain[0].Equal(s.last) {
			s.t.Fatalf("generation %d serves the certificate of the one before", generation)
		}
		s.last = chain[0]
		return nil
	}))
	s.t.Logf("generation %d served after %s", generation, time.Since(began).Round(time.Millisecond))
}

// replicas runs a second deployer on the same database. The agent is with the first, the operator with the second.
func (p *plant) replicas(s *shop) {
	p.t.Helper()
	p.start("deployer-2")
	first, second := s.deployer, deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer-2"]))
	p.operatorAt(p.listen["deployer-2"])
	s.deployer = second
	s.renew("told to the replica without the agent")
	s.served()

	p.t.Log("the first replica goes; the agent comes to the second")
	p.stop("deployer")
	s.renew("told to the only replica")
	s.served()
	p.start("deployer")
	p.operatorAt(p.listen["deployer"])
	s.deployer = first
	s.renew("told to the replica that is back")
	s.served()
	p.stop("deployer-2")
	s.renew("told to the only replica again")
	s.served()
}

// deniedCalls calls each service as somebody who may not, and finds who tried what in the audit log.
func (p *plant) deniedCalls() {
	p.t.Helper()
	ctx := p.t.Context()
	log := auditv1.NewAuditServiceClient(p.dial("alice", "audit", p.listen["audit"]))
	for _, try := range []struct {
		service, who, caller, method, reason string
		call                                 func(grpc.ClientConnInterface) error
	}{
		{"issuer", "alice", "operator/alice", "ReportChallenge", rpc.ReasonRoleNotAllowed, func(c grpc.ClientConnInterface) error {
			_, err := issuerv1.NewIssuerServiceClient(c).ReportChallenge(ctx, &issuerv1.ReportChallengeRequest{})
			return err
		}},
		{"deployer", "alice", "operator/alice", "RenewIdentity", rpc.ReasonRoleNotAllowed, func(c grpc.ClientConnInterface) error {
			_, err := agentv1.NewAgentServiceClient(c).RenewIdentity(ctx, &agentv1.RenewIdentityRequest{})
			return err
		}},
		{"inventory", "nats", "", "ListHosts", rpc.ReasonUnknownIdentity, func(c grpc.ClientConnInterface) error {
			_, err := inventoryv1.NewInventoryServiceClient(c).ListHosts(ctx, &inventoryv1.ListHostsRequest{})
			return err
		}},
		{"audit", "issuer", "service/issuer", "ListRecords", rpc.ReasonRoleNotAllowed, func(c grpc.ClientConnInterface) error {
			_, err := auditv1.NewAuditServiceClient(c).ListRecords(ctx, &auditv1.ListRecordsRequest{})
			return err
		}},
	} {
		if f := fault.Of(try.call(p.dial(try.who, try.service, p.listen[try.service]))); f == nil || f.Reason != try.reason {
			p.t.Fatalf("%s calls %s: %v", try.who, try.method, f)
		}
		kind := try.service + ".call.denied"
		must(p.t, lab.Await(ctx, patience, "the record "+kind, func() error {
			page, err := log.ListRecords(ctx, &auditv1.ListRecordsRequest{Filter: &auditv1.RecordFilter{Type: kind}})
			if err != nil {
				return err
			}
			if len(page.GetRecords()) != 1 {
				return fmt.Errorf("%d records", len(page.GetRecords()))
			}
			r, err := auditlog.ParseRecord(page.GetRecords()[0].GetJson())
			if err != nil {
				return err
			}
			if !strings.HasSuffix(r.Actor, try.caller) || r.Reason != try.reason || !strings.Contains(r.Subject, try.method) {
				p.t.Errorf("the record does not tell who did what: %+v", r)
			}
			return nil
		}))
	}
}

// auditVerifies exports the log and verifies the export and the log's own files.
func (p *plant) auditVerifies(generations int64) {
	p.t.Helper()
	log := auditv1.NewAuditServiceClient(p.dial("alice", "audit", p.listen["audit"]))
	must(p.t, lab.Await(p.t.Context(), patience, "one record of each generation served", func() error {
		page, err := log.ListRecords(p.t.Context(), &auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{Type: "deployer.assignment.served"}})
		if err != nil {
			return err
		}
		if got := int64(len(page.GetRecords())); got != generations {
			return fmt.Errorf("%d records for %d generations", got, generations)
		}
		return nil
	}))
	key := strings.TrimSpace(p.do("audit", "key"))
	export := filepath.Join(p.Dir, "export.jsonl")
	p.do("audit", "export", "-o", export)
	for _, path := range []string{export, filepath.Join(p.state, "audit")} {
		p.do("audit", "verify", "--key", key, path)
	}
	data, err := os.ReadFile(export)
	must(p.t, err)
	for _, want := range []string{"deployer.assignment.served", "issuer.request.issued", "inventory.identity", "issuer.call.denied", "deployer.agent.enrolled"} {
		if !strings.Contains(string(data), want) {
			p.t.Errorf("the export has no record of type %s", want)
		}
	}
	changed := strings.Replace(string(data), "web-team", "web-tean", 1)
	if changed == string(data) {
		p.t.Fatal("the identity's owner is not in the export")
	}
	must(p.t, os.WriteFile(export, []byte(changed), 0o600))
	if _, err := p.cli(context.Background(), "audit", "verify", "--key", key, export); err == nil || !strings.Contains(err.Error(), "exit code 8") {
		p.t.Errorf("a changed export verifies: %v", err)
	}
}

// noErrors wants that no daemon has logged an error in all this.
func (p *plant) noErrors() {
	p.t.Helper()
	for name, proc := range p.daemons {
		for line := range strings.Lines(proc.Output()) {
			if strings.Contains(line, "level=ERROR") {
				p.t.Errorf("%s: %s", name, line)
			}
		}
	}
}
