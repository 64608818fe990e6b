package fleet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// ground is a file system in memory, of the jail alone.
const ground = "/mnt"

var agents = flag.Int("agents", 120, "agents of the fleet")

func TestMain(m *testing.M) {
	flag.Parse()
	if *agents > 1000 {
		patience = 15 * time.Minute // an agent may be as unlucky a second time
	}
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, m.Run))
}

// patience is how long anything may take before it counts as never: longer than an agent that was unlucky waits of its own accord,
// 5 minutes. It is no aim: those are measured by the bench.
var patience = 7 * time.Minute

// pace is what the control plane admits, so low that a fleet of any size here has to wait for it.
type pace struct {
	enrol, streams, renewals float64 // a second; renewals so few that a slow machine too would begin more
	burst                    int     // of streams
}

func paceOf(agents int) pace {
	n := float64(agents)
	return pace{enrol: n / 12, streams: n / 5, burst: max(1, agents/5), renewals: n / 15}
}

func (p pace) config() string {
	return fmt.Sprintf(`
log: {level: warn}
limits: {anonymous_rate: %g, caller_rate: 100000}
deployer:
  agents: {streams_per_second: %g, streams_burst: %d, heartbeat_interval: 10s, away_after: 1m, svid_ttl: 9d}
  rollout: {retry_after: [2s], ask_issuer_every: 2s}
  renewal: {per_second: %g}
`, p.enrol, p.streams, p.burst, p.renewals)
}

// world is a control plane and a fleet.
type world struct {
	*lab.Lab
	t      *testing.T
	pace   pace
	config string // of the control plane
	plane  *lab.Plane
	clock  *clock
	hosts  []*host
	waited int // how often agents were told to wait, in all rounds that were counted

	deployer  deployerv1.DeployerServiceClient
	inventory inventoryv1.InventoryServiceClient
	issuer    issuerv1.IssuerServiceClient
	audit     auditv1.AuditServiceClient
}

func newWorld(t *testing.T, count int) *world {
	t.Helper()
	must(t, lab.Files(count, filesEach))
	w := &world{Lab: lab.New(ground, filepath.Join(ground, "bin")), t: t, pace: paceOf(count), clock: &clock{}}
	must(t, os.MkdirAll(w.Bin, 0o700))
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(w.Bin, "sallyport"), "./internal/command/later")
	build.Dir, build.Env = "../../cli", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.forward(0)
	t.Cleanup(func() {
		w.stopAll()
		if t.Failed() && w.plane != nil {
			lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(w.plane.Output()), "\n"), func(line string) bool { return strings.Contains(line, "code=ResourceExhausted") })
			t.Log(strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
		w.Close()
	})
	w.config = filepath.Join(ground, "control.yaml")
	w.plane = ok(w.Serve(t.Context(), "control", lab.ServeOptions{Config: w.pace.config()}))(t)
	operator := ok(identity.NewFiles(w.plane.Operator(), slog.New(slog.DiscardHandler)))(t)
	w.OnClose(func() { operator.Close() })
	for _, service := range []string{"deployer", "inventory", "issuer", "audit"} {
		conn := ok(rpc.Dial(rpc.ClientConfig{Address: w.plane.Address, Service: service, Source: operator, Now: w.clock.now}))(t)
		w.OnClose(func() { conn.Close() })
		switch service {
		case "deployer":
			w.deployer = deployerv1.NewDeployerServiceClient(conn)
		case "inventory":
			w.inventory = inventoryv1.NewInventoryServiceClient(conn)
		case "issuer":
			w.issuer = issuerv1.NewIssuerServiceClient(conn)
		case "audit":
			w.audit = auditv1.NewAuditServiceClient(conn)
		}
	}
	return w
}

// configure changes the pace from the next start of the control plane on.
func (w *world) configure(change func(*pace)) {
	w.t.Helper()
	change(&w.pace)
	must(w.t, os.WriteFile(w.config, []byte(w.pace.config()), 0o600))
}

