package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Memory of a process, in bytes: what is resident now, and what was at most.
type Memory struct{ Resident, Peak int64 }

// MemoryOf reads it from the system.
func MemoryOf(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for line := range strings.Lines(string(text)) {
		for name, into := range map[string]*int64{"VmRSS:": &m.Resident, "VmHWM:": &m.Peak} {
			if value, ok := strings.CutPrefix(line, name); ok {
				kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
				if err != nil {
					return Memory{}, err
				}
				*into = kib << 10
			}
		}
	}
	if m.Resident == 0 || m.Peak == 0 {
		return Memory{}, fmt.Errorf("process %d has no resident memory", pid)
	}
	return m, nil
}

// spareFiles is what a process has open besides those of its agents.
const spareFiles = 512

// Files wants so many agents to be possible in one process, each with so many open files.
func Files(agents int, each float64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if most := int(float64(limit.Max-spareFiles) / each); agents > most {
		return fmt.Errorf("%d agents need %g open files each and %d files are allowed, which is enough for %d: raise ulimit -n or ask for fewer agents",
			agents, each, limit.Max, most)
	}
	return nil
}
