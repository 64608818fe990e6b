// Package daemons runs the control plane as it runs beyond one machine: four daemons, each by its own file of deploy/config,
// on PostgreSQL and NATS, with identities as files. It shows that what is documented there is what works.
package daemons

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	trustDomain = "sallyport.example.com"
	patience    = 2 * time.Minute
)

// services in the order of their start; any order works.
var services = []string{"inventory", "issuer", "deployer", "audit"}

// plant is the control plane in parts.
type plant struct {
	*lab.Lab
	t       *testing.T
	configs string // deploy/config
	etc     string // takes the place of /etc/sallyport
	state   string // takes the place of /var/lib/sallyport
	context string // file of the operator's contexts
	dsn     string
	broker  *lab.Broker
	brokers []*lab.BrokerProcess // instead of broker
	natsAt  string
	listen  map[string]string // service, or replica, to its address
	entry   *entry            // where agents come in
	daemons map[string]*lab.Process
	// programs says by which folder of programs a daemon is started, where that is not Bin.
	programs map[string]string
	agent    string // the same for the agent
	// restored is what the deployer's file says of its database.
	restored string
	// more is what the files of all daemons say besides.
	more    string
	verbose bool // they log at debug
}

func repository(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
	}
	t.Fatal("the repository's root is not above the test")
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newLab makes a lab that shows the logs of a test that has failed.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "sallyport")
	must(t, err)
	bin := filepath.Join(repository(t), "bin")
	for _, program := range []string{"sallyport", "sallyport-agent", "sallyport-inventory", "sallyport-issuer", "sallyport-deployer", "sallyport-audit"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	l := lab.New(dir, bin)
	t.Cleanup(func() {
		l.Close()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, path := range logs {
				data, _ := os.ReadFile(path)
				lines := strings.Split(strings.TrimSpace(string(data)), "\n")
				t.Logf("--- %s\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-40):], "\n"))
			}
		}
		must(t, os.RemoveAll(dir))
	})
	return l
}

// newPlant makes trust domain, identities, database and broker, and starts nothing else.
func newPlant(t *testing.T) *plant {
	t.Helper()
	return newPlantBy(t, configFolder(t))
}

// configFolder is that of the example files.
func configFolder(t *testing.T) string { return filepath.Join(repository(t), "deploy/config") }

// newPlantBy is newPlant by other files than deploy/config.
func newPlantBy(t *testing.T, configs string) *plant {
	t.Helper()
	p := newSite(t, configs)
	var err error
	p.broker, err = p.NATS(p.configure("nats.conf", "nats.conf", map[string]string{"0.0.0.0:4222": p.natsAt}))
	must(t, err)
	return p
}

// newSite is newPlantBy without a broker.
func newSite(t *testing.T, configs string) *plant {
	t.Helper()
	l := newLab(t)
	p := &plant{Lab: l, t: t, configs: configs, programs: map[string]string{}, etc: filepath.Join(l.Dir, "etc"), state: filepath.Join(l.Dir, "state"),
		listen: map[string]string{}, daemons: map[string]*lab.Process{}}
	for _, dir := range []string{p.etc, filepath.Join(p.state, "issuer"), filepath.Join(p.etc, "secrets")} {
		must(t, os.MkdirAll(dir, 0o700))
	}
	p.do("trust", "init", "--dir", filepath.Join(p.etc, "trust"), "--trust-domain", trustDomain)
	for _, name := range append([]string{"nats"}, services...) {
		p.do("trust", "issue", "--dir", filepath.Join(p.etc, "trust"), "service/"+name, "--out", p.identity(name))
		p.listen[name] = address(t)
	}
	p.do("trust", "issue", "--dir", filepath.Join(p.etc, "trust"), "operator/alice", "--out", p.identity("alice"))
	p.natsAt, p.listen["deployer-2"] = address(t), address(t)

	var err error
	p.dsn, err = l.Postgres(t.Context(), "postgres")
	must(t, err)
	p.entry = newEntry(t, p.listen["deployer"], p.listen["deployer-2"])
	p.operatorAt(p.listen["deployer"])
	return p
}

