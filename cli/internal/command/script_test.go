package command_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sallyport-pki/sallyport/cli/internal/command"
	"github.com/sallyport-pki/sallyport/internal/heldport"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sallyport": func() {
			os.Exit(command.Main(command.Environment{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Args: os.Args[1:]}))
		},
	})
}

// TestScripts runs the scripts against the real command and, where they start
// one, a real "sallyport serve". $HELD is an address that stays the script's while nobody listens there. The commands of the scripts
// beside the usual:
//
//	sp CODE ARGS...      run sallyport, which must end with this exit code
//	serve NAME ARGS...   start "sallyport serve ARGS", wait until it is ready; $ADDR is where
//	term NAME            SIGTERM: it must end with code 0
//	crash NAME           SIGKILL
//	log NAME REGEXP      its log has this
//	agent HOST TOKEN-FILE serves|installs|fails
//	                     an agent that speaks the protocol and ends every assignment so
//	until REGEXP ARGS... run sallyport until it ends well and says so, for two minutes
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("SALLYPORT_CONFIG", filepath.Join(e.WorkDir, "config.yaml"))
			e.Setenv("NO_COLOR", "1")
			e.Setenv("HELD", heldport.Address(t))
			e.Values[servers{}] = map[string]*daemon{}
			e.Defer(func() {
				for _, d := range e.Values[servers{}].(map[string]*daemon) {
					d.end()
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sp": runSallyport, "serve": startServe, "term": stopServe, "crash": killServe, "log": grepLog, "until": runUntil, "agent": startAgent,
		},
	})
}

type servers struct{}

// sallyport runs the command once and gives its exit code.
func sallyport(ts *testscript.TestScript, args []string) (code int, stdout, stderr string) {
	cmd := exec.Command("sallyport", args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), environ(ts), &out, &errs
	if path, err := lookPath(ts, "sallyport"); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		ts.Fatalf("sallyport: %v", err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, name := range []string{"HOME", "PATH", "SALLYPORT_CONFIG", "NO_COLOR", "TMPDIR", "GOCOVERDIR"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func lookPath(ts *testscript.TestScript, name string) (string, error) {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", exec.ErrNotFound
}

func runSallyport(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: sp CODE ARGS...")
	}
	code, stdout, stderr := sallyport(ts, args[1:])
	fmt.Fprint(ts.Stdout(), stdout)
	fmt.Fprint(ts.Stderr(), stderr)
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("exit code %d, want %s\n%s%s", code, want, stdout, stderr)
	}
}

func runUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP ARGS...")
	}
	want := regexp.MustCompile(args[0])
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		code, stdout, stderr := sallyport(ts, args[1:])
		if code == 0 && want.MatchString(stdout+stderr) {
			fmt.Fprint(ts.Stdout(), stdout)
			fmt.Fprint(ts.Stderr(), stderr)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("exit code %d and nothing like %s\n%s%s", code, args[0], stdout, stderr)
		}
	}
}

// daemon is a running "sallyport serve".
type daemon struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	log bytes.Buffer
	end func()
}

func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

func (d *daemon) logged() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

func startServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: serve NAME ARGS...")
	}
	path, err := lookPath(ts, "sallyport")
	ts.Check(err)
	d := &daemon{cmd: exec.Command(path, append([]string{"serve"}, args[1:]...)...)}
	d.cmd.Args[0] = "sallyport"
	d.cmd.Dir, d.cmd.Env, d.cmd.Stderr = ts.MkAbs("."), environ(ts), d
	out, err := d.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(d.cmd.Start())
	d.end = sync.OnceFunc(func() {
		_ = d.cmd.Process.Kill() // it may be gone already
		_ = d.cmd.Wait()
	})
	ts.Value(servers{}).(map[string]*daemon)[args[0]] = d
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(out).ReadString('\n')
		line <- text
	}()
	var ready string
	select {
	case ready = <-line:
	case <-time.After(time.Minute):
	}
	_, rest, ok := strings.Cut(ready, "sallyport is ready at ")
	if !ok {
		d.end()
		ts.Fatalf("serve did not get ready: %q\n%s", ready, d.logged())
	}
	address, _, _ := strings.Cut(rest, ",")
	ts.Setenv("ADDR", address)
	fmt.Fprint(ts.Stdout(), ready)
}

func take(ts *testscript.TestScript, args []string) *daemon {
	all := ts.Value(servers{}).(map[string]*daemon)
	if len(args) == 0 || all[args[0]] == nil {
		ts.Fatalf("no such server: %v", args)
	}
	d := all[args[0]]
	return d
}

func stopServe(ts *testscript.TestScript, _ bool, args []string) {
	d := take(ts, args)
	ts.Check(d.cmd.Process.Signal(syscall.SIGTERM))
	timer := time.AfterFunc(time.Minute, func() { _ = d.cmd.Process.Kill() })
	defer timer.Stop()
	if err := d.cmd.Wait(); err != nil {
		ts.Fatalf("serve ended: %v\n%s", err, d.logged())
	}
	d.end = func() {}
}

func killServe(ts *testscript.TestScript, _ bool, args []string) { take(ts, args).end() }

func grepLog(ts *testscript.TestScript, neg bool, args []string) {
	d := take(ts, args)
	if found := strings.Contains(d.logged(), args[1]); found == neg {
		ts.Fatalf("log has %q: %v\n%s", args[1], found, d.logged())
	}
}
