package agent

import (
	"context"
	"net"
	"sync"

	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// link dials for the agent's one connection and can break it off, so that the
// next one is made with the identity now in use. It knows whether anybody has
// answered the last time.
type link struct {
	dialer rpc.Dialer

	mu         sync.Mutex
	conns      map[*linked]struct{}
	unanswered bool
}

type linked struct {
	net.Conn
	link *link
}

func newLink(dialer rpc.Dialer) *link {
	if dialer == nil {
		dialer = rpc.Direct
	}
	return &link{dialer: dialer, conns: map[*linked]struct{}{}}
}

func (l *link) dial(ctx context.Context, address string) (net.Conn, error) {
	raw, err := l.dialer(ctx, address)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unanswered = rpc.Unanswered(err)
	if err != nil {
		return nil, err
	}
	c := &linked{raw, l}
	l.conns[c] = struct{}{}
	return c, nil
}

// Close forgets the connection.
func (c *linked) Close() error {
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	return c.Conn.Close()
}

// silent says whether the last one dialled was not answered at all.
func (l *link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unanswered
}

// reset breaks off what is open.
func (l *link) reset() {
	l.mu.Lock()
	open := l.conns
	l.conns = map[*linked]struct{}{}
	l.mu.Unlock()
	for c := range open {
		c.Conn.Close()
	}
}