func address(t *testing.T) string {
	t.Helper()
	port, err := lab.FreePort()
	must(t, err)
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func (p *plant) identity(name string) string { return filepath.Join(p.etc, "identity", name) }

// configure takes a file of deploy/config with the places of this lab instead of those of a real site, and nothing else
// changed. more are replacements for this file alone.
func (p *plant) configure(file, as string, more map[string]string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.configs, file))
	must(p.t, err)
	text := string(data)
	for from, to := range more {
		if !strings.Contains(text, from) {
			p.t.Fatalf("deploy/config/%s does not have %q any more", file, from)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	text = strings.NewReplacer(
		"host=postgres.example.com user=sallyport dbname=sallyport", p.dsn,
		"nats.example.com:4222", p.natsAt,
		"inventory.example.com:8444", p.listen["inventory"],
		"issuer.example.com:8445", p.listen["issuer"],
		"audit.example.com:8446", p.listen["audit"],
		"/etc/sallyport/", p.etc+"/",
		"/var/lib/sallyport/", p.state+"/",
	).Replace(text)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for _, left := range []string{" /etc/", " /var/", " 0.0.0.0:", "postgres.example.com", "nats.example.com"} {
			if strings.Contains(line, left) {
				p.t.Fatalf("deploy/config/%s: the test has no place for %s", file, line)
			}
		}
	}
	path := filepath.Join(p.etc, as)
	must(p.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// start starts a daemon by its file and waits until it answers. deployer-2 is a second replica by the same file, and so on.
func (p *plant) start(name string) {
	p.t.Helper()
	service, _, _ := strings.Cut(name, "-")
	changes := map[string]string{
		map[string]string{"inventory": "0.0.0.0:8444", "issuer": "0.0.0.0:8445", "deployer": "0.0.0.0:8443", "audit": "0.0.0.0:8446"}[service]: p.listen[name],
	}
	if p.verbose {
		changes["level: info"] = "level: debug"
	}
	if len(p.brokers) == 3 {
		changes["replicas: 1"] = "replicas: 3"
	}
	if len(p.programs) == 0 { // the version before knows nothing of them
		changes[map[string]string{"inventory": "127.0.0.1:9465", "issuer": "127.0.0.1:9466", "deployer": "127.0.0.1:9464", "audit": "127.0.0.1:9467"}[service]] = address(p.t)
	}
	programs := p.Bin
	if other := p.programs[name]; other != "" {
		programs = other
	}
	config := p.configure(service+".yaml", name+".yaml", changes)
	more := p.more
	if service == "deployer" {
		more += p.restored
	}
	if more != "" {
		text, err := os.ReadFile(config)
		must(p.t, err)
		must(p.t, os.WriteFile(config, append(text, more...), 0o600))
	}
	proc, err := p.Start(lab.Command{Name: name, Path: filepath.Join(programs, "sallyport-"+service), Args: []string{"--config", config}})
	must(p.t, err)
	p.daemons[name] = proc
	must(p.t, lab.Await(p.t.Context(), patience, name, func() error {
		conn, err := net.Dial("tcp", p.listen[name])
		if err == nil {
			err = conn.Close()
		}
		return err
	}, proc))
}

// stop asks a daemon to end, and wants it to do so in good order.
func (p *plant) stop(name string) {
	p.t.Helper()
	must(p.t, p.daemons[name].Stop())
	if code := p.daemons[name].ExitCode(); code != 0 {
		p.t.Fatalf("%s ended with code %d:\n%s", name, code, p.daemons[name].Output())
	}
}

// operatorAt writes the operator's contexts with this deployer.
func (p *plant) operatorAt(deployer string) {
	p.t.Helper()
	p.context = p.configure("contexts.yaml", "contexts.yaml", map[string]string{
		"sallyport.example.com:8443": deployer, "/home/alice/.config/sallyport/alice": p.identity("alice"),
	})
}

// cli runs the operator's command line.
func (p *plant) cli(ctx context.Context, args ...string) (string, error) {
	r, err := p.Run(ctx, lab.Command{Path: filepath.Join(p.Bin, "sallyport"), Args: args, Env: []string{"SALLYPORT_CONFIG=" + p.context}})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("sallyport %s: exit code %d: %s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, err
}

// do is cli for what must succeed at once.
func (p *plant) do(args ...string) string {
	p.t.Helper()
	out, err := p.cli(p.t.Context(), args...)
	must(p.t, err)
	return out
}

// apply applies documents.
func (p *plant) apply(documents ...string) {
	p.t.Helper()
	file := filepath.Join(p.Dir, "apply.yaml")
	must(p.t, os.WriteFile(file, []byte(strings.Join(documents, "---\n")), 0o600))
	p.do("apply", "-f", file)
}

// dial connects to a daemon as somebody.
func (p *plant) dial(who, service, address string) *grpc.ClientConn {
	p.t.Helper()
	source, err := identity.NewFiles(p.identity(who), slog.New(slog.DiscardHandler))
	must(p.t, err)
	p.OnClose(func() { source.Close() })
	conn, err := rpc.Dial(rpc.ClientConfig{Address: address, Service: service, Source: source})
	must(p.t, err)
	p.OnClose(func() { conn.Close() })
	return conn
}

// target is the one assignment of a deployment.
func (p *plant) target(ctx context.Context, deployer deployerv1.DeployerServiceClient, name string) (*deployerv1.AssignmentStatus, error) {
	d, err := deployer.GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: name})
	if err != nil {
		return nil, err
	}
	st := d.GetDeployment().GetStatus()
	if len(st.GetAssignments()) != 1 {
		return nil, fmt.Errorf("%d assignments: %s", len(st.GetAssignments()), st.GetMessage())
	}
	return st.GetAssignments()[0], nil
}

// entry is what stands before the replicas of a real site: it passes TCP on to the first that takes it.
type entry struct {
	address string

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newEntry(t *testing.T, replicas ...string) *entry {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	e := &entry{address: lis.Addr().String(), conns: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := lis.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				all.Go(func() { e.pass(in, replicas) })
			}
		}
	})
	t.Cleanup(func() {
		lis.Close()
		e.mu.Lock()
		for c := range e.conns {
			c.Close()
		}
		e.mu.Unlock()
		all.Wait()
	})
	return e
}

