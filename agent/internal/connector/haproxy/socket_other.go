//go:build !linux

package haproxy

import (
	"errors"
	"net"
)

// listener cannot be told here.
func listener(net.Conn) (uint32, error) {
	return 0, errors.New("who listens on a socket is told on Linux only")
}
