package fleet

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// network is a bad way from hosts to the control plane: a proxy that lets bytes trickle, or lets none through for a while
// without telling anybody, as a host that hangs does.
type network struct {
	address string
	trickle bool

	mu     sync.Mutex
	frozen chan struct{} // closed when it thaws; nil when it flows
	conns  map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

func newNetwork(t *testing.T, trickle bool) *network {
	t.Helper()
	lis := ok(net.Listen("tcp", "127.0.0.1:0"))(t)
	n := &network{address: lis.Addr().String(), trickle: trickle, conns: map[net.Conn]struct{}{}}
	n.wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of files for a moment: the agents try again, and so does it
				time.Sleep(100 * time.Millisecond)
				continue
			}
			n.wg.Go(func() { n.serve(conn) })
		}
	})
	t.Cleanup(func() {
		lis.Close()
		n.mu.Lock()
		n.closed = true
		n.mu.Unlock()
		n.thaw()
		n.breakOff()
		n.wg.Wait()
	})
	return n
}

// serve carries one connection.
func (n *network) serve(from net.Conn) {
	defer from.Close()
	in := bufio.NewReader(from)
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	to, err := new(net.Dialer).DialContext(context.Background(), "tcp", req.Host)
	if err != nil {
		_, _ = io.WriteString(from, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer to.Close()
	if _, err := io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.conns[from], n.conns[to] = struct{}{}, struct{}{}
	n.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { n.carry(to, in); to.Close() })
	both.Go(func() { n.carry(from, to); from.Close() })
	both.Wait()
	n.mu.Lock()
	delete(n.conns, from)
	delete(n.conns, to)
	n.mu.Unlock()
}

func (n *network) carry(to io.Writer, from io.Reader) {
	buf := make([]byte, 4<<10)
	if n.trickle {
		buf = buf[:200]
	}
	for {
		n.mu.Lock()
		frozen := n.frozen
		n.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		count, err := from.Read(buf)
		if n.trickle {
			time.Sleep(10 * time.Millisecond)
		}
		if count > 0 {
			if _, err := to.Write(buf[:count]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// freeze lets nothing through from now on but what is on its way.
func (n *network) freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen == nil {
		n.frozen = make(chan struct{})
	}
}

func (n *network) thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen != nil {
		close(n.frozen)
		n.frozen = nil
	}
}

// breakOff ends all connections.
func (n *network) breakOff() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.Close()
	}
}