// forward sets the clock of agents forward at once, and that of the control plane from its next start on.
func (w *world) forward(d time.Duration) {
	w.t.Helper()
	ahead := w.clock.ahead.Add(int64(d))
	must(w.t, os.WriteFile(filepath.Join(w.Bin, "ahead"), []byte(time.Duration(ahead).String()), 0o600))
}

func (w *world) each(hosts []*host, do func(*host) error) {
	w.t.Helper()
	var g errgroup.Group
	g.SetLimit(64)
	for _, h := range hosts {
		g.Go(func() error {
			err := do(h)
			for begun := time.Now(); errors.Is(err, syscall.EMFILE) && time.Since(begun) < patience; err = do(h) { // agents have them, and give them back
				time.Sleep(100 * time.Millisecond)
			}
			return err
		})
	}
	must(w.t, g.Wait())
}

func (w *world) startAll(hosts []*host) {
	w.t.Helper()
	w.each(hosts, (*host).start)
}

// stopAll stops all agents, side by side.
func (w *world) stopAll() {
	w.t.Helper()
	for _, h := range w.hosts {
		if h.stop != nil {
			h.stop()
		}
	}
	for _, h := range w.hosts {
		if err := h.end(); err != nil {
			w.t.Errorf("%s: %v", h.name, err)
		}
	}
}

// tokens makes a token for each host.
func (w *world) tokens() {
	w.t.Helper()
	w.each(w.hosts, func(h *host) error {
		made, err := w.deployer.CreateJoinToken(w.t.Context(), &deployerv1.CreateJoinTokenRequest{Host: h.name})
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(h.dir, "token"), []byte(made.GetToken()), 0o600)
	})
}

// deploy wants one certificate on each host. Deployments have so many targets.
func (w *world) deploy() {
	w.t.Helper()
	var text strings.Builder
	text.WriteString("kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n---\n" +
		"kind: Profile\nname: web\nauthority: corp\nlifetime: 9d\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\n" +
		"---\nkind: Identity\nname: shop\nowner: team-shop@example.com\npurpose: fleet\nnames: {dns: [shop.example.com]}\n")
	for i, part := range slices.Collect(slices.Chunk(w.hosts, perDeployment)) {
		text.WriteString("---\n" + deployment(i, part))
	}
	ok(w.plane.Apply(w.t.Context(), text.String()))(w.t)
}

func deployment(i int, hosts []*host) string {
	text := fmt.Sprintf("kind: Deployment\nname: shop-%d\nidentity: shop\nprofile: web\nrollout: {max_parallel: %d, max_failures: 1000}\ntargets:\n", i, perDeployment)
	for _, h := range hosts {
		text += fmt.Sprintf("- {host: %s, name: site, connector: files, settings: {certificate: %s, key: %s}}\n", h.name, h.certificate(), filepath.Join(h.dir, "files", "site.key"))
	}
	return text
}

