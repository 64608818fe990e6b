// Package process tells a running server to reload by a signal.
//
// It guarantees that the signal reaches only a process that runs the expected
// program and has said to the kernel that it handles that signal: a stale
// process id file kills nobody.
package process

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// Server is a server known by its process id file.
type Server struct {
	// PIDFile holds the process id of the server's master.
	PIDFile string
	// Program is the path of the server's binary.
	Program string
	// Settle is how long the server may take that is just replacing itself:
	// HAProxy removes its process id file and handles no signal until it is back.
	Settle time.Duration
	// Worker is what those of its processes call themselves that accept
	// connections, and no longer once they are told to go; empty where that
	// cannot be told.
	Worker string
}

// Child is a process that the server's master has started.
type Child struct {
	PID int
	// Master is the user that the master runs as.
	Master uint32
}

const (
	maxPIDFile = 64      // bytes
	maxPID     = 1 << 22 // proc(5): pid_max; system calls take the lower half of a greater number
)

func (s Server) pid() (int, error) {
	data, err := disk.ReadPath(s.PIDFile, maxPIDFile)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid < 2 || pid > maxPID {
		return 0, fmt.Errorf("%s does not hold a process id", s.PIDFile)
	}
	return pid, nil
}
