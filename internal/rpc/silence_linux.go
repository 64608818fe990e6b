package rpc

import "syscall"

const tcpUserTimeout = 18 // TCP_USER_TIMEOUT of linux/tcp.h, which syscall leaves out

func patience(_, _ string, c syscall.RawConn) error {
	var err error
	if wrong := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout.Milliseconds()))
	}); wrong != nil {
		return wrong
	}
	return err
}