func (e *entry) pass(in net.Conn, replicas []string) {
	defer in.Close()
	for _, address := range replicas {
		out, err := net.Dial("tcp", address)
		if err != nil {
			continue
		}
		e.keep(in, out)
		defer e.drop(in, out)
		var both sync.WaitGroup
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			both.Go(func() {
				_, _ = pair[0].(*net.TCPConn).WriteTo(pair[1]) // the end of either is the end of both
				pair[0].Close()
				pair[1].Close()
			})
		}
		both.Wait()
		return
	}
}

func (e *entry) keep(conns ...net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range conns {
		e.conns[c] = true
	}
}

func (e *entry) drop(conns ...net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range conns {
		delete(e.conns, c)
	}
}

// schemas are those of the services in the one database.
func (p *plant) schemas() []string {
	p.t.Helper()
	r, err := p.Run(p.t.Context(), lab.Command{Path: "psql", Args: []string{"-At", "-c",
		"SELECT schema_name FROM information_schema.schemata WHERE schema_name !~ '^(pg_|information_schema|public)' ORDER BY 1", p.dsn}})
	must(p.t, err)
	if r.Code != 0 {
		p.t.Fatal(r.Stderr)
	}
	names := strings.Fields(r.Stdout)
	slices.Sort(names)
	return names
}
