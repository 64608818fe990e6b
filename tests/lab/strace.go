package lab

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Fault says which system calls of a program are to fail. See strace(1), "Tampering".
type Fault struct {
	// Calls are the system calls, such as "fsync,fdatasync".
	Calls string
	// Do is what becomes of them, such as "error=EIO:when=3+" or "retval=0".
	Do string
	// Path, if any, restricts it to calls on this file or folder.
	Path string
	// Log is the file in which what has failed is written down, with the word "INJECTED"; nowhere when empty.
	Log string
}

// Prefix goes before a program so that it meets the fault. The program keeps the process id that it would have had.
func (f Fault) Prefix() ([]string, error) {
	bin, err := look("strace")
	if err != nil {
		return nil, err
	}
	args := []string{bin, "-D", "-f", "-qq", "-o", cmp.Or(f.Log, "/dev/null"), "--seccomp-bpf", "-e", "trace=" + f.Calls, "-e", "inject=" + f.Calls + ":" + f.Do}
	if f.Path != "" {
		args = append(args, "-P", f.Path)
	}
	return append(args, "--"), nil
}

// KillAll kills the process and all that it has started, at once, and waits for it.
func (p *Process) KillAll() {
	if !p.Running() {
		return
	}
	_ = p.Signal(syscall.SIGSTOP) // nobody is started any more
	for _, pid := range descendants(p.PID()) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	p.Kill()
}

// descendants lists the children of pid, theirs, and so on.
func descendants(pid int) []int {
	var all []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		for _, word := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}
