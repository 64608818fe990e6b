//go:build linux

package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, script string) (pid int) {
	t.Helper()
	cmd := exec.Command("/bin/bash", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with its children; it may be gone
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it says when it is ready
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestSignalsOnlyWhoListens(t *testing.T) {
	dir := t.TempDir()
	got := filepath.Join(dir, "got")
	deaf := start(t, "echo; while :; do sleep 0.05; done")
	listening := start(t, "trap 'touch "+got+"' USR2; echo; while :; do sleep 0.05; done")
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pid, program, want string
	}{
		{fmt.Sprint(deaf), "/bin/bash", "would die of it"},
		{fmt.Sprint(listening), "/usr/sbin/nginx", "the file is stale"},
		{fmt.Sprint(gone.Process.Pid), "/bin/bash", "does not run"},
		{"", "/bin/bash", "does not hold a process id"},
		{"1", "/bin/bash", "does not hold a process id"},
		{"-5", "/bin/bash", "does not hold a process id"},
		{"12x", "/bin/bash", "does not hold a process id"},
		{fmt.Sprint(1<<32 + deaf), "/bin/bash", "does not hold a process id"},
		{strings.Repeat("1", 100), "/bin/bash", "larger than 64 bytes"},
	} {
		file := filepath.Join(dir, "pid")
		if err := os.WriteFile(file, []byte(c.pid+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Server{PIDFile: file, Program: c.program}
		if err := s.Signal(t.Context(), USR2); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.pid, err, c.want)
		}
	}
	if err := (Server{PIDFile: filepath.Join(dir, "none"), Program: "/bin/bash"}).Running(t.Context()); err == nil {
		t.Error("runs without a file")
	}
	if err := (Server{PIDFile: dir, Program: "/bin/bash"}).Running(t.Context()); err == nil || !strings.Contains(err.Error(), "not a plain file") {
		t.Errorf("a folder, pipe or device is read: %v", err)
	}
	file := filepath.Join(dir, "link") // as /var/run is, or the file itself
	if err := os.Symlink(write(t, dir, listening), file); err != nil {
		t.Fatal(err)
	}
	s := Server{PIDFile: file, Program: "/usr/bin/bash"}
	if err := s.Running(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Signal(t.Context(), USR2); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(got); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the signal did not arrive")
		}
	}
	for _, pid := range []int{deaf, listening} {
		if err := (Server{PIDFile: write(t, dir, pid), Program: "/bin/bash"}).Running(t.Context()); err != nil {
			t.Errorf("a process died: %v", err)
		}
	}
}

func write(t *testing.T, dir string, pid int) string {
	t.Helper()
	file := filepath.Join(dir, "pid")
	if err := os.WriteFile(file, fmt.Appendln(nil, pid), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Who accepts is told by what the master's children call themselves, and by whether they are there.
func TestWorkers(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	child := func(title string) string { return "(exec -a '" + title + "' cat <" + pipe + ") & " }
	master := start(t, child("x: worker process")+child("x: worker process is shutting down")+child("x: cache manager process")+child("x: worker process")+
		"echo; while :; do wait; done")
	file := filepath.Join(dir, "pid")
	if err := os.WriteFile(file, fmt.Appendln(nil, master), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Server{PIDFile: file, Program: "/bin/bash", Worker: "x: worker process"}
	var workers []int
	for end := time.Now().Add(time.Minute); len(workers) != 2; time.Sleep(5 * time.Millisecond) {
		if workers = s.Workers(); time.Now().After(end) {
			t.Fatalf("workers %v, want two", workers)
		}
	}
	for i, pid := range workers {
		if !s.Accepting(workers) {
			t.Errorf("nobody accepts, though %d of %d are there", len(workers)-i, len(workers))
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); s.accepts(pid); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it accepts, though it is dead")
			}
		}
	}
	if s.Accepting(workers) {
		t.Error("somebody accepts, though all are gone")
	}
	if got := (Server{PIDFile: file, Program: "/bin/bash"}).Workers(); got != nil {
		t.Errorf("workers %v of a server that does not tell", got)
	}
}

// The newest worker is the last one started that runs the server's program, once the master handles signals.
func TestNewest(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "trap : USR2; (while :; do sleep 0.05; done) & (while :; do sleep 0.05; done) & echo $! > "+dir+"/last; sleep 100 & echo; while :; do wait; done")
	data, err := os.ReadFile(filepath.Join(dir, "last"))
	if err != nil {
		t.Fatal(err)
	}
	s := Server{PIDFile: write(t, dir, master), Program: "/bin/bash"}
	var newest Child
	for end := time.Now().Add(time.Minute); fmt.Sprint(newest.PID) != strings.TrimSpace(string(data)); time.Sleep(5 * time.Millisecond) {
		if newest, err = s.Newest(t.Context(), USR2); err != nil || time.Now().After(end) { // the last is a shell still, at first
			t.Fatalf("%+v, %v, want process %s", newest, err, data)
		}
	}
	if newest.Master != uint32(os.Getuid()) {
		t.Errorf("the master is said to run as %d", newest.Master)
	}
	if _, err := s.Newest(t.Context(), HUP); err == nil || !strings.Contains(err.Error(), "does not handle") {
		t.Errorf("a master that is replacing itself: %v", err)
	}
	if _, err := (Server{PIDFile: write(t, dir, newest.PID), Program: "/bin/bash"}).Newest(t.Context(), USR2); err == nil {
		t.Error("a process that handles nothing and has no children has a newest one")
	}
}

// A server that is just replacing itself is waited for.
func TestSettles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	pid := start(t, "trap : USR2; echo; while :; do sleep 0.05; done")
	if err := (Server{PIDFile: file, Program: "/bin/bash"}).Signal(t.Context(), USR2); err == nil {
		t.Error("found what was not there yet")
	}
	time.AfterFunc(150*time.Millisecond, func() { _ = os.WriteFile(file, fmt.Appendln(nil, pid), 0o600) })
	if err := (Server{PIDFile: file, Program: "/bin/bash", Settle: time.Minute}).Signal(t.Context(), USR2); err != nil {
		t.Error(err)
	}
}
