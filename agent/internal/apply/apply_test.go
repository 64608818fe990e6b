//go:build linux

package apply_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimVar) != "" {
		victim()
	}
	connectortest.Main(m)
}

const name = "x.test"

// lab is a server, nginx unless said otherwise, with an old pair, and a machine.
type lab struct {
	*testing.T
	*connectortest.Server
	ca       *connectortest.CA
	old, new connector.Pair
	settings map[string]string
	state    string
	conn     connector.Connector
	machine  *apply.Machine
	reload   syscall.Signal
}

func newLab(t *testing.T, extra string) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{T: t, Server: connectortest.Nginx(t, dir, extra), ca: connectortest.NewCA(t), state: filepath.Join(dir, "state")}
	l.old, l.new = l.ca.Pair(t, name), l.ca.Pair(t, name)
	l.Put(l.old)
	l.settings = map[string]string{"certificate": l.Files["certificate"], "key": l.Files["key"], "verify": l.Address}
	return l.connect(syscall.SIGHUP)
}

// newHAProxy is a lab whose server's certificates are replaced in memory.
func newHAProxy(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{T: t, Server: connectortest.HAProxy(t, dir), ca: connectortest.NewCA(t), state: filepath.Join(dir, "state")}
	l.old, l.new = l.ca.Pair(t, name), l.ca.Pair(t, name)
	l.Put(l.old)
	l.settings = map[string]string{"combined": l.Files["combined"], "verify": l.Address}
	return l.connect(syscall.SIGUSR2)
}

func (l *lab) connect(reload syscall.Signal) *lab {
	l.Helper()
	c, err := l.order().connector()
	if err != nil {
		l.Fatal(err)
	}
	l.conn, l.machine, l.reload = c, machine(l.T, l.state, c), reload
	return l
}