// assignments are all there are, by host.
func (w *world) assignments(ctx context.Context) (map[string]*deployerv1.AssignmentStatus, error) {
	all := map[string]*deployerv1.AssignmentStatus{}
	for token := ""; ; {
		page, err := w.deployer.ListAssignments(ctx, &deployerv1.ListAssignmentsRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, a := range page.GetAssignments() {
			if all[a.GetTarget().GetHost()] != nil {
				return nil, fmt.Errorf("%s has two assignments", a.GetTarget().GetHost())
			}
			all[a.GetTarget().GetHost()] = a
		}
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func (w *world) fleet(ctx context.Context) (map[string]*deployerv1.Agent, error) {
	all := map[string]*deployerv1.Agent{}
	for token := ""; ; {
		page, err := w.deployer.ListAgents(ctx, &deployerv1.ListAgentsRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, a := range page.GetAgents() {
			all[a.GetHost()] = a
		}
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

// certificates are the fingerprints the issuer has issued.
func (w *world) certificates() map[string]bool {
	w.t.Helper()
	all := map[string]bool{}
	for token := ""; ; {
		page := ok(w.issuer.ListRequests(w.t.Context(), &issuerv1.ListRequestsRequest{
			PageSize: 1000, PageToken: token, States: []issuerv1.RequestState{issuerv1.RequestState_REQUEST_STATE_ISSUED},
		}))(w.t)
		for _, r := range page.GetRequests() {
			if all[r.GetFingerprint()] {
				w.t.Errorf("two requests with the certificate %s", r.GetFingerprint())
			}
			all[r.GetFingerprint()] = true
		}
		if token = page.GetNextPageToken(); token == "" {
			return all
		}
	}
}

// inventoried are the hosts that the inventory knows.
func (w *world) inventoried(ctx context.Context) (map[string]bool, error) {
	all := map[string]bool{}
	for token := ""; ; {
		page, err := w.inventory.ListHosts(ctx, &inventoryv1.ListHostsRequest{PageSize: 1000, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, h := range page.GetHosts() {
			all[h.GetName()] = true
		}
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func (w *world) await(what string, check func() error) {
	w.t.Helper()
	must(w.t, lab.Await(w.t.Context(), patience, what, check, w.plane.Process))
}

// anew is a generation that does not matter: what failed while its renewal was due is tried again with a new certificate in
// its old one.
const anew = 0

// installed waits until all the hosts have installed the certificate of a generation, and looks at what lies there. Each is
// one that the issuer has issued, it is valid, and no two are the same.
func (w *world) installed(hosts []*host, generation int64) {
	w.t.Helper()
	var now map[string]*deployerv1.AssignmentStatus
	w.await(fmt.Sprintf("generation %d on %d hosts", generation, len(hosts)), func() (err error) {
		if now, err = w.assignments(w.t.Context()); err != nil {
			return err
		}
		missing := 0
		var one string
		for _, h := range hosts {
			a := now[h.name]
			right := (generation == anew || a.GetGeneration() == generation) && a.GetNotAfter().AsTime().After(w.clock.now())
			if !right || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED {
				missing, one = missing+1, fmt.Sprintf("%s: generation %d, %v, %s %s", h.name, a.GetGeneration(), a.GetState(), a.GetReason(), a.GetMessage())
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d are missing, such as %s", missing, one)
		}
		return nil
	})
	issued, seen := w.certificates(), map[string]string{}
	for _, h := range hosts {
		print := now[h.name].GetFingerprint()
		switch {
		case h.fingerprint(w.t) != print:
			w.t.Errorf("%s: another certificate lies there than was assigned", h.name)
		case !issued[print]:
			w.t.Errorf("%s: %s was never issued", h.name, print)
		case seen[print] != "":
			w.t.Errorf("%s and %s have the same certificate", h.name, seen[print])
		}
		seen[print] = h.name
	}
}

// begun gives when the control plane began a generation on each of so many hosts since, in order, by the machine's clock: how soon
// agents come to know of it is another matter.
func (w *world) begun(count int, generation int64, since time.Time) []time.Time {
	w.t.Helper()
	ahead := time.Duration(w.clock.ahead.Load())
	first := map[string]time.Time{}
	w.await(fmt.Sprintf("%d records of generation %d", count, generation), func() error {
		q := &auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{Type: "deployer.assignment.planned", From: timestamppb.New(since.Add(ahead))}}
		for {
			page, err := w.audit.ListRecords(w.t.Context(), q)
			if err != nil {
				return err
			}
			for _, raw := range page.GetRecords() { // the newest first
				r, err := auditlog.ParseRecord(raw.GetJson())
				if err != nil {
					return err
				}
				if r.Facts["generation"] == fmt.Sprint(generation) {
					first[r.Subject] = r.Time.Add(-ahead)
				}
			}
			if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
				break
			}
		}
		if len(first) != count {
			return fmt.Errorf("there are %d", len(first))
		}
		return nil
	})
	return slices.SortedFunc(maps.Values(first), time.Time.Compare)
}

// connected waits until the hosts have said that they are connected since, and gives when each said so, in order.
func (w *world) connected(hosts []*host, since time.Time) []time.Time {
	w.t.Helper()
	return w.allSaid(hosts, saidConnected, since)
}

func (w *world) allSaid(hosts []*host, text string, since time.Time) []time.Time {
	w.t.Helper()
	var all []time.Time
	w.await(fmt.Sprintf("%d agents to say %q", len(hosts), text), func() error {
		var missing *host
		if all, missing = w.said(hosts, text, since); missing != nil {
			return fmt.Errorf("%d are missing, such as %s, which has said last:\n%s", len(hosts)-len(all), missing.name, missing.tail())
		}
		return nil
	})
	return all
}

// said gives when each of the hosts said so first, in order, and one that did not.
func (w *world) said(hosts []*host, text string, since time.Time) (all []time.Time, missing *host) {
	for _, h := range hosts {
		if at, ok := h.since(text, since); ok {
			all = append(all, at)
		} else {
			missing = h
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	return all, missing
}

// paced wants nobody to have been admitted before the pace allowed it, begun with a full burst at that moment, and the last
// to have waited for no longer than some rounds of all the others.
func (w *world) paced(what string, begun time.Time, at []time.Time, rate float64, burst int) {
	w.t.Helper()
	for k, t := range at {
		if earliest := begun.Add(time.Duration(float64(k+1-burst) / rate * float64(time.Second))); t.Before(earliest) {
			w.t.Errorf("%s: number %d came %s early", what, k+1, earliest.Sub(t))
			break
		}
	}
	round := time.Duration(float64(len(at)) / rate * float64(time.Second))
	last := at[len(at)-1].Sub(begun)
	w.t.Logf("%s: %d, the first after %.1f s, half after %.1f s, the last after %.1f s; at the pace of %.0f/s all need %.1f s", what, len(at),
		at[0].Sub(begun).Seconds(), at[len(at)/2].Sub(begun).Seconds(), last.Seconds(), rate, round.Seconds())
	if bound := slowness * (3*round + 20*time.Second); last > bound {
		w.t.Errorf("%s: the last waited %s, more than %s", what, last, bound)
	}
}

// slowness is how much slower than alone a machine may be that others use too.
const slowness = 3

// rounds counts how often each agent was told that it is too early, by the server's log from some position on, and wants
// nobody to have been told so more than a few times.
func (w *world) rounds(what string, from int) {
	w.t.Helper()
	told := map[string]int{}
	for line := range strings.Lines(w.plane.Output()[from:]) {
		if !strings.Contains(line, "wait for your turn") {
			continue
		}
		_, rest, _ := strings.Cut(line, "caller=")
		caller, _, _ := strings.Cut(rest, " ")
		told[caller]++
	}
	sum, worst := 0, 0
	for _, n := range told {
		sum, worst = sum+n, max(worst, n)
	}
	w.t.Logf("%s: %d agents were told to wait, %d times in all, one of them %d times", what, len(told), sum, worst)
	w.waited += sum
	if worst > roundsMax {
		w.t.Errorf("%s: one agent was told to wait %d times", what, worst)
	}
}

const roundsMax = 8

// The bound of the server's memory: a base, and so much for each agent, at the peak of a storm.
const (
	baseMemory  = 320 << 20
	agentMemory = 128 << 10
)

// bounded wants the server's memory never to have been above the bound.
func (w *world) bounded(what string) {
	w.t.Helper()
	m := ok(lab.MemoryOf(w.plane.PID()))(w.t)
	bound := int64(baseMemory + len(w.hosts)*agentMemory)
	w.t.Logf("%s: the server has %d MiB, had %d MiB at its peak, may have %d MiB", what, m.Resident>>20, m.Peak>>20, bound>>20)
	if m.Peak > bound {
		w.t.Errorf("%s: the server had %d MiB at its peak, more than %d", what, m.Peak>>20, bound>>20)
	}
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
