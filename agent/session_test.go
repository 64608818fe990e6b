//go:build linux

package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestStreamGoesOnWhereItLeftOff(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	w.Down()
	w.Up()
	w.Change("a1", func(a *agentv1.Assignment) { a.Generation, a.Chain, a.CsrReceived = 2, nil, false })
	w.want(w.Report(2), served, "")
	subs := w.Subscriptions()
	last := subs[len(subs)-1]
	if last.GetSession() != "session-1" || last.GetRevision() < 1 {
		t.Errorf("came back with %v", last)
	}
	// And after its own restart.
	w.halt()
	before := len(subs)
	w.run()
	w.Await("the stream", func() bool { return len(w.Subscriptions()) > before })
	if last := w.Subscriptions()[before]; last.GetSession() != "session-1" || last.GetRevision() < 3 {
		t.Errorf("started with %v", last)
	}
}

// A server that does not know the session gives everything; what it does not
// list is no longer ours.
func TestSnapshotReplaces(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	w.Down()
	w.Withdraw("a1")
	w.Forget()
	other := w.assignment()
	other.Id = "a2"
	w.Assign(other)
	w.Up()
	r := w.Report(2)
	w.want(r, served, "")
	if r.GetAssignment() != "a2" { // about the old one there is nothing to tell
		t.Errorf("%v", r)
	}
	w.Await("the old one to be forgotten", func() bool {
		entries, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "progress"))
		return err == nil && len(entries) == 1
	})
}

// A server with another session was restored, perhaps to a time before the report: it is told again, once, under the same id.
func TestNewSessionIsToldAgain(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	first := w.Report(1)
	w.Down()
	w.Up()
	w.quiet(1) // the session is the same
	w.Down()
	w.Forget()
	w.Up()
	if again := w.Report(2); again.GetReportId() != first.GetReportId() || again.GetOutcome() != first.GetOutcome() {
		t.Errorf("%v after %v", again, first)
	}
	w.quiet(2)
}

// A server that was set back to an attempt before begins anew the one that this host has refused meanwhile: that refusal is not the
// end of it.
func TestRefusedInTheLostTime(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.enrol()
	refused := w.assignment()
	refused.Attempt, refused.Target.Connector = 2, "haproxy"
	w.Assign(refused)
	w.run()
	w.want(w.Report(1), restored, "CONNECTOR_NOT_ENABLED")
	w.Down()
	w.Forget()
	w.Fail("SubmitCSR", func() error { return fault.New(fault.Conflict, "STALE_ATTEMPT", "this attempt is over") })
	w.Assign(w.assignment())
	w.Up()
	w.Await("the CSR of the attempt before", func() bool { return w.Calls("SubmitCSR") > 0 })
	w.Fail("SubmitCSR", nil)
	w.Change("a1", func(a *agentv1.Assignment) { a.Attempt = 2 })
	w.want(w.Report(2), served, "")
}

func TestReportsKeepTheirID(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	lost := 0
	w.Fail("ReportAssignment answer", func() error {
		if lost++; lost < 3 {
			return fault.New(fault.Transient, "LOST", "stored, but the answer is lost")
		}
		return nil
	})
	w.enrol()
	w.run()
	w.Assign(w.assignment())
	w.Await("the report to be confirmed", func() bool { return len(w.Reports()) == 3 && w.records("spool") == 0 })
	first := w.Reports()[0]
	for _, r := range w.Reports() {
		if r.GetReportId() == "" || r.GetReportId() != first.GetReportId() || r.GetOutcome() != first.GetOutcome() {
			t.Errorf("%v after %v", r, first)
		}
	}
	w.quiet(3)
}

// records counts what lies in a folder of the agent's state.
func (w *world) records(folder string) int {
	w.Helper()
	entries, err := os.ReadDir(filepath.Join(w.cfg.StateDir, folder))
	if err != nil {
		w.Fatal(err)
	}
	return len(entries)
}

