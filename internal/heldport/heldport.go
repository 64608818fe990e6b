//go:build unix

// Package heldport gives tests addresses to serve at that stay theirs.
//
// A port that was found free and closed again belongs to nobody until a server listens there, or listens again: meanwhile the
// system may give it to any other server or connection on the machine. A held one it gives to nobody, while the test's servers
// come and go there; whoever connects while none listens is refused.
package heldport

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// Address gives an address on loopback, which is held until the test has ended.
func Address(t testing.TB) string {
	t.Helper()
	fd, port, err := hold()
	if err != nil {
		t.Fatalf("holding a port: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// hold binds a socket that never listens. Those who set SO_REUSEADDR, as servers do, may listen at its port beside it; when the
// system chooses a port for somebody it passes over those that are bound.
func hold() (fd, port int, err error) {
	syscall.ForkLock.RLock()
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, 0, os.NewSyscallError("socket", err)
	}
	if err = os.NewSyscallError("setsockopt", syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)); err == nil {
		err = os.NewSyscallError("bind", syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	}
	if err == nil {
		var at syscall.Sockaddr
		if at, err = syscall.Getsockname(fd); err == nil {
			return fd, at.(*syscall.SockaddrInet4).Port, nil
		}
	}
	_ = syscall.Close(fd)
	return 0, 0, err
}
