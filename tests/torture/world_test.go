// Package torture kills: `sallyport serve`, the four daemons and agents, built with crash points, at every point between the steps of what cannot
// be undone and at random moments, while they issue, renew, change, withdraw and enrol. In the pauses it holds the whole against
// itself twice: by `sallyport doctor`, as it is shipped, and by what can be seen from outside.
//
//	go test ./tests/torture -run TestTorture -kills 3000 -seed 7
//
// What it has found is in README.md, with the command that shows it.
package torture

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const ground = "/mnt" // a file system in memory, of the jail alone

var (
	kills = flag.Int("kills", 320, "kills in all worlds together")
	seed  = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of what is killed when")
	at    = flag.String("at", "", "the only point to kill at, besides random moments")
	bin   string // programs with crash points
)

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "3") // the worlds mostly wait
	os.Exit(lab.BrokerMain(func() int {
		return lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, func() int {
			var err error
			if bin, err = build(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return m.Run()
		})
	}))
}

// build makes the programs, with crash points.
func build() (string, error) {
	dir := filepath.Join(ground, "bin")
	programs := []string{"cli/cmd/sallyport", "agent/cmd/sallyport-agent"}
	for _, service := range services {
		programs = append(programs, "services/"+service+"/cmd/sallyport-"+service)
	}
	args := []string{"build", "-tags", "crashpoints", "-o", dir + "/"}
	for _, p := range programs {
		args = append(args, "github.com/sallyport-pki/sallyport/"+p)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return dir, nil
}

// tuning makes everything quick enough to be waited for.
var tuning = map[string]string{
	"deployer": `agents: {heartbeat_interval: 1s, away_after: 1m, scan_interval: 2s, svid_ttl: 1m}
rollout: {retry_after: [300ms, 500ms], ask_issuer_every: 1s, check_every: 5s}
`,
	"issuer": `identity_max_age: 100ms
orders: {poll: 100ms, poll_max: 500ms, network: 200ms, network_max: 1s, validation: [300ms, 600ms, 1s], claim: 6s, pass: 1s, host_patience: 5s}
renewal_info: {every: 1s, least: 500ms, most: 2s, retry: 500ms}
`,
	"inventory": "findings: {host_silent: 4s, review: 1s}\n",
	"audit":     "checkpoint_interval: 100ms\n",
}

// tuned is the configuration of all services in one process.
func tuned() string {
	config := "log: {level: info}\n"
	for _, service := range services {
		config += service + ":\n  " + strings.ReplaceAll(strings.TrimSpace(tuning[service]), "\n", "\n  ") + "\n"
	}
	return config
}

// world is a control plane, a CA and some hosts.
type world struct {
	*lab.Lab
	t       *testing.T
	r       *rand.Rand
	plane   *lab.Plane // of the daemons: their operator's commands alone
	control []*victim  // the programs of the control plane
	log     string     // the audit log's folder
	at      map[string]string
	ca      *pebbletest.Pebble
	conns   []*grpc.ClientConn

	deployer  deployerv1.DeployerServiceClient
	inventory inventoryv1.InventoryServiceClient
	issuer    issuerv1.IssuerServiceClient
	audit     auditv1.AuditServiceClient

	hosts []*host
	tally *tally   // of serve and of the agents
	story []string // what was done last
	extra int      // authorities and hosts made on the way

	killed, atRandom int
	died             crash.Point // where one was killed last

	promised map[string]int64 // by assignment: the generation that the deployer has answered it has begun

	patient bool // orders are left the time to come to their end
}

// host is a machine with its agent and one deployment of the same name.
type host struct {
	*lab.Host
	site      *lab.Site
	profile   string
	connector string
	settings  map[string]string
	veto      string         // while this file is there the reload hook fails
	inMemory  bool           // its certificate is replaced in HAProxy's memory
	key       typev1.KeyType // of the next key
}

func newWorld(t *testing.T, kind string, b *book, r *rand.Rand) *world {
	dir := ok(os.MkdirTemp(ground, ""))(t)
	w := &world{Lab: lab.New(dir, bin), t: t, r: r, promised: map[string]int64{}, tally: &tally{book: b, file: filepath.Join(dir, "seen")}}
	t.Cleanup(func() { w.Close(); _ = os.RemoveAll(dir) })
	switch kind {
	case "sqlite":
		w.serve(tuned())
	case "postgres":
		w.serve(tuned() + fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", w.postgres()))
	case "daemons":
		w.daemons(w.postgres())
	}
	w.deployer = deployerv1.NewDeployerServiceClient(w.dial("deployer"))
	w.inventory = inventoryv1.NewInventoryServiceClient(w.dial("inventory"))
	w.issuer = issuerv1.NewIssuerServiceClient(w.dial("issuer"))
	w.audit = auditv1.NewAuditServiceClient(w.dial("audit"))
	for _, v := range w.control {
		w.up(t.Context(), v)
	}
	port := ok(lab.FreePort())(t)
	w.ca = ok(pebbletest.Start(pebbletest.Options{HTTPPort: port, BadNonces: 5, OrdersPerPage: 1000, AdviceEvery: time.Second}))(t)
	w.OnClose(w.ca.Close)
	w.apply("kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n", profile("corp", "corp", "lifetime: 90d"), w.acme("public"), profile("public", "public", "acme_profile: default"))
	w.addHosts(fmt.Sprintf("127.0.0.1:%d", port))
	return w
}

// postgres is an empty database.
func (w *world) postgres() string {
	servers := lab.New(w.t.TempDir(), "")
	w.t.Cleanup(servers.Close)
	return ok(servers.Postgres(w.t.Context(), "postgres"))(w.t)
}

// dial connects to a service as an operator.
func (w *world) dial(service string) *grpc.ClientConn {
	conn := ok(w.plane.Dial(service))(w.t)
	w.conns = append(w.conns, conn)
	return conn
}

// serve makes a control plane in one process. Its first start is cut off at each of its points, and goes on at the next.
func (w *world) serve(config string) {
	w.plane = ok(w.NewPlane("control", lab.ServeOptions{Config: config}))(w.t)
	w.at, w.log = map[string]string{}, filepath.Join(w.plane.Data, "audit")
	for _, service := range services {
		w.at[service] = w.plane.Address
	}
	for _, p := range crash.FirstStart {
		must(w.t, w.plane.Launch(w.tally.env(1, p)...))
		select {
		case <-w.plane.Done():
		case <-time.After(time.Minute):
			w.plane.Kill()
		}
		w.count()
	}
	must(w.t, w.plane.Start(w.t.Context()))
	w.control = []*victim{{name: "control", points: w.shuffled(crash.Plane()), tally: w.tally,
		proc: func() *lab.Process { return w.plane.Process }, launch: w.plane.Launch,
		answers: func(ctx context.Context) error {
			_, err := w.deployer.ListAgents(ctx, &deployerv1.ListAgentsRequest{PageSize: 1})
			return err
		}}}
}

func (w *world) addHosts(challenges string) {
	const watching = "verify: {interval: 500ms, wait: 2s}\nscan: {listeners: \"off\"}\n"
	for _, name := range []string{"one", "two", "three", "four"} {
		h := &host{profile: "corp", key: typev1.KeyType_KEY_TYPE_ECDSA_P256}
		software := w.Nginx
		if name == "one" {
			software = w.HAProxy
		}
		h.site = ok(software(w.t.Context(), name+"-site", name+".example.com"))(w.t)
		h.connector, h.settings = h.site.Kind, h.site.Settings()
		config := watching + "connectors:\n" + h.site.Connector()
		switch name {
		case "one": // where each daemon is on its own, HAProxy is reloaded
			if h.inMemory = len(w.control) == 1; h.inMemory {
				config += h.site.InMemory()
			}
		case "two":
			h.profile, config = "public", config+fmt.Sprintf("http01: {listen: %q}\n", challenges)
		case "three":
			h.connector, h.settings["reload"], h.veto = "files", "web", filepath.Join(w.Dir, "veto")
			config = watching + fmt.Sprintf("connectors:\n  files:\n    allow: [%s]\nhooks:\n  web: {command: [/bin/sh, -c, \"test ! -e %s && exec /usr/sbin/nginx -c %s -s reload\"]}\n", h.site.TLSDir, h.veto, h.site.Config)
		}
		w.hosts = append(w.hosts, h)
		w.enrol(h, name, config)
		w.deploy(h)
	}
}

// enrol is cut off at each of its points, and tried again.
func (w *world) enrol(h *host, name, config string) {
	h.Host = ok(w.NewHost(name, lab.HostOptions{Server: w.plane.Address, Extra: config}))(w.t)
	token := ok(w.plane.Token(w.t.Context(), name))(w.t)
	for _, p := range append(slices.Clone(crash.Enrol), "") {
		r := ok(h.Enroll(w.t.Context(), token, w.tally.env(1, p)...))(w.t)
		w.count()
		if p == "" && r.Code != 0 && !strings.Contains(r.Stderr, "already") {
			w.t.Fatalf("enrolling %s: %s", name, r.Stderr)
		}
	}
	must(w.t, h.Start(w.tally.env(0)...))
}

// count takes in what the programs have noted.
func (w *world) count() {
	seen := []*tally{w.tally}
	for _, v := range w.control {
		if v.tally != nil && v.tally != w.tally {
			seen = append(seen, v.tally)
		}
	}
	for _, one := range seen {
		for _, p := range one.count() {
			w.killed++
			w.died = p
			w.tell("killed at %s", p)
		}
	}
}

func (w *world) tell(format string, args ...any) {
	w.story = append(w.story, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *world) acme(name string) string {
	bundle := strings.ReplaceAll(strings.TrimSpace(w.ca.CABundlePEM()), "\n", "\n    ")
	return fmt.Sprintf("kind: Authority\nname: %s\nacme:\n  directory: %s\n  contacts: [\"mailto:pki@example.com\"]\n  terms_agreed: true\n  ca_bundle_pem: |\n    %s\n", name, w.ca.Directory(), bundle)
}

func profile(name, authority, extra string) string {
	return fmt.Sprintf("kind: Profile\nname: %s\nauthority: %s\nkey_types: [ecdsa-p256, ecdsa-p384]\nusages: [server_auth]\nallowed_domains: [example.com]\n%s\n", name, authority, extra)
}

func (w *world) apply(documents ...string) {
	w.t.Helper()
	ok(w.plane.Apply(w.t.Context(), strings.Join(documents, "---\n")))(w.t)
}

func (w *world) deploy(h *host) {
	w.apply(fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: team-%[1]s@example.com\npurpose: torture\nnames: {dns: [%[1]s.example.com]}\n", h.Name))
	w.put(w.t.Context(), h)
}

// up waits until a program of the control plane answers, or has died.
func (w *world) up(ctx context.Context, v *victim) bool {
	for ctx.Err() == nil && v.proc().Running() {
		for _, c := range w.conns {
			c.ResetConnectBackoff()
		}
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		err := v.answers(attempt)
		cancel()
		if err == nil {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

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
