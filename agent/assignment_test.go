//go:build linux

package agent_test

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

const (
	served    = agentv1.Outcome_OUTCOME_SERVED
	restored  = agentv1.Outcome_OUTCOME_RESTORED
	installed = agentv1.Outcome_OUTCOME_INSTALLED
	drifted   = agentv1.Outcome_OUTCOME_DRIFTED
)

// quiet fails the test if more reports come in the time of some rounds.
func (w *world) quiet(reports int) {
	w.Helper()
	time.Sleep(5 * w.cfg.Verify.Interval.Std())
	if have := w.Reports(); len(have) != reports {
		w.Fatalf("%d reports, want %d; the last is %v", len(have), reports, have[len(have)-1])
	}
}

// start brings the world to where the first certificate is served.
func (w *world) start() *agentv1.ReportAssignmentRequest {
	w.Helper()
	w.enrol()
	w.run()
	w.Assign(w.assignment())
	r := w.Report(1)
	w.want(r, served, "")
	return r
}

func (w *world) files() map[string][]byte {
	w.Helper()
	out := map[string][]byte{}
	for _, path := range w.nginx.Files {
		data, err := os.ReadFile(path)
		if err != nil {
			w.Fatal(err)
		}
		out[path] = data
	}
	return out
}

func TestDriftIsSaidOnce(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	first := w.start()
	good := w.files()
	w.nginx.Put(w.old)
	drift := w.Report(2)
	w.want(drift, drifted, "FILES_CHANGED")
	w.quiet(2)
	w.nginx.Signal(syscall.SIGHUP)
	drift = w.Report(3)
	w.want(drift, drifted, "SERVED_OTHER")
	if drift.GetServed() != string(pki.FingerprintOf(w.old.Leaf().Raw)) {
		t.Errorf("%v", drift)
	}
	w.quiet(3)
	for path, data := range good {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.nginx.Signal(syscall.SIGHUP)
	again := w.Report(4)
	w.want(again, served, "")
	if again.GetServed() != first.GetServed() {
		t.Errorf("%v", again)
	}
	w.quiet(4)
	for _, r := range w.Reports() {
		if r.GetGeneration() != 1 || r.GetAttempt() != 1 {
			t.Errorf("%v", r)
		}
	}
}

// A server that cannot be seen for a while has not drifted.
func TestNotSeenIsNoDrift(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	w.nginx.Stop()
	w.quiet(1)
	w.nginx.Start()
	w.quiet(1)
}

func TestInstalledBecomesServed(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.cfg.Verify.Wait = config.Duration(3 * time.Second) // it is waited for in vain
	for _, f := range w.nginx.Files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	w.nginx.Stop()
	w.enrol()
	w.run()
	w.Assign(w.assignment())
	w.want(w.Report(1), installed, "CANNOT_SEE")
	w.quiet(1)
	w.nginx.Start()
	w.want(w.Report(2), served, "")
	w.quiet(2)
}

func TestHigherAttemptInstallsAgain(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	before, err := os.Stat(w.nginx.Files["key"])
	if err != nil {
		t.Fatal(err)
	}
	w.Change("a1", func(a *agentv1.Assignment) { a.Attempt = 2 })
	r := w.Report(2)
	w.want(r, served, "")
	after, err := os.Stat(w.nginx.Files["key"])
	if err != nil {
		t.Fatal(err)
	}
	if r.GetAttempt() != 2 || os.SameFile(before, after) {
		t.Errorf("attempt %d; the very same file: %v", r.GetAttempt(), os.SameFile(before, after))
	}
	w.noKeys()
}

// An agent that has lost its memory finds what is served already and touches nothing.
func TestServedAlready(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	w.halt()
	if err := os.RemoveAll(filepath.Join(w.cfg.StateDir, "progress")); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(w.nginx.Files["key"])
	if err != nil {
		t.Fatal(err)
	}
	w.run()
	w.want(w.Report(2), served, "")
	if after, err := os.Stat(w.nginx.Files["key"]); err != nil || !os.SameFile(before, after) {
		t.Errorf("the files were touched: %v", err)
	}
}

func TestWithdrawnStays(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	first := w.start()
	w.Withdraw("a1")
	w.Await("progress to be forgotten", func() bool {
		entries, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "progress"))
		return err == nil && len(entries) == 0
	})
	if w.shows() != first.GetServed() {
		t.Error("what was installed is gone")
	}
	w.nginx.Put(w.old)
	w.nginx.Signal(syscall.SIGHUP)
	w.quiet(1)
}

