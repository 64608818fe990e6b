package disk

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// ground is a file system in memory, of the jail alone. It plays the disk.
const ground = "/mnt"

var (
	seed        = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of random moments")
	rounds      = flag.Int("rounds", 5, "how often the power is cut while all works")
	firstRounds = flag.Int("first-rounds", 12, "how often the power is cut during a first start")
)

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "3") // each has a disk of its own, and much is waited for
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, m.Run))
}

// patience is how long anything may take before it counts as never. An agent that has tried for half a minute pauses as long again.
const patience = 100 * time.Second

// config makes the loops quick enough to be waited for.
const config = `
limits: {caller_rate: 10000, anonymous_rate: 10000}
deployer:
  agents: {heartbeat_interval: 1s, scan_interval: 2s}
  rollout: {retry_after: [200ms, 500ms], ask_issuer_every: 500ms, check_every: 2s}
issuer: {identity_max_age: 100ms}
audit: {checkpoint_interval: 100ms}
`

// site is a control plane and a web server with its agent, all on one disk.
type site struct {
	*lab.Lab
	volume *lab.Volume
	// database is a PostgreSQL server on the same disk, if any.
	database *lab.Database
	plane    *lab.Plane
	// parts is the control plane where it is not serve.
	parts *daemons
	web   *lab.Site
	host  *lab.Host
}

// newSite starts all. prefix is put before the control plane and the agent.
func newSite(t *testing.T, prefix ...string) *site {
	t.Helper()
	return newVolume(t).begin(t, config, prefix...)
}

// begin starts all that newSite starts.
func (s *site) begin(t *testing.T, config string, prefix ...string) *site {
	t.Helper()
	s.plane = ok(s.Serve(t.Context(), "control", lab.ServeOptions{Config: config, Prefix: prefix}))(t)
	return s.settle(t, prefix...)
}

// settle has a control plane that runs issue for a web server.
func (s *site) settle(t *testing.T, prefix ...string) *site {
	t.Helper()
	ctx := t.Context()
	ok(s.plane.Apply(ctx, "kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n---\n"+
		"kind: Profile\nname: corp\nauthority: corp\nlifetime: 90d\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\n"))(t)
	s.web = ok(s.Nginx(ctx, "nginx", "web.example.com"))(t)
	s.host = ok(s.Lab.Host(ctx, "web", ok(s.plane.Token(ctx, "web"))(t), lab.HostOptions{
		Server: s.plane.Address, Prefix: prefix,
		Extra: "verify: {interval: 500ms, wait: 8s}\nscan: {listeners: \"off\"}\nconnectors:\n" + s.web.Connector(),
	}))(t)
	ok(s.plane.Apply(ctx, deployment("web", "web", "nginx", s.web.Settings())))(t)
	return s
}

// newVolume makes a lab on a disk of its own. What processes say is kept elsewhere.
func newVolume(t *testing.T) *site {
	t.Helper()
	dir := ok(os.MkdirTemp(ground, ""))(t)
	volume := ok(lab.NewVolume(dir, int64(512+32**rounds)<<20))(t) // what is not used takes no room
	s := &site{Lab: lab.New(volume.Path, bin(t)), volume: volume}
	s.Logs = dir
	t.Cleanup(func() {
		if t.Failed() {
			s.show(t)
		}
		if s.web != nil {
			s.web.KillAll()
		}
		s.Close()
		must(t, volume.Unmount())
		must(t, os.RemoveAll(dir))
	})
	return s
}

// show logs what processes have said last.
func (s *site) show(t *testing.T) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(s.Logs, "*.log"))
	for _, path := range logs {
		data, _ := os.ReadFile(path)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		t.Logf("--- %s\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-30):], "\n"))
	}
}

// cut takes the power from all, and gives it back: the disk is mounted again, and nothing runs.
func (s *site) cut(t *testing.T) {
	t.Helper()
	must(t, s.volume.Cut())
	for _, p := range []*lab.Process{s.plane.Process, s.host.Process, s.web.Process} {
		p.KillAll()
	}
	if s.database != nil {
		s.database.KillAll()
	}
	if s.parts != nil {
		for _, service := range services {
			s.parts.runs[service].KillAll()
		}
		s.parts.nats.Stop()
	}
	must(t, s.volume.Unmount())
	must(t, s.volume.Mount())
}

// start starts all again.
func (s *site) start(t *testing.T) {
	t.Helper()
	if s.database != nil {
		must(t, s.database.Start(t.Context()))
	}
	if s.parts != nil {
		must(t, s.parts.nats.Start())
		s.parts.startAll()
	} else {
		must(t, s.plane.Start(t.Context()))
	}
	must(t, s.web.Restart(t.Context()))
	must(t, s.host.Start())
}

// stop ends all in good order.
func (s *site) stop(t *testing.T) {
	t.Helper()
	for _, p := range []*lab.Process{s.host.Process, s.plane.Process} {
		must(t, p.Stop())
		if code := p.ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d", p.Name, code)
		}
	}
}

// deployment of one target, and its identity. All have the same name.
func deployment(name, host, connector string, settings map[string]string) string {
	text := fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: team@example.com\npurpose: powercut\nnames: {dns: [%[1]s.example.com]}\n---\n"+
		"kind: Deployment\nname: %[1]s\nidentity: %[1]s\nprofile: corp\ntargets:\n  - host: %[2]s\n    connector: %[3]s\n    settings:\n", name, host, connector)
	for k, v := range settings {
		text += fmt.Sprintf("      %s: %q\n", k, v)
	}
	return text
}

// bin is the folder that `make build` fills.
func bin(t *testing.T) string {
	t.Helper()
	dir := ok(filepath.Abs("../../bin"))(t)
	for _, program := range []string{"sallyport", "sallyport-agent"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
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

func (s *site) await(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	must(t, lab.Await(ctx, patience, what, check, s.plane.Process))
}
