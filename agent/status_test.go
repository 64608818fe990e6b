//go:build linux

package agent_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// TestStatus has the program say what can be known at each turn: of an agent that was killed that it does not run, whatever it has
// said last.
func TestStatus(t *testing.T) {
	bin := build(t)
	w := newWorld(t, agenttest.Config{Heartbeat: time.Second})
	config := w.write("")
	const running, dead = 0, 5
	says := func(code int, words ...string) {
		t.Helper()
		var out, errs string
		for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			var got int
			got, out, errs = do(bin, "", "status", "--config", config)
			holds := got == code && !slices.ContainsFunc(words, func(word string) bool { return !regexp.MustCompile(word).MatchString(out + errs) })
			if holds {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("exit code %d, want %d with %q:\n%s%s", got, code, words, out, errs)
			}
		}
	}
	end := func(agent *os.Process, sig syscall.Signal) {
		t.Helper()
		if err := agent.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if state, err := agent.Wait(); err != nil || sig == syscall.SIGTERM && !state.Success() {
			t.Fatal(state, err)
		}
	}
	if code, out, errs := do(bin, w.Token("t1").String(), "enroll", "--config", config); code != 0 {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	says(dead, `NOT RUNNING\n  do       start the agent\n`, `systemctl start sallyport-agent`)
	agent := w.launch(bin, config).Process
	says(running, `CONNECTED since [^ ]*Z, last heard [^ ]*Z\n`)
	end(agent, syscall.SIGTERM)
	says(dead, `STOPPED since `)
	agent = w.launch(bin, config).Process
	says(running, `CONNECTED since `)
	end(agent, syscall.SIGKILL)
	says(dead, `NOT RUNNING, last heard [^ ]*Z\n  do .*it was not told to stop`)
	w.Fail("Subscribe", func() error {
		return fault.New(fault.Denied, "AGENT_LOCKED", "the agent is locked by an operator")
	})
	agent = w.launch(bin, config).Process
	says(running, `LOCKED since [^ ]*Z, last heard [^ ]*Z, next try [^ ]*Z \(in [0-9ms]+\)\n  why      AGENT_LOCKED .*\n  do .*"sallyport agent unlock web1" lets it in again, at its next try`)
	end(agent, syscall.SIGKILL)
	says(dead, `NOT RUNNING, last heard [^ ]*Z\n  why      AGENT_LOCKED .*\n  do .*start the agent; "sallyport agent unlock web1"`)
	agent = w.launch(bin, config).Process
	says(running, `LOCKED since `)
	end(agent, syscall.SIGTERM)
	says(dead, `STOPPED since `, `do       start the agent; "sallyport agent unlock`)

	contact, err := disk.OpenFolder(filepath.Join(w.cfg.StateDir, "contact"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = contact.Close() }()
	put := func(standing string) {
		t.Helper()
		if err := contact.Put("standing", []byte(standing)); err != nil {
			t.Fatal(err)
		}
	}
	put(`{"connected":true,"since":"2999-11-23T00:00:00Z","heard":"2999-11-23T00:00:01Z"}`)
	says(dead, `NOT RUNNING, last heard 2999-11-23T00:00:01Z \(ahead of this host's clock\)\n`)
	put(`{"connected":"by another version's word"}`)
	says(dead, `damaged`, `NOT RUNNING\n  do       start the agent\n`)
	agent = w.launch(bin, config).Process
	says(running, `LOCKED since .*, last heard .*, next try `) // and nothing more is written for 30 s
	put(`{"connected":false,"since":"2026-11-23T00:00:00Z","stopped":"2026-11-23T00:00:01Z"}`)
	says(running, `STOPPING since 2026-11-23T00:00:01Z\n`)
	if err := os.WriteFile(filepath.Join(w.cfg.StateDir, "contact", "standing"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	says(running, `UNKNOWN\n  do       ask again in a minute`, `identity   spiffe://`)
	end(agent, syscall.SIGTERM)
	says(dead, `STOPPED since `) // it has said so anew
}
