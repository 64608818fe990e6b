package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// network is what lies between an agent and its server, and can go away.
type network struct {
	lis *bufconn.Listener

	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

func (n *network) dial(ctx context.Context, _ string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, errors.New("network is unreachable")
	}
	c, err := n.lis.DialContext(ctx)
	if err == nil {
		n.conns = append(n.conns, c)
	}
	return c, err
}

// lose lets no new connection through, and breaks off those that are open.
func (n *network) lose() {
	n.refuse()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Close()
	}
	n.conns = nil
}

func (n *network) refuse() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
}

func (n *network) lost() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down
}

func (n *network) back() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = false
}

// The old identity is changed for a new one after some time, and lives for a while longer than that.
const (
	ttl, renewAfter = 100 * time.Minute, 20 * time.Minute

	some     = 40 * time.Minute               // both live still
	oldDead  = ttl - renewAfter + time.Minute // the new one lives
	bothDead = ttl + time.Minute
	spread   = 10 * time.Minute
)

// outage is when the network of an agent that changes its key goes away.
type outage struct {
	name string
	// arm has the network go away at its moment.
	arm func(*agenttest.Server, *network)
	// away is how long it stays away.
	away time.Duration
}

// at has the network go away when the server has taken the first call of a method, before its answer leaves.
func at(method string, away func(*network)) func(*agenttest.Server, *network) {
	return func(server *agenttest.Server, net *network) {
		var once sync.Once
		server.Fail(method, func() error {
			once.Do(func() { away(net) })
			return nil
		})
	}
}

// An agent whose network went away while it changed its key is back as soon as one that did not.
func TestNetworkLostInChangeOfKey(t *testing.T) {
	const within = 5*time.Minute + 5*time.Minute/16 + 10*time.Second // the longest pause of a stream
	for _, o := range []outage{
		{"no change", func(_ *agenttest.Server, n *network) { n.lose() }, some},
		{"granted, answer lost, expired", at("RenewIdentity answer", (*network).lose), oldDead},
		{"granted, not tried, old one expired", at("RenewIdentity answer", (*network).refuse), oldDead},
		{"tried, answer lost", at("first use", (*network).lose), some},
		{"tried, answer lost, old one expired", at("first use", (*network).lose), oldDead},
		{"tried, answer lost, both expired", at("first use", (*network).lose), bothDead},
	} {
		t.Run(o.name, func(t *testing.T) {
			for range 2 { // pauses are random
				synctest.Test(t, func(t *testing.T) {
					site := newSite(t)
					if took := site.suffer(o); took > within {
						t.Errorf("back after %s, want %s at most", took, within)
					}
					// One for the change that was broken off, one where it is made anew.
					if n := site.Calls("RenewIdentity") + site.Calls("Return"); n > 2 {
						t.Errorf("asked for an identity %d times", n)
					}
				})
			}
		})
	}
}

// An agent that may not come back asks no more often because its old identity is refused too: each refusal is recorded.
func TestMayNeverComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := newSite(t)
		site.Fail("Return", func() error { return fault.New(fault.Denied, "RETURN_TOO_LATE", "enrol again with a join token") })
		site.between.lose()
		time.Sleep(bothDead)
		site.between.back()
		time.Sleep(2 * time.Hour) // pauses of 5.6 minutes each
		if n := site.Calls("Return"); n < 8 || n > 38 {
			t.Errorf("asked to come back %d times", n)
		}
	})
}

// site is a control plane, an agent, and the network between them.
type site struct {
	*agenttest.Server
	between *network
}

// newSite has its agent at work.
func newSite(t *testing.T) *site {
	between := &network{lis: bufconn.Listen(1 << 20)}
	server := agenttest.Start(t, agenttest.Config{TTL: ttl, RenewAfter: renewAfter, Heartbeat: time.Hour,
		Listen: func() (net.Listener, error) { return between.lis, nil }})
	cfg := Config{Server: server.Address, StateDir: filepath.Join(t.TempDir(), "state"), Host: "web1", Scan: Scan{Listeners: "off"}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a.dialer = between.dial
	if _, _, err := a.Enroll(t.Context(), server.Token("t1"), false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	time.Sleep(time.Minute)
	return &site{server, between}
}

// suffer goes through the outage and says how long the agent took to come back.
func (s *site) suffer(o outage) time.Duration {
	o.arm(s.Server, s.between)
	for !s.between.lost() {
		time.Sleep(time.Second)
	}
	time.Sleep(o.away + rand.N(spread))
	s.between.lose() // where it was only refusing
	open, back := len(s.Subscriptions()), time.Now()
	s.between.back()
	for len(s.Subscriptions()) == open {
		time.Sleep(5 * time.Second)
	}
	return time.Since(back)
}
