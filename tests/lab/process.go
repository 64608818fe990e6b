// Package lab starts the real parts of an end-to-end test or demonstration on this machine: the control plane, agents, nginx,
// haproxy, PostgreSQL, NATS, and a local ACME CA.
//
// It guarantees that everything it starts listens on loopback only and ends with the Lab, or with the process that made it.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Lab owns a folder and the processes started in it.
type Lab struct {
	// Dir holds everything.
	Dir string
	// Bin is where the built programs are.
	Bin string
	// Logs is where the output of processes goes; Dir when empty.
	Logs string

	mu    sync.Mutex
	procs []*Process
	close []func()
}

// New makes a lab in dir, which must exist. bin is the folder `make build` fills.
func New(dir, bin string) *Lab { return &Lab{Dir: dir, Bin: bin} }

// OnClose runs f when the lab closes, last added first.
func (l *Lab) OnClose(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close = append(l.close, f)
}

// Close stops all that runs, newest first.
func (l *Lab) Close() {
	l.mu.Lock()
	procs, closers := l.procs, l.close
	l.procs, l.close = nil, nil
	l.mu.Unlock()
	for i := len(procs) - 1; i >= 0; i-- {
		_ = procs[i].Stop()
	}
	for i := len(closers) - 1; i >= 0; i-- {
		closers[i]()
	}
}

// Process is a program that was started. Its output goes to Log.
type Process struct {
	Name string
	Log  string

	cmd  *exec.Cmd
	end  syscall.Signal
	done chan struct{}
	err  error
}

// Command says what to start.
type Command struct {
	Name string
	Path string
	Args []string
	// Env is added to a minimal environment.
	Env []string
	// UID runs the program as this user and group when it is not 0.
	UID uint32
	// Dir is where it runs; the lab's folder when empty.
	Dir string
	// Prefix is put before the program, such as "ip netns exec X".
	Prefix []string
	// End is the signal that asks it to end; SIGTERM when 0.
	End syscall.Signal
}

// Start runs a program in the background. It dies with this process, whatever happens.
func (l *Lab) Start(c Command) (*Process, error) {
	logs := l.Dir
	if l.Logs != "" {
		logs = l.Logs
	}
	logPath := filepath.Join(logs, c.Name+".log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := l.command(context.Background(), c)
	cmd.Stdout, cmd.Stderr = out, out
	p := &Process{Name: c.Name, Log: logPath, cmd: cmd, end: c.End, done: make(chan struct{})}
	if p.end == 0 {
		p.end = syscall.SIGTERM
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the death signal is bound to the thread that started the child
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Name, err)
	}
	l.mu.Lock()
	l.procs = append(l.procs, p)
	l.mu.Unlock()
	return p, nil
}

func (l *Lab) command(ctx context.Context, c Command) *exec.Cmd {
	args := append(append([]string{}, c.Prefix...), c.Path)
	args = append(args, c.Args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = l.Dir
	if c.Dir != "" {
		cmd.Dir = c.Dir
	}
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.Dir, "LANG=C.UTF-8", "NO_COLOR=1"}, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	switch {
	case c.UID != 0 && aloneInNamespace():
		// There is no other user here. The program gets a namespace of its own, in which we are that user.
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(c.UID), HostID: 0, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(c.UID), HostID: 0, Size: 1}}
	case c.UID != 0:
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.UID}
	}
	return cmd
}

// Result is what a finished program said.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a program to its end, five minutes at most. A program that ends with a code other than 0 is no error here.
func (l *Lab) Run(ctx context.Context, c Command) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := l.command(ctx, c)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}, nil
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether it still runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends sig.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end and waits; after a minute it is killed, which is an error.
func (p *Process) Stop() error {
	if !p.Running() {
		return nil
	}
	_ = p.cmd.Process.Signal(p.end)
	select {
	case <-p.done:
		return nil
	case <-time.After(time.Minute):
		p.Kill()
		return fmt.Errorf("%s did not stop within a minute of %s", p.Name, p.end)
	}
}

// Kill ends the process at once and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Output is all the process has written.
func (p *Process) Output() string {
	data, _ := os.ReadFile(p.Log)
	return string(data)
}

// Await calls check until it returns nil, until ctx or timeout ends, or until one of procs ends.
func Await(ctx context.Context, timeout time.Duration, what string, check func() error, procs ...*Process) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pause := 5 * time.Millisecond
	for {
		err := check()
		if err == nil {
			return nil
		}
		for _, p := range procs {
			if !p.Running() {
				return fmt.Errorf("waiting for %s: %s ended: %w\n%s", what, p.Name, err, tail(p.Output(), 30))
			}
		}
		select {
		case <-ctx.Done():
			text := ""
			for _, p := range procs {
				text += fmt.Sprintf("\n--- %s\n%s", p.Name, tail(p.Output(), 30))
			}
			return fmt.Errorf("waiting for %s: %w%s", what, err, text)
		case <-time.After(pause):
			pause = min(pause*2, 100*time.Millisecond)
		}
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Ports below the range from which the system gives clients theirs: none can be taken by a connection before a server has it.
const firstPort, lastPort = 12000, 32000

var (
	somewhere = rand.IntN(lastPort - firstPort)
	ports     atomic.Int32
)

// FreePort finds a TCP port nobody listens on now. It does not give the same one twice soon.
func FreePort() (int, error) {
	for range lastPort - firstPort {
		port := firstPort + (somewhere+int(ports.Add(1)))%(lastPort-firstPort)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no port is free")
}
