//go:build linux

package agent_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// build makes the program as it is released, but for what flags change.
func build(t *testing.T, flags ...string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "sallyport-agent")
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", bin}, flags...)
	cmd := exec.Command("go", append(args, "./cmd/sallyport-agent")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// write puts the world's configuration into a file.
func (w *world) write(more string) string {
	w.Helper()
	n := w.cfg.Connectors.Nginx
	path := filepath.Join(filepath.Dir(w.cfg.StateDir), "agent.yaml")
	text := fmt.Sprintf(`server: %s
state_dir: %s
host: web1
log: {level: debug}
connectors:
  nginx:
    allow: [%s]
    binary: %s
    config: %s
    pid_file: %s
verify: {interval: 300ms, wait: 1m}
scan: {listeners: off}
%s`, w.cfg.Server, w.cfg.StateDir, n.Allow[0], n.Binary, n.Main, n.PIDFile, more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
	return path
}

// do runs the program to its end.
func do(bin, stdin string, args ...string) (code int, stdout, stderr string) {
	cmd := exec.Command(bin, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out.String(), errs.String()
	}
	if err != nil {
		return -1, "", err.Error()
	}
	return 0, out.String(), errs.String()
}

// launch starts the program in the background.
func (w *world) launch(bin, config string, env ...string) *exec.Cmd {
	w.Helper()
	cmd := exec.Command(bin, "run", "--config", config)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = w.log, w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	return cmd
}

const mib = 1 << 20

// TestSmall holds the program to its promises: size, memory, and that it
// listens on nothing.
func TestSmall(t *testing.T) {
	bin := build(t)
	fi, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("stripped binary: %.1f MB", float64(fi.Size())/1e6)
	if fi.Size() > 20e6 {
		t.Errorf("the binary has %d bytes", fi.Size())
	}
	w := newWorld(t, agenttest.Config{Heartbeat: time.Second})
	config := w.write("")
	if code, out, errs := do(bin, w.Token("t1").String(), "enroll", "--config", config); code != 0 || !strings.Contains(out, "enrolled as spiffe://test.example/agent/web1") {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	cmd := w.launch(bin, config)
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
	heartbeats := w.Calls("ReportObservation")
	w.Await("some heartbeats", func() bool { return w.Calls("ReportObservation") > heartbeats+5 })
	rss := memory(t, cmd.Process.Pid)
	t.Logf("resident when idle: %.1f MiB", float64(rss)/mib)
	if rss > 25*mib {
		t.Errorf("%d bytes are resident", rss)
	}
	if out, err := exec.Command("ss", "-Htlnp").CombinedOutput(); err != nil {
		t.Error(err)
	} else if strings.Contains(string(out), fmt.Sprintf("pid=%d,", cmd.Process.Pid)) {
		t.Errorf("the agent listens:\n%s", out)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
}

func memory(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// An agent that is killed when it has noted a restored server's session, and has not told it anything, does so after its next start.
func TestKilledBeforeRetelling(t *testing.T) {
	bin := build(t, "-tags", "crashpoints")
	w := newWorld(t, agenttest.Config{})
	config := w.write("")
	if code, out, errs := do(bin, w.Token("t1").String(), "enroll", "--config", config); code != 0 {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	w.Assign(w.assignment())
	cmd := w.launch(bin, config)
	first := w.Report(1)
	w.want(first, served, "")
	w.Await("the end of it", func() bool {
		return w.records("spool") == 0 && strings.Contains(w.log.String(), "assignment concluded")
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	w.Forget()
	cmd = w.launch(bin, config, "SALLYPORT_CRASH="+string(crash.AssignmentKept))
	_ = cmd.Wait()
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("it ended with %v", cmd.ProcessState)
	}
	cmd = w.launch(bin, config)
	if again := w.Report(2); again.GetReportId() != first.GetReportId() || again.GetOutcome() != first.GetOutcome() {
		t.Errorf("%v after %v", again, first)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestKilledAtRandom kills the program again and again while it renews; in the
// end every certificate it was given is served, each made from one CSR.
func TestKilledAtRandom(t *testing.T) {
	bin := build(t)
	w := newWorld(t, agenttest.Config{})
	w.Fail("SubmitCSR", func() error { // some of them get lost
		if rand.N(3) == 0 {
			return fault.New(fault.Transient, "LOST", "come again")
		}
		return nil
	})
	config := w.write("")
	if code, out, errs := do(bin, w.Token("t1").String(), "enroll", "--config", config); code != 0 {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	w.Assign(w.assignment())
	const generations = 6
	kills := 0
	cmd := w.launch(bin, config)
	for g := int64(1); g <= generations; g++ {
		if g > 1 {
			w.Change("a1", func(a *agentv1.Assignment) { a.Generation, a.Attempt, a.Chain, a.CsrReceived = g, 1, nil, false })
		}
		for !w.reported(g) {
			time.Sleep(rand.N(150 * time.Millisecond))
			if w.reported(g) {
				break
			}
			if kills < 60 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait() // killed
				kills++
				cmd = w.launch(bin, config)
			} else {
				w.Await("a report", func() bool { return w.reported(g) })
			}
		}
		if n := len(w.CSRs("a1", g, 1)); n != 1 { // each later attempt has the same certificate
			t.Errorf("generation %d: %d different CSRs", g, n)
		}
		w.Await("what is installed to be served", func() bool { return w.shows() == string(w.fingerprint()) })
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if kills < 5 {
		t.Errorf("only %d kills", kills)
	}
	w.noKeys()
	entries, err := os.ReadDir(w.nginx.TLS)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	t.Logf("%d kills", kills)
}

// reported says whether the generation is served. One that was killed too often
// in its middle is tried again, as the server does.
func (w *world) reported(generation int64) bool {
	w.Helper()
	for _, r := range w.Reports() {
		if r.GetGeneration() != generation {
			continue
		}
		if r.GetReason() != "INTERRUPTED" {
			w.want(r, served, "")
			return true
		}
		w.Change("a1", func(a *agentv1.Assignment) {
			if a.GetGeneration() == generation && a.GetAttempt() == r.GetAttempt() {
				a.Attempt++
			}
		})
	}
	return false
}

func TestCommandLine(t *testing.T) {
	bin := build(t)
	w := newWorld(t, agenttest.Config{})
	config := w.write("hooks:\n  reload-app: {command: [/bin/true]}\n")
	open := filepath.Join(t.TempDir(), "open.yaml")
	if err := os.WriteFile(open, []byte("server: x:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("server: x:1\nconectors: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nowhere := filepath.Join(t.TempDir(), "nowhere.yaml")
	if err := os.WriteFile(nowhere, []byte("server: x:1\nstate_dir: "+t.TempDir()+"/s\nconnectors: {nginx: {allow: [/nonexistent/tls], binary: /nonexistent/nginx}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(w.Token("t1").String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		stdin string
		code  int
		want  string // in either output
	}{
		{[]string{"--help"}, "", 0, "Private keys never leave"},
		{[]string{"version"}, "", 0, "linux/"},
		{[]string{"completion", "bash"}, "", 0, "sallyport-agent"},
		{[]string{"nonsense"}, "", 2, `"nonsense" is no command of this program: see "sallyport-agent --help"`},
		{[]string{"status", "web-1"}, "", 2, `"web-1" is not expected here: see "sallyport-agent status --help"`},
		{[]string{"run", "--nonsense"}, "", 2, "unknown flag"},
		{[]string{"run", "--config", "/nonexistent.yaml"}, "", 2, "/nonexistent.yaml: cannot be read"},
		{[]string{"run", "--config", open}, "", 2, "chmod go-w"},
		{[]string{"check", "--config", wrong}, "", 2, wrong + ":2: conectors: unknown field"},
		{[]string{"check", "--config", config}, "", 0, "may write files below " + w.nginx.TLS},
		{[]string{"check", "--config", nowhere}, "", 4, "TROUBLE"},
		{[]string{"scan", "--config", config}, "", 0, w.nginx.Files["certificate"]},
		{[]string{"status", "--config", config}, "", 3, "not enrolled"},
		{[]string{"run", "--config", config}, "", 3, "not enrolled"},
		{[]string{"enroll", "--config", config}, "", 2, "no join token"},
		{[]string{"enroll", "--config", config}, "spj1.garbage", 2, "join token"},
		{[]string{"enroll", "--config", config, "--token-file", "/nonexistent"}, "", 2, "reading the join token"},
		{[]string{"enroll", "--config", config, "--token-file", tokenFile}, "", 0, "enrolled as"},
		{[]string{"enroll", "--config", config, "--token-file", "-"}, w.Token("t2").String(), 0, "; --again gives that up"},
		{[]string{"status", "--config", config}, "", 5, "nothing is assigned"},
		{[]string{"status", "--config", config, "-o", "json"}, "", 5, `"host": "web1"`},
		{[]string{"status", "--config", config, "-o", "yaml"}, "", 5, "running: false"},
		{[]string{"status", "--config", config, "-o", "xml"}, "", 2, "want table, json or yaml"},
	} {
		code, out, errs := do(bin, c.stdin, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("%v: %d, want %d with %q:\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
		if strings.Contains(out+errs, "PRIVATE KEY") {
			t.Errorf("%v prints a key", c.args)
		}
	}
	cmd := w.launch(bin, config)
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
	w.Await("the status", func() bool {
		_, out, _ := do(bin, "", "status", "--config", config)
		return strings.Contains(out, w.nginx.Address) && strings.Contains(out, "served")
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
