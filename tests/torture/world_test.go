// Package torture kills: `sallyport serve` and agents, built with crash points, at every point between the steps of what cannot
// be undone and at random moments, while they issue, renew, change, withdraw and enrol. In the pauses it holds the whole against
// itself twice: by `sallyport doctor`, as it is shipped, and by what can be seen from outside.
//
//	go test ./tests/torture -run TestTorture -kills 3000 -seed 7
//
// What it has found is in README.md, with the command that shows it.
package torture

import (
	"bufio"
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
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, func() int {
		var err error
		if bin, err = build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}))
}

// build makes the programs, with crash points.
func build() (string, error) {
	dir := filepath.Join(ground, "bin")
	for _, p := range []string{"cli/cmd/sallyport", "agent/cmd/sallyport-agent"} {
		cmd := exec.Command("go", "build", "-tags", "crashpoints", "-o", dir+"/", "github.com/sallyport-pki/sallyport/"+p)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building %s: %w\n%s", p, err, out)
		}
	}
	return dir, nil
}

// tuning makes everything quick enough to be waited for.
const tuning = `
log: {level: info}
deployer:
  agents: {heartbeat_interval: 1s, away_after: 1m, scan_interval: 2s, svid_ttl: 1m}
  rollout: {retry_after: [300ms, 500ms], ask_issuer_every: 1s, check_every: 5s}
issuer:
  identity_max_age: 100ms
  orders: {poll: 100ms, poll_max: 500ms, network: 200ms, network_max: 1s, validation: [300ms, 600ms, 1s], claim: 6s, pass: 1s, host_patience: 5s}
  renewal_info: {every: 1s, least: 500ms, most: 2s, retry: 500ms}
inventory:
  findings: {host_silent: 4s, review: 1s}
audit: {checkpoint_interval: 100ms}
`

// world is a control plane, a CA and some hosts.
type world struct {
	*lab.Lab
	t     *testing.T
	r     *rand.Rand
	plane *lab.Plane
	ca    *pebbletest.Pebble
	conns []*grpc.ClientConn

	deployer  deployerv1.DeployerServiceClient
	inventory inventoryv1.InventoryServiceClient
	issuer    issuerv1.IssuerServiceClient

	hosts  []*host
	seen   string // file that the programs write crash points to
	killed int
	read   int // lines of seen that were counted
	book   *book
	story  []string // what was done last
	extra  int      // authorities and hosts made on the way
}

// host is a machine with its agent and one deployment of the same name.
type host struct {
	*lab.Host
	site      *lab.Site
	profile   string
	connector string
	settings  map[string]string
	veto      string         // while this file is there the reload hook fails
	key       typev1.KeyType // of the next key
}

func newWorld(t *testing.T, store string, b *book, r *rand.Rand) *world {
	dir := ok(os.MkdirTemp(ground, ""))(t)
	w := &world{Lab: lab.New(dir, bin), t: t, r: r, seen: filepath.Join(dir, "seen"), book: b}
	t.Cleanup(func() { w.Close(); _ = os.RemoveAll(dir) })
	config := tuning
	if store == "postgres" {
		servers := lab.New(t.TempDir(), "")
		t.Cleanup(servers.Close)
		config += fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", ok(servers.Postgres(t.Context(), "postgres"))(t))
	}
	w.plane = ok(w.NewPlane("control", lab.ServeOptions{Config: config}))(t)
	w.firstStart()
	for _, service := range []string{"deployer", "inventory", "issuer"} {
		w.conns = append(w.conns, ok(w.plane.Dial(service))(t))
	}
	w.deployer = deployerv1.NewDeployerServiceClient(w.conns[0])
	w.inventory = inventoryv1.NewInventoryServiceClient(w.conns[1])
	w.issuer = issuerv1.NewIssuerServiceClient(w.conns[2])
	port := ok(lab.FreePort())(t)
	w.ca = ok(pebbletest.Start(pebbletest.Options{HTTPPort: port, BadNonces: 5, AdviceEvery: time.Second}))(t)
	w.OnClose(w.ca.Close)
	w.apply("kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n", profile("corp", "corp", "lifetime: 90d"), w.acme("public"), profile("public", "public", "acme_profile: default"))
	w.addHosts(fmt.Sprintf("127.0.0.1:%d", port))
	return w
}

// firstStart is cut off at each of its points, and goes on at the next.
func (w *world) firstStart() {
	for _, p := range crash.FirstStart {
		must(w.t, w.plane.Launch(w.env(p, 1)...))
		select {
		case <-w.plane.Done():
		case <-time.After(10 * time.Second):
			w.plane.Kill()
		}
		w.count()
	}
	must(w.t, w.plane.Start(w.t.Context()))
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
		r := ok(h.Enroll(w.t.Context(), token, w.env(p, 1)...))(w.t)
		w.count()
		if p == "" && r.Code != 0 && !strings.Contains(r.Stderr, "already") {
			w.t.Fatalf("enrolling %s: %s", name, r.Stderr)
		}
	}
	must(w.t, h.Start(w.env("", 0)...))
}

// env arms a point: the program dies at its n-th passage.
func (w *world) env(p crash.Point, n int) []string {
	return []string{fmt.Sprintf("SALLYPORT_CRASH=%s:%d", p, n), "SALLYPORT_CRASH_SEEN=" + w.seen}
}

// count takes in what the programs have noted.
func (w *world) count() {
	f, err := os.Open(w.seen)
	if err != nil {
		return // none has yet
	}
	defer f.Close()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		if lines < w.read {
			continue
		}
		what, p, _ := strings.Cut(s.Text(), " ")
		if what != "killed" {
			w.book.note(crash.Point(p), 0)
			continue
		}
		w.book.note(crash.Point(p), 1)
		w.killed++
		w.tell("killed at %s", p)
	}
	w.read = lines
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

// up waits until the control plane answers, or has died.
func (w *world) up(ctx context.Context) bool {
	for ctx.Err() == nil && w.plane.Running() {
		w.conns[0].ResetConnectBackoff()
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		_, err := w.deployer.ListAgents(attempt, &deployerv1.ListAgentsRequest{PageSize: 1})
		cancel()
		if err == nil {
			for _, c := range w.conns {
				c.ResetConnectBackoff()
			}
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