// Cut off, the agent goes on looking; its reports come later, in order, over its
// own restart.
func TestWorksWhileCutOff(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	good := w.files()
	w.Down()
	w.nginx.Put(w.old)
	w.nginx.Signal(syscall.SIGHUP)
	w.Await("the drift to be noticed", func() bool { return w.records("spool") >= 1 && strings.Contains(w.log.String(), "SERVED_OTHER") })
	w.halt()
	for path, data := range good {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.nginx.Signal(syscall.SIGHUP)
	n := w.records("spool")
	w.run()
	w.Await("the repair to be noticed", func() bool { return w.records("spool") == n+1 })
	w.Up()
	w.Await("all reports", func() bool { return w.records("spool") == 0 })
	reports := w.Reports()
	w.want(reports[len(reports)-1], served, "")
	w.want(reports[len(reports)-2], drifted, "SERVED_OTHER")
	for i, r := range reports[1:] {
		if r.GetTime().AsTime().Before(reports[i].GetTime().AsTime()) {
			t.Errorf("report %d is out of order", i+2)
		}
	}
}

// What the server will never take does not hold up the rest.
func TestReportRefused(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.enrol()
	w.Fail("ReportAssignment", func() error { return fault.New(fault.NotFound, "ASSIGNMENT_UNKNOWN", "no such assignment") })
	w.run()
	w.Assign(w.assignment())
	w.Await("the report to be dropped", func() bool { return w.Calls("ReportAssignment") > 0 && w.records("spool") == 0 })
	w.Fail("ReportAssignment", nil)
	w.Change("a1", func(a *agentv1.Assignment) { a.Attempt = 2 })
	w.want(w.Report(1), served, "")
}

// RetryInfo counts.
func TestServerSaysWhen(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.enrol()
	var first, second time.Time
	w.Fail("Subscribe", func() error {
		if first.IsZero() {
			first = time.Now()
			return fault.New(fault.Exhausted, "BUSY", "wait for your turn").After(2 * time.Second)
		}
		if second.IsZero() {
			second = time.Now()
		}
		return nil
	})
	w.Assign(w.assignment())
	w.run()
	w.want(w.Report(1), served, "")
	if d := second.Sub(first); d < 2*time.Second {
		t.Errorf("came again after %v", d)
	}
	if !strings.Contains(w.log.String(), "no stream from the server") || !strings.Contains(w.log.String(), " reason=BUSY ") {
		t.Error("the log does not name the reason")
	}
}

func TestDamagedState(t *testing.T) {
	for folder, records := range map[string]int{"desired": 2, "progress": 1} {
		t.Run(folder, func(t *testing.T) {
			w := newWorld(t, agenttest.Config{})
			w.start()
			w.halt()
			dir := filepath.Join(w.cfg.StateDir, folder)
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != records {
				t.Fatalf("%v, %v", entries, err)
			}
			path := filepath.Join(dir, entries[0].Name())
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range []int{20, len(data)/2 + 20} { // in both slots of one that has two
				data[at] ^= 1
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			before := len(w.Subscriptions())
			w.run()
			w.Change("a1", func(a *agentv1.Assignment) { a.Generation, a.Chain, a.CsrReceived = 2, nil, false })
			w.Await("the next generation", func() bool {
				r := w.Reports()
				return r[len(r)-1].GetGeneration() == 2
			})
			if folder == "desired" && w.Subscriptions()[before].GetSession() != "" {
				t.Error("did not ask for everything")
			}
			if !strings.Contains(w.log.String(), "state file is damaged") {
				t.Error("the log says nothing of it")
			}
			if _, err := os.Stat(filepath.Join(dir, "damaged-"+entries[0].Name())); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOneAgentPerState(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.start()
	if err := w.agent.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another agent") {
		t.Errorf("a second agent: %v", err)
	}
}

func TestNotEnrolled(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.make()
	if err := w.agent.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "sallyport-agent enroll") {
		t.Errorf("%v", err)
	}
	w.cfg.TokenFile = filepath.Join(t.TempDir(), "token")
	w.make()
	if err := w.agent.Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(w.cfg.TokenFile, []byte(w.Token("t9").String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.run()
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
}

func seen(sightings []*eventv1.Sighting, location, fingerprint string) bool {
	return slices.ContainsFunc(sightings, func(s *eventv1.Sighting) bool {
		return s.GetLocation() == location && string(pki.FingerprintOf(s.GetChain()[0])) == fingerprint
	})
}

// A server that is not up yet is waited for, with the token file in hand.
func TestEnrolsWhenTheServerComes(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.cfg.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(w.cfg.TokenFile, []byte(w.Token("t1").String()), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Down()
	w.run()
	w.Await("the first try", func() bool { return strings.Contains(w.log.String(), "not enrolled yet") })
	w.Up()
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
}
