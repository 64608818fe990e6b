// Package e2e shows the main job end to end on real parts: `sallyport serve` and agents as processes, nginx and haproxy,
// a real ACME CA (Pebble), SQLite and PostgreSQL. Each scenario ends with the same check of the whole: what is served is what
// was assigned, each certificate was issued once, and the audit log holds it all and verifies offline.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// ground is a file system in memory, of the jail alone.
const ground = "/mnt"

// seed of what happens at random moments; the same gives the same order of events, as far as processes allow.
var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of random moments")

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // scenarios wait more than they work
		panic(err)
	}
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, m.Run))
}

// patience is how long anything may take before it counts as never.
const patience = 90 * time.Second

// tuning makes the control plane's loops quick enough to be waited for.
const tuning = `
log: {level: info}
deployer:
  agents: {heartbeat_interval: 1s, away_after: 1m, scan_interval: 2s}
  rollout: {retry_after: [500ms, 1s], ask_issuer_every: 1s, check_every: 5s}
issuer:
  identity_max_age: 100ms
  orders: {poll: 100ms, poll_max: 500ms, network: 200ms, network_max: 1s, validation: [300ms, 600ms, 1s], claim: 6s, pass: 1s, host_patience: 5s}
  renewal_info: {every: 1s, least: 500ms, most: 2s, retry: 500ms}
inventory:
  findings: {host_silent: 4s, review: 1s}
audit: {checkpoint_interval: 100ms}
`

// world is a control plane and what belongs to it.
type world struct {
	*lab.Lab
	plane     *lab.Plane
	deployer  deployerv1.DeployerServiceClient
	inventory inventoryv1.InventoryServiceClient
	issuer    issuerv1.IssuerServiceClient
	audit     auditv1.AuditServiceClient

	keys keyring

	mu    sync.Mutex
	hosts []*host
}

// newWorld starts a control plane with authority and profile "corp". When the test is over, the whole is checked.
func newWorld(t *testing.T, config string) *world {
	t.Helper()
	return newWorldWith(t, tuning+config)
}

// newWorldWith takes the whole configuration.
func newWorldWith(t *testing.T, config string) *world {
	t.Helper()
	dir, err := os.MkdirTemp(ground, "")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Lab: lab.New(dir, bin(t))}
	t.Cleanup(func() { w.end(t) })
	w.plane = ok(w.Serve(t.Context(), "control", lab.ServeOptions{Config: config}))(t)
	w.deployer = deployerv1.NewDeployerServiceClient(ok(w.plane.Dial("deployer"))(t))
	w.inventory = inventoryv1.NewInventoryServiceClient(ok(w.plane.Dial("inventory"))(t))
	w.issuer = issuerv1.NewIssuerServiceClient(ok(w.plane.Dial("issuer"))(t))
	w.audit = auditv1.NewAuditServiceClient(ok(w.plane.Dial("audit"))(t))
	w.apply(t, "kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n", profile("corp", "corp", "lifetime: 90d"))
	return w
}

// end checks the whole, and shows the log of a test that has failed.
func (w *world) end(t *testing.T) {
	if w.plane != nil && !t.Failed() {
		w.check(t)
	}
	if w.plane != nil {
		w.show(t, w.plane.Process)
	}
	w.Close()
	if err := os.RemoveAll(w.Dir); err != nil {
		t.Log(err)
	}
}

// show logs what processes have said last, if the test has failed.
func (w *world) show(t *testing.T, procs ...*lab.Process) {
	t.Helper()
	for _, p := range procs {
		if !t.Failed() || p == nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(p.Output()), "\n")
		t.Logf("--- %s\n%s", p.Name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// bin is the folder that `make build` fills.
func bin(t *testing.T) string {
	t.Helper()
	dir := ok(os.Getwd())(t)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			break
		}
	}
	for _, program := range []string{"sallyport", "sallyport-agent"} {
		if _, err := os.Stat(filepath.Join(dir, "bin", program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	return filepath.Join(dir, "bin")
}

// ok takes the result of a call that must succeed.
func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until check is content.
func (w *world) await(t *testing.T, what string, check func() error) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, what, check))
}

// holds makes sure that check stays content until over is.
func (w *world) holds(t *testing.T, what string, check, over func() error) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, what, func() error {
		if err := check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return over()
	}))
}

func (w *world) apply(t *testing.T, documents ...string) {
	t.Helper()
	ok(w.plane.Apply(t.Context(), strings.Join(documents, "---\n")))(t)
}

// do runs the operator's command line.
func (w *world) do(t *testing.T, args ...string) string {
	t.Helper()
	return ok(w.plane.Do(t.Context(), args...))(t)
}

func profile(name, authority, extra string) string {
	return fmt.Sprintf("kind: Profile\nname: %s\nauthority: %s\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\n%s\n", name, authority, extra)
}

func identity(name, dns string) string {
	return fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: team-%[1]s@example.com\npurpose: e2e\nnames: {dns: [%[2]s]}\n", name, dns)
}

// deployment of one target. settings go as JSON, which is YAML too.
func deployment(name, profile, host, connector string, settings map[string]string, extra string) string {
	pairs := []string{}
	for k, v := range settings {
		pairs = append(pairs, fmt.Sprintf("%q: %q", k, v))
	}
	slices.Sort(pairs)
	return fmt.Sprintf("kind: Deployment\nname: %[1]s\nidentity: %[1]s\nprofile: %[2]s\ntargets:\n  - host: %[3]s\n    connector: %[4]s\n    settings: {%[5]s}\n%[6]s\n",
		name, profile, host, connector, strings.Join(pairs, ", "), extra)
}

// records of this type, or with this prefix that ends in a dot, oldest first. By name, only those with this text in subject,
// facts or detail.
func (w *world) records(ctx context.Context, kind, name string) ([]auditlog.Record, error) {
	var all []auditlog.Record
	q := &auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{Type: kind}}
	for {
		page, err := w.audit.ListRecords(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, raw := range page.GetRecords() {
			r, err := auditlog.ParseRecord(raw.GetJson())
			if err != nil {
				return nil, err
			}
			if name == "" || about(r, name) {
				all = append(all, r)
			}
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			slices.Reverse(all)
			return all, nil
		}
	}
}

func about(r auditlog.Record, name string) bool {
	if strings.HasSuffix(r.Subject, "/"+name) {
		return true
	}
	for _, m := range []map[string]string{r.Facts, r.Detail} {
		for _, v := range m {
			if v == name {
				return true
			}
		}
	}
	return false
}

// awaitRecord waits for a record about name whose reason, or the reason in its facts, is reason; empty takes any.
func (w *world) awaitRecord(t *testing.T, kind, name, reason string) auditlog.Record {
	t.Helper()
	var found auditlog.Record
	w.await(t, fmt.Sprintf("a record %s about %s, reason %q", kind, name, reason), func() error {
		all, err := w.records(t.Context(), kind, name)
		if err != nil {
			return err
		}
		var reasons []string
		for _, r := range all {
			if reason == "" || r.Reason == reason || r.Facts["reason"] == reason {
				found = r
				return nil
			}
			reasons = append(reasons, r.Reason+"/"+r.Facts["reason"])
		}
		return fmt.Errorf("there are %d, with the reasons %v", len(all), reasons)
	})
	return found
}
