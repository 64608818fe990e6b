package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// find gives the running process. Its handle is a pidfd: another process that
// later gets the same id is not meant by it.
func (s Server) find() (*os.Process, error) {
	pid, err := s.pid()
	if err != nil {
		return nil, err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("process %d of %s does not run: %w", pid, s.PIDFile, err)
	}
	if err := p.Signal(syscall.Signal(0)); err != nil {
		return nil, errors.Join(fmt.Errorf("process %d of %s does not run", pid, s.PIDFile), p.Release())
	}
	have, want, err := s.comm(pid)
	if err != nil {
		return nil, errors.Join(err, p.Release())
	}
	if have != want {
		return nil, errors.Join(fmt.Errorf("process %d of %s is %q, not %q: the file is stale", pid, s.PIDFile, have, want), p.Release())
	}
	return p, nil
}

// comm is what the kernel calls the process, and what it calls one that runs the program.
func (s Server) comm(pid int) (have, want string, err error) {
	comm, err := told(pid, "comm")
	const commLen = 15
	want = filepath.Base(s.Program)
	return strings.TrimSpace(string(comm)), want[:min(len(want), commLen)], err
}

// maxTold is more than the kernel tells of a process that is a server. What a process calls itself is the process's choice.
const maxTold = 1 << 20 // bytes

// told reads what the kernel tells of a process (proc(5)).
func told(pid int, what string) ([]byte, error) {
	return disk.ReadPath(fmt.Sprintf("/proc/%d/%s", pid, what), maxTold)
}

func (s Server) runs(pid int) bool {
	have, want, err := s.comm(pid)
	return err == nil && have == want
}

const pause = 20 * time.Millisecond

// Running says whether the server runs.
func (s Server) Running(ctx context.Context) error {
	return s.patiently(ctx, func() error {
		p, err := s.find()
		if err != nil {
			return err
		}
		return p.Release()
	})
}

// Signal sends the signal if the server runs and handles it.
func (s Server) Signal(ctx context.Context, sig syscall.Signal) error {
	return s.patiently(ctx, func() error { return s.try(sig) })
}

func (s Server) patiently(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, s.Settle)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

var errDeaf = errors.New("it does not handle the signal and would die of it: is it the master process?")

func (s Server) try(sig syscall.Signal) error {
	p, err := s.find()
	if err != nil {
		return err
	}
	defer p.Release() //nolint:errcheck // nothing is left to do
	handles, err := catches(p.Pid, sig)
	if err != nil {
		return err
	}
	if !handles {
		return fmt.Errorf("process %d (%s), signal %d: %w", p.Pid, filepath.Base(s.Program), int(sig), errDeaf)
	}
	return p.Signal(sig)
}

// catches reads the mask of caught signals (proc(5): SigCgt).
func catches(pid int, sig syscall.Signal) (bool, error) {
	status, err := told(pid, "status")
	if err != nil {
		return false, err
	}
	return caught(status, sig)
}

func caught(status []byte, sig syscall.Signal) (bool, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nSigCgt:"))
	if !ok {
		return false, errors.New("reading which signals are handled")
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	mask, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
	if err != nil {
		return false, fmt.Errorf("reading which signals are handled: %w", err)
	}
	return mask&(1<<(uint(sig)-1)) != 0, nil
}

// Workers lists the server's processes that accept connections now.
func (s Server) Workers() []int {
	p, err := s.find()
	if err != nil || s.Worker == "" {
		return nil
	}
	defer p.Release() //nolint:errcheck // nothing is left to do
	return slices.DeleteFunc(s.children(p.Pid), func(pid int) bool { return !s.accepts(pid) })
}

// Newest is the last of those that run the server's program among the processes its master has started. It waits for a master
// that does not handle the signal: one that is just replacing itself.
func (s Server) Newest(ctx context.Context, sig syscall.Signal) (newest Child, err error) {
	return newest, s.patiently(ctx, func() error {
		newest, err = s.newest(sig)
		return err
	})
}

func (s Server) newest(sig syscall.Signal) (Child, error) {
	p, err := s.find()
	if err != nil {
		return Child{}, err
	}
	defer p.Release() //nolint:errcheck // nothing is left to do
	if handles, err := catches(p.Pid, sig); err != nil || !handles {
		return Child{}, errors.Join(err, fmt.Errorf("process %d (%s), signal %d: %w", p.Pid, filepath.Base(s.Program), int(sig), errDeaf))
	}
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d", p.Pid), &st); err != nil {
		return Child{}, err
	}
	children := s.children(p.Pid)
	for _, pid := range slices.Backward(children) { // in the order they were started
		if s.runs(pid) {
			return Child{PID: pid, Master: st.Uid}, nil
		}
	}
	return Child{}, fmt.Errorf("process %d of %s has no worker", p.Pid, s.PIDFile)
}

func (s Server) children(master int) []int {
	list, err := told(master, fmt.Sprintf("task/%d/children", master))
	if err != nil {
		return nil
	}
	return listed(list)
}

func listed(children []byte) (pids []int) {
	for _, field := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid <= maxPID {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Accepting says whether one of the workers still accepts connections.
func (s Server) Accepting(workers []int) bool { return slices.ContainsFunc(workers, s.accepts) }

func (s Server) accepts(pid int) bool {
	title, err := told(pid, "cmdline")
	return err == nil && s.titled(title)
}

func (s Server) titled(cmdline []byte) bool {
	return strings.TrimRight(string(cmdline), "\x00 ") == s.Worker
}

// The signals that make servers reload.
const (
	HUP  = syscall.SIGHUP
	USR2 = syscall.SIGUSR2
)