func TestNotBefore(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.enrol()
	w.run()
	a := w.assignment()
	at := time.Now().Add(1500 * time.Millisecond)
	a.NotBefore = timestamppb.New(at)
	w.Assign(a)
	w.want(w.Report(1), served, "")
	if time.Now().Before(at) {
		t.Error("began too early")
	}
}

func TestRefusedAssignments(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		change       func(w *world, a *agentv1.Assignment)
	}{
		{"connector not enabled", "CONNECTOR_NOT_ENABLED", func(_ *world, a *agentv1.Assignment) { a.Target.Connector = "haproxy" }},
		{"unknown connector", "CONNECTOR_NOT_ENABLED", func(_ *world, a *agentv1.Assignment) { a.Target.Connector = "../x" }},
		{"path outside", "PATH_NOT_ALLOWED", func(_ *world, a *agentv1.Assignment) { a.Target.Settings["key"] = "/etc/ssl/x.key" }},
		{"a command in the settings", "SETTINGS_REFUSED", func(_ *world, a *agentv1.Assignment) { a.Target.Settings["command"] = "/bin/true" }},
		{"folder missing", "FOLDER_MISSING", func(w *world, a *agentv1.Assignment) { a.Target.Settings["key"] = w.nginx.TLS + "/no/x.key" }},
		{"no target", "CONNECTOR_NOT_ENABLED", func(_ *world, a *agentv1.Assignment) { a.Target = nil }},
		{"no key type", "ASSIGNMENT_INVALID", func(_ *world, a *agentv1.Assignment) { a.KeyType = 0 }},
		{"key type of the future", "ASSIGNMENT_INVALID", func(_ *world, a *agentv1.Assignment) { a.KeyType = 99 }},
		{"no names", "ASSIGNMENT_INVALID", func(_ *world, a *agentv1.Assignment) { a.Names = nil }},
		{"bad names", "ASSIGNMENT_INVALID", func(_ *world, a *agentv1.Assignment) { a.Names.Dns = []string{"a b"} }},
		{"broken certificate", "CHAIN_INVALID", func(_ *world, a *agentv1.Assignment) { a.Chain = [][]byte{[]byte("nonsense")} }},
		{"certificate of an unknown key", "KEY_LOST", func(w *world, a *agentv1.Assignment) { a.Chain = w.foreign(nil) }},
		{"CSR taken in, key gone", "KEY_LOST", func(_ *world, a *agentv1.Assignment) { a.CsrReceived = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, agenttest.Config{})
			w.enrol()
			a := w.assignment()
			c.change(w, a)
			w.Assign(a)
			w.run()
			r := w.Report(1)
			w.want(r, restored, c.reason)
			if r.GetMessage() == "" {
				t.Error("without a message")
			}
			w.quiet(1)
			if w.Calls("SubmitCSR") != 0 {
				t.Error("a CSR was sent all the same")
			}
			w.nginx.MustShow(w.old)
			// The next attempt, put right, goes well.
			right := w.assignment()
			right.Attempt = 2
			w.Assign(right)
			w.want(w.Report(2), served, "")
		})
	}
}

func (w *world) foreign(change func(*x509.Certificate)) [][]byte {
	var out [][]byte
	for _, c := range w.ca.Sign(w.T, connectortest.Key(w.T, pki.ECDSAP256).Public(), change, name) {
		out = append(out, c.Raw)
	}
	return out
}

