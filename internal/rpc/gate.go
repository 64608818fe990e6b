package rpc

import (
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// gate lets few handshakes compute at once. Thousands that share the processor
// would all come to their end too late, and be tried again by their clients
// until the end of days; one after the other, as many succeed as there is time
// for. Those that have begun go first, and a peer that lets us wait has no place
// meanwhile, so that nobody can hold one.
type gate struct {
	patience time.Duration // how long a handshake waits for its turn to begin

	mu    sync.Mutex
	free  int
	begun []chan struct{} // they wait for a place
	fresh []chan struct{}
}

// freshMax bounds the memory of those that wait to begin.
const freshMax = 16 << 10

var errCrowded = errors.New("too many handshakes at once")

func newGate(places int, patience time.Duration) *gate {
	return &gate{free: places, patience: patience}
}

// enter waits for a place.
func (g *gate) enter(begun bool) error {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if begun {
		g.begun = append(g.begun, turn)
		g.mu.Unlock()
		<-turn // soon: nobody waits while he has a place
		return nil
	}
	if len(g.fresh) >= freshMax {
		g.mu.Unlock()
		return errCrowded
	}
	g.fresh = append(g.fresh, turn)
	g.mu.Unlock()
	timer := time.NewTimer(g.patience)
	defer timer.Stop()
	select {
	case <-turn:
		return nil
	case <-timer.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.fresh, turn); i >= 0 {
		g.fresh = slices.Delete(g.fresh, i, i+1)
		return errCrowded
	}
	return nil // its turn came just now
}

// leave passes the place on.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, queue := range []*[]chan struct{}{&g.begun, &g.fresh} {
		if len(*queue) > 0 {
			close((*queue)[0])
			(*queue)[0] = nil
			*queue = (*queue)[1:]
			return
		}
	}
	g.free++
}

// gatedConn is a connection in its handshake, which is the work of one
// goroutine. It has a place at the gate but while it waits for its peer.
type gatedConn struct {
	net.Conn
	gate  *gate // nil after the handshake
	begun bool
	place bool
}

func (c *gatedConn) Read(p []byte) (int, error) {
	if c.gate == nil {
		return c.Conn.Read(p)
	}
	c.leave()
	n, err := c.Conn.Read(p)
	if n > 0 {
		if refused := c.gate.enter(c.begun); refused != nil {
			return 0, refused
		}
		c.begun, c.place = true, true
	}
	return n, err
}

func (c *gatedConn) leave() {
	if c.place {
		c.place = false
		c.gate.leave()
	}
}

// done ends the handshake.
func (c *gatedConn) done() {
	c.leave()
	c.gate = nil
}
