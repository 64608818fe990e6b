package e2e

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// socket is a TCP socket of a process.
type socket struct {
	local, remote netip.AddrPort
	listening     bool
}

// sockets are the TCP sockets that the process has open now.
func sockets(pid int) ([]socket, error) {
	inodes, err := socketInodes(pid)
	if err != nil {
		return nil, err
	}
	var all []socket
	for _, table := range []string{"tcp", "tcp6"} {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "net", table))
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		lines.Scan() // the heading
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || !inodes[fields[9]] {
				continue
			}
			local, err1 := address(fields[1])
			remote, err2 := address(fields[2])
			if err := errors.Join(err1, err2); err != nil {
				f.Close()
				return nil, err
			}
			all = append(all, socket{local, remote, fields[3] == "0A"})
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func socketInodes(pid int) (map[string]bool, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	inodes := map[string]bool{}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if inode, is := strings.CutPrefix(target, "socket:["); is {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes, nil
}

// address reads "0100007F:1F90": 32-bit words in the machine's own order, which is little-endian here.
func address(text string) (netip.AddrPort, error) {
	ip, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(ip)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("reading the address %q", text)
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	addr, isIP := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !isIP || err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading the address %q", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// listeners are where the agent listens.
func (h *host) listeners() ([]string, error) {
	all, err := sockets(h.PID())
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("the agent has no socket at all: it is not connected")
	}
	var listening []string
	for _, s := range all {
		if s.listening {
			listening = append(listening, s.local.String())
		}
	}
	return listening, nil
}

func (h *host) listensOnNothing(t *testing.T) {
	t.Helper()
	h.w.await(t, "the agent to listen on nothing", func() error {
		at, err := h.listeners()
		if err == nil && len(at) > 0 {
			err = fmt.Errorf("it listens on %v", at)
		}
		return err
	})
}