func TestRefusedCertificates(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		issue        func(w *world, csr *pki.CSR) [][]byte
	}{
		{"for another key", "CHAIN_MISMATCH", func(w *world, _ *pki.CSR) [][]byte { return w.foreign(nil) }},
		{"expired", "CERTIFICATE_EXPIRED", func(w *world, csr *pki.CSR) [][]byte { return w.dated(csr, -48*time.Hour) }},
		{"not valid yet", "CERTIFICATE_NOT_YET_VALID", func(w *world, csr *pki.CSR) [][]byte { return w.dated(csr, 48*time.Hour) }},
		{"with a stranger in its chain", "CHAIN_INVALID", func(w *world, csr *pki.CSR) [][]byte { return append(w.issue(csr), w.foreign(nil)[0]) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w *world
			bad := true
			w = newWorld(t, agenttest.Config{Issue: func(csr *pki.CSR) ([][]byte, error) {
				if bad {
					return c.issue(w, csr), nil
				}
				return w.issue(csr), nil
			}})
			w.enrol()
			w.run()
			w.Assign(w.assignment())
			w.want(w.Report(1), restored, c.reason)
			w.nginx.MustShow(w.old)
			w.quiet(1)
			bad = false
			w.Change("a1", func(a *agentv1.Assignment) { a.Attempt, a.Chain, a.CsrReceived = 2, nil, false })
			w.want(w.Report(2), served, "")
			w.noKeys()
		})
	}
}

func (w *world) dated(csr *pki.CSR, off time.Duration) [][]byte {
	var out [][]byte
	for _, c := range w.ca.Sign(w.T, csr.Request.PublicKey, func(t *x509.Certificate) {
		t.NotBefore, t.NotAfter = time.Now().Add(off-time.Hour), time.Now().Add(off+time.Hour)
	}, name) {
		out = append(out, c.Raw)
	}
	return out
}

// The certificate that was not served is installed by the next attempt with the
// key that was kept.
func TestSameCertificateAfterFailure(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	mend := w.nginx.Break()
	w.enrol()
	w.run()
	w.Assign(w.assignment())
	w.want(w.Report(1), restored, "SERVER_CONFIG_BROKEN")
	mend()
	w.quiet(1)
	w.Change("a1", func(a *agentv1.Assignment) { a.Attempt = 2 })
	w.want(w.Report(2), served, "")
	if len(w.CSRs("a1", 1, 2)) != 0 {
		t.Error("another key was made")
	}
	w.noKeys()
}

func TestFullDisk(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.nginx.Stop()
	room := filepath.Join(filepath.Dir(w.nginx.TLS), "room")
	if err := os.Mkdir(room, 0o755); err != nil {
		t.Fatal(err)
	}
	connectortest.Tmpfs(t, w.nginx.TLS, 256<<10)
	if err := os.Chmod(w.nginx.TLS, 0o755); err != nil {
		t.Fatal(err)
	}
	w.nginx.Put(w.old)
	w.nginx.Start()
	w.cfg.StateDir = filepath.Join(w.nginx.TLS, "state") // the agent's own state is on the full disk too
	w.enrol()
	w.run()
	w.Await("the stream", func() bool { return len(w.Subscriptions()) > 0 })
	release := w.fill()
	w.Assign(w.assignment())
	r := w.Report(1)
	if r.GetOutcome() != restored || r.GetReason() != "DISK_FULL" && r.GetReason() != "STATE_NOT_WRITABLE" {
		t.Fatalf("%v", r)
	}
	w.nginx.MustShow(w.old)
	w.quiet(1)
	release()
	w.Change("a1", func(a *agentv1.Assignment) { a.Attempt, a.Chain, a.CsrReceived = 2, nil, false })
	w.want(w.Report(2), served, "")
}

// fill leaves no room where the certificates lie, until release.
func (w *world) fill() (release func()) {
	w.Helper()
	path := filepath.Join(w.nginx.TLS, "filler")
	f, err := os.Create(path)
	if err != nil {
		w.Fatal(err)
	}
	defer f.Close()
	for size := 4 << 10; size > 0 && err == nil; {
		if _, err = f.Write(make([]byte, size)); err != nil && size > 1 && errors.Is(err, syscall.ENOSPC) {
			size, err = size/2, nil
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			w.Fatal(err)
		}
	}
}

// The same CSR goes out however often it must be sent.
func TestCSRIsTheSame(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.enrol()
	tries := 0
	w.Fail("SubmitCSR", func() error {
		if tries++; tries < 3 {
			return fault.New(fault.Transient, "NOT_NOW", "come again")
		}
		return nil
	})
	w.Assign(w.assignment())
	w.run()
	w.want(w.Report(1), served, "")
	if n := len(w.CSRs("a1", 1, 1)); n != 1 {
		t.Errorf("%d different CSRs for one attempt", n)
	}
	if !strings.Contains(w.log.String(), "NOT_NOW") && !strings.Contains(w.log.String(), "come again") {
		t.Error("the log says nothing of it")
	}
}
