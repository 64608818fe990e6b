package rpc

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// keepAlive has the kernel find out within 22 seconds that the peer of an idle connection is gone without a word: cut off, forgotten
// by a firewall, or moved. Four questions in a row must stay unanswered, so that no single lost packet breaks a connection off. It
// sees no further than a proxy does: behind one, the pings of HTTP/2 are what notices (clientKeepalive, serverKeepalive).
//
// Data that nobody confirms breaks a connection off after userTimeout, which on Linux bounds both (tcp(7), TCP_USER_TIMEOUT).
// grpc-go sets it where it is given a bare TCP connection.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 4}

const userTimeout = keepaliveTimeout

// Listen listens on a TCP address, host:port, for connections whose peers are noticed when they fall silent.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	return (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(ctx, "tcp", address)
}

// Direct dials TCP, without a proxy. A server that falls silent is noticed, whoever wraps the connection.
func Direct(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{KeepAliveConfig: keepAlive, Control: patience}).DialContext(ctx, "tcp", address)
}

// Windows names these differently than syscall does.
const (
	wsaNetDown         syscall.Errno = 10050
	wsaNetUnreachable  syscall.Errno = 10051
	wsaHostUnreachable syscall.Errno = 10065
)

// Unanswered says of an error of a Dialer that nobody has answered: neither the server nor its machine bears anything of the next
// try.
func Unanswered(err error) bool {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return true
	}
	for _, lost := range []error{syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTUNREACH, wsaNetDown, wsaNetUnreachable, wsaHostUnreachable} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
}
