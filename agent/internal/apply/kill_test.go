//go:build linux

package apply_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/haproxy"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/nginx"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

const victimVar = "SALLYPORT_VICTIM"

// order is what a victim is to do.
type order struct {
	Resume                   bool
	TLS, Binary, Config, PID string
	Socket                   string // HAProxy's
	State                    string
	Settings                 map[string]string
	Chain                    [][]byte
	Key                      []byte
}

// victim is a process of its own that installs, or resumes, and is killed at it.
func victim() {
	runtime.LockOSThread() // strace counts system calls by thread
	if err := obey(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// connector is the one of the order's server.
func (o order) connector() (connector.Connector, error) {
	files := pemfile.Config{Allow: []string{o.TLS}}
	if o.Socket != "" {
		cfg := haproxy.Config{Config: files, Binary: o.Binary, Main: o.Config, PIDFile: o.PID, Socket: o.Socket}
		if err := cfg.Validate(); err != nil {
			return nil, err
		}
		return haproxy.New(cfg, nil)
	}
	cfg := nginx.Config{Config: files, Binary: o.Binary, Main: o.Config, PIDFile: o.PID}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return nginx.New(cfg, nil)
}

func obey() error {
	var o order
	if err := json.Unmarshal([]byte(os.Getenv(victimVar)), &o); err != nil {
		return err
	}
	conn, err := o.connector()
	if err != nil {
		return err
	}
	journal, err := disk.OpenFolder(o.State, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	m, err := apply.New(apply.Config{
		Journal: journal, VerifyWait: time.Minute, Log: slog.New(slog.DiscardHandler), Now: time.Now, Decided: func(context.Context, apply.Report) {},
		Place: func(_ string, settings map[string]string) (connector.Place, error) { return conn.At(settings) },
	})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if o.Resume {
		reports, err := m.Resume(ctx)
		for _, r := range reports {
			err = errors.Join(err, m.Done(r.Assignment))
		}
		return err
	}
	chain, err := pki.ParseChainDER(o.Chain)
	if err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(o.Key)
	if err != nil {
		return err
	}
	pair, err := connector.NewPair(chain, key.(crypto.Signer), time.Now())
	if err != nil {
		return err
	}
	place, err := conn.At(o.Settings)
	if err != nil {
		return err
	}
	found, err := place.Inspect(ctx)
	if err != nil {
		return err
	}
	r := m.Install(ctx, apply.Job{Assignment: "a1", Generation: 3, Attempt: 2, Connector: "nginx", Settings: o.Settings}, place, found, pair)
	if r.Outcome != apply.Served {
		return fmt.Errorf("%+v", r)
	}
	return m.Done("a1")
}

func (l *lab) order() order {
	l.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(l.new.Key())
	if err != nil {
		l.Fatal(err)
	}
	o := order{TLS: l.TLS, Binary: l.Binary(), Config: l.Config, PID: l.PIDFile, Socket: l.Socket, State: l.state, Settings: l.settings, Key: der}
	for _, c := range l.new.Chain() {
		o.Chain = append(o.Chain, c.Raw)
	}
	return o
}

// killAt runs a victim that is killed at its nth system call of that kind, and
// says whether it was; else it has come to its end.
func (l *lab) killAt(o order, call string, n int) bool {
	l.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), os.Args[0])
	cmd.Env = append(os.Environ(), victimVar+"="+string(data), "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		l.Fatalf("strace is needed (make tools): %v", err)
	}
	if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() && ws.Signal() == syscall.SIGKILL || ws.ExitStatus() == 128+int(syscall.SIGKILL) {
		return true
	}
	l.Fatalf("the victim failed by itself: %v\n%s", err, out)
	return false
}

// recover starts the agent anew, as it were, and sees that all is whole.
func (l *lab) recover(what string) (installed bool) {
	l.Helper()
	m := machine(l.T, l.state, l.conn)
	reports, err := m.Resume(l.Context())
	if err != nil {
		l.Fatalf("%s: %v", what, err)
	}
	for _, r := range reports {
		if r.Outcome != apply.Served && r.Reason != apply.ReasonInterrupted {
			l.Errorf("%s: reported %s %s (%s)", what, r.Outcome, r.Reason, r.Message)
		}
		if err := m.Done(r.Assignment); err != nil {
			l.Fatal(err)
		}
	}
	place, err := l.conn.At(l.settings)
	if err != nil {
		l.Fatal(err)
	}
	found, err := place.Inspect(l.Context())
	if err != nil || !found.Whole() {
		l.Fatalf("%s: no whole pair: %q, %v", what, found.Problem, err)
	}
	installed = found.Has(l.new.Leaf())
	if !installed && !found.Has(l.old.Leaf()) {
		l.Fatalf("%s: a strange pair", what)
	}
	if entries, err := os.ReadDir(l.TLS); err != nil || len(entries) != len(l.Files) {
		l.Fatalf("%s: something is left in %s: %v, %v", what, l.TLS, entries, err)
	}
	if again, err := machine(l.T, l.state, l.conn).Resume(l.Context()); err != nil || len(again) != 0 {
		l.Fatalf("%s: still in the journal: %v, %v", what, again, err)
	}
	if entries, err := os.ReadDir(l.state); err != nil || len(entries) > 1 {
		l.Fatalf("%s: something is left in %s: %v, %v", what, l.state, entries, err)
	}
	if installed {
		l.MustShow(l.new)
	} else {
		l.MustShow(l.old)
	}
	return installed
}

// reset brings the old pair back.
func (l *lab) reset() {
	l.Helper()
	l.Put(l.old)
	l.Handles(l.reload) // the installation may have had it reload just now: a master that begins anew would not hear
	l.Signal(l.reload)
	l.MustShow(l.old)
}

// TestKilledAnywhere kills an installation at each system call that changes the
// disk or tells the server, and sees that the next start makes it whole.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel() // with the other kills: servers are mostly waited for
	l := newLab(t, "")
	l.Start()
	kills, forward := 0, 0
	for _, call := range []string{"fsync", "fdatasync", "pwrite64", "renameat", "linkat", "unlinkat", "fchmod", "fchown", "pidfd_send_signal"} {
		for n := 1; l.killAt(l.order(), call, n); n++ {
			kills++
			if l.recover(fmt.Sprintf("killed at %s %d", call, n)) {
				forward++
			}
			l.reset()
		}
		l.reset()
	}
	if kills < 25 || forward == 0 || forward == kills {
		t.Errorf("%d kills, %d of them ended with the new pair: the kills do not hit what they should", kills, forward)
	}
	t.Logf("%d kills, %d of them ended with the new pair", kills, forward)
}