func machine(t *testing.T, state string, c connector.Connector) *apply.Machine {
	t.Helper()
	journal, err := disk.OpenFolder(state, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m, err := apply.New(apply.Config{
		Journal: journal, VerifyWait: time.Minute, Log: slog.New(slog.DiscardHandler), Now: time.Now, Decided: func(context.Context, apply.Report) {},
		Place: func(_ string, settings map[string]string) (connector.Place, error) { return c.At(settings) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// inVain is for those that wait in vain for the new pair to be served: all others wait for what will be.
func (l *lab) inVain() { l.machine.VerifyWait = 2 * time.Second }

func (l *lab) job() apply.Job {
	return apply.Job{Assignment: "a1", Generation: 3, Attempt: 2, Connector: "nginx", Settings: l.settings}
}

func (l *lab) install() apply.Report {
	l.Helper()
	place, err := l.conn.At(l.settings)
	if err != nil {
		l.Fatal(err)
	}
	return l.over(l.machine, place)
}

// over installs the new pair over what is there.
func (l *lab) over(m *apply.Machine, place connector.Place) apply.Report {
	l.Helper()
	found, err := place.Inspect(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	return m.Install(l.Context(), l.job(), place, found, l.new)
}

func (l *lab) want(r apply.Report, outcome apply.Outcome, reason string) {
	l.Helper()
	if r.Outcome != outcome || r.Reason != reason {
		l.Fatalf("%s %s (%s), want %s %s", r.Outcome, r.Reason, r.Message, outcome, reason)
	}
	if r.ID == "" || r.Assignment != "a1" || r.Generation != 3 || r.Attempt != 2 || r.Fingerprint != pki.FingerprintOf(l.new.Leaf().Raw) {
		l.Fatalf("report is incomplete: %+v", r)
	}
}

// holds fails the test unless exactly the pair lies in the files.
func (l *lab) holds(pair connector.Pair) {
	l.Helper()
	place, err := l.conn.At(l.settings)
	if err != nil {
		l.Fatal(err)
	}
	found, err := place.Inspect(l.Context())
	if err != nil || !found.Has(pair.Leaf()) {
		l.Fatalf("the files hold another pair or none: %q, %v", found.Problem, err)
	}
	entries, err := os.ReadDir(l.TLS)
	if err != nil || len(entries) != 2 {
		l.Fatalf("something is left beside the files: %v, %v", entries, err)
	}
}

// Who is told a result before all is cleared away is told one that a kill in that moment does not change.
func TestDecided(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	var told, resumed apply.Report
	l.machine.Decided = func(ctx context.Context, r apply.Report) {
		told = r
		if entries, err := os.ReadDir(l.TLS); err != nil || len(entries) != 4 {
			t.Errorf("beside the files: %v, %v", entries, err)
		}
		again, err := machine(t, l.state, l.conn).Resume(ctx) // as after a kill
		if err != nil || len(again) != 1 {
			t.Fatalf("%v, %v", again, err)
		}
		resumed = again[0]
	}
	r := l.install()
	l.want(r, apply.Served, "")
	l.want(resumed, apply.Served, "")
	if told.ID != r.ID || resumed.ID != r.ID {
		t.Errorf("told %s, found again %s, in the end %s", told.ID, resumed.ID, r.ID)
	}
	l.holds(l.new)
}

func TestServed(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	r := l.install()
	l.want(r, apply.Served, "")
	if r.Served != r.Fingerprint || r.Address != l.Address {
		t.Errorf("%+v", r)
	}
	l.holds(l.new)
	// Until it is done with, a restart gives the same report again.
	for range 2 {
		again, err := machine(t, l.state, l.conn).Resume(t.Context())
		if err != nil || len(again) != 1 || again[0].ID != r.ID || again[0].Outcome != apply.Served {
			t.Fatalf("%+v, %v", again, err)
		}
	}
	if err := l.machine.Done("a1"); err != nil {
		t.Fatal(err)
	}
	if again, err := l.machine.Resume(t.Context()); err != nil || len(again) != 0 {
		t.Fatalf("%+v, %v", again, err)
	}
}

func TestServedWithClientCertificatesAsked(t *testing.T) {
	l := newLab(t, "ssl_verify_client on; ssl_client_certificate CA; ssl_protocols TLSv1.2;")
	config, err := os.ReadFile(l.Config)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(l.Dir, "ca.pem")
	if err := os.WriteFile(ca, pki.EncodeChainPEM(l.old.Chain()[1:]), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Write(strings.Replace(string(config), " CA;", " "+ca+";", 1))
	l.Start()
	l.want(l.install(), apply.Served, "")
}

func TestInstalledWhereNothingAnswers(t *testing.T) {
	l := newLab(t, "")
	l.inVain()
	l.Start()
	for address, detail := range map[string]string{"": "no address", "127.0.0.1:1": "refused"} {
		l.settings["verify"] = address
		r := l.install()
		l.want(r, apply.Installed, apply.ReasonCannotSee)
		if !strings.Contains(r.Message, detail) {
			t.Errorf("%q", r.Message)
		}
		l.holds(l.new)
		l.MustShow(l.new)
	}
}

func TestNotServedIsTakenBack(t *testing.T) {
	l := newLab(t, "")
	l.inVain()
	l.Start()
	l.Signal(syscall.SIGSTOP) // the master hangs: the reload has no effect
	r := l.install()
	l.want(r, apply.TakenBack, apply.ReasonNotServed)
	if r.Served != pki.FingerprintOf(l.old.Leaf().Raw) {
		t.Errorf("the report says %s is served", r.Served)
	}
	l.holds(l.old)
	l.Signal(syscall.SIGCONT)
	l.MustShow(l.old)
}

func TestConfigurationIsBrokenAlready(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	l.Break()
	l.want(l.install(), apply.TakenBack, connector.ReasonServerConfigBroken)
	l.holds(l.old)
	l.MustShow(l.old)
}

func TestDeadServer(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	l.Stop()
	l.want(l.install(), apply.TakenBack, connector.ReasonServerNotRunning)
	l.holds(l.old)
}

// The server goes away in the moment of the reload: the old files are back, but
// nobody serves them.
func TestWentDark(t *testing.T) {
	l := newLab(t, "")
	l.inVain()
	l.Start()
	place, err := l.conn.At(l.settings)
	if err != nil {
		t.Fatal(err)
	}
	r := l.over(l.machine, dying{place, l.Server})
	l.want(r, apply.Broken, apply.ReasonRestoreFailed)
	if !strings.Contains(r.Message, apply.ReasonWentDark) {
		t.Errorf("%q", r.Message)
	}
	l.holds(l.old)
}

// dying is a real place whose server dies of its reload.
type dying struct {
	connector.Place
	server *connectortest.Server
}

func (d dying) Activate(ctx context.Context, s connector.Staged) error {
	err := d.Place.Activate(ctx, s)
	d.server.Stop()
	return err
}

func TestFirstInstall(t *testing.T) {
	l := newLab(t, "")
	l.inVain()
	for _, f := range l.Files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	l.want(l.install(), apply.Installed, apply.ReasonCannotSee)
	l.holds(l.new)
	l.Start()
	l.MustShow(l.new)
}

func TestFirstInstallTakenBack(t *testing.T) {
	l := newLab(t, "")
	l.inVain()
	l.Start() // serves other files than the target's
	for setting, to := range map[string]string{"certificate": "other.crt", "key": "other.key"} {
		l.settings[setting] = filepath.Join(l.TLS, to)
	}
	l.want(l.install(), apply.TakenBack, apply.ReasonNotServed)
	l.MustShow(l.old)
	entries, err := os.ReadDir(l.TLS)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v", entries, err)
	}
}

func TestStateCannotBeKept(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	connectortest.Tmpfs(t, l.state, 64<<10)()
	l.machine = machine(t, l.state, l.conn)
	r := l.install()
	if r.Outcome != apply.TakenBack || r.Reason != apply.ReasonStateNotWritable {
		t.Fatalf("%+v", r)
	}
	l.holds(l.old)
	l.MustShow(l.old)
}

// A server that keeps killing the agent does so a bounded number of times.
func TestInterruptedAgainAndAgain(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	place, err := l.conn.At(l.settings)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		func() {
			defer func() { _ = recover() }() // the agent dies of the reload
			journal, err := disk.OpenFolder(l.state, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			m, err := apply.New(apply.Config{
				Journal: journal, VerifyWait: time.Minute, Log: slog.New(slog.DiscardHandler), Now: time.Now, Decided: func(context.Context, apply.Report) {},
				Place: func(string, map[string]string) (connector.Place, error) { return deadly{place}, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				l.over(m, deadly{place})
				return
			}
			reports, err := m.Resume(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(reports) == 1 {
				l.want(reports[0], apply.TakenBack, apply.ReasonInterrupted)
				if n != 3 {
					t.Errorf("after %d resumes", n)
				}
			}
		}()
	}
	l.holds(l.old)
	l.MustShow(l.old)
}

type deadly struct{ connector.Place }

func (d deadly) Activate(ctx context.Context, s connector.Staged) error {
	if err := d.Place.Activate(ctx, s); err != nil {
		return err
	}
	panic("killed")
}

// An interrupted installation at a place that is no longer allowed cannot be
// brought to an end: that is said.
func TestResumeWhereNotAllowed(t *testing.T) {
	l := newLab(t, "")
	l.Start()
	place, err := l.conn.At(l.settings)
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		l.over(l.machine, deadly{place})
	}()
	elsewhere := l.order()
	elsewhere.TLS = filepath.Join(l.Dir, "tmp")
	c, err := elsewhere.connector()
	if err != nil {
		t.Fatal(err)
	}
	reports, err := machine(t, l.state, c).Resume(t.Context())
	if err != nil || len(reports) != 1 {
		t.Fatalf("%+v, %v", reports, err)
	}
	l.want(reports[0], apply.Broken, apply.ReasonInterrupted)
}

func TestRefuse(t *testing.T) {
	l := newLab(t, "")
	r := l.machine.Refuse(l.job(), fault.New(fault.Permanent, "SOME_REASON", "first line\nsecond %s", strings.Repeat("x", 5000)))
	if r.Outcome != apply.TakenBack || r.Reason != "SOME_REASON" || len(r.Message) > 2048 || strings.Contains(r.Message, "\n") || r.ID == "" {
		t.Errorf("%+v", r)
	}
}