// TestKilledInMemory kills an installation while HAProxy is told to replace the pair in its memory.
func TestKilledInMemory(t *testing.T) {
	t.Parallel()
	l := newHAProxy(t)
	l.Start()
	l.Handles(l.reload)
	kills := 0
	for _, call := range []string{"connect", "write", "fdatasync", "renameat"} {
		for n := 1; l.killAt(l.order(), call, n); n++ {
			kills++
			l.recover(fmt.Sprintf("killed at %s %d", call, n))
			l.reset()
			l.Handles(l.reload)
		}
		l.reset()
		l.Handles(l.reload)
	}
	if kills < 12 {
		t.Errorf("%d kills: they do not hit what they should", kills)
	}
	t.Logf("%d kills", kills)
}

// TestKilledTwice kills the recovery too.
func TestKilledTwice(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	l.Start()
	kills := 0
	for n := 1; n < 20; n++ {
		for m := 1; m < 20; m++ {
			if !l.killAt(l.order(), "renameat", n) {
				if kills < 10 {
					t.Errorf("%d kills: they do not hit what they should", kills)
				}
				return
			}
			o := l.order()
			o.Resume = true
			again := l.killAt(o, "renameat,unlinkat", m)
			kills++
			l.recover(fmt.Sprintf("killed at renameat %d, then %d", n, m))
			l.reset()
			if !again {
				break
			}
		}
	}
}

// TestKilledAgainAndAgain kills an installation while it throws the old files
// away, and then its resumptions, more often than it is gone on with.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	l.Start()
	kills := 0
	for n := 1; l.killAt(l.order(), "unlinkat", n); n++ {
		o := l.order()
		o.Resume = true
		for range 4 {
			if l.killAt(o, "fdatasync", 1) {
				kills++
			}
		}
		l.recover(fmt.Sprintf("killed at unlinkat %d, then at each resumption", n))
		l.reset()
	}
	if kills < 10 {
		t.Errorf("%d kills: they do not hit what they should", kills)
	}
}
