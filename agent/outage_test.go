package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/files"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// network is what lies between an agent and its server, and can go away.
type network struct {
	lis *bufconn.Listener

	mu      sync.Mutex
	down    bool
	swallow bool // what is lost is lost without a word
	conns   []net.Conn
}

func (n *network) dial(ctx context.Context, _ string) (net.Conn, error) {
	for sent := time.Second; n.swallows(); sent *= 2 { // SYN goes out again after 1, 2, 4 ... s
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(sent):
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, syscall.ECONNREFUSED
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

// fallSilent swallows everything from now on. The kernel notices, which is tried where there is one (tests/network).
func (n *network) fallSilent() {
	n.mu.Lock()
	n.swallow = true
	n.mu.Unlock()
	n.lose()
}

func (n *network) swallows() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down && n.swallow
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
			t.Parallel()
			for range 2 { // pauses are random
				synctest.Test(t, func(t *testing.T) {
					site := newSite(t, time.Hour)
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

// However long a network has swallowed everything, the agent is back within seconds, and goes on at once with what it was at.
func TestNetworkSilent(t *testing.T) {
	const within = 16*time.Second + 5*time.Second // between two SYNs of a try; and the pauses, which end
	for _, method := range []string{"SubmitCSR", "ReportAssignment", "ReportObservation"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			for range 3 { // pauses are random
				synctest.Test(t, func(t *testing.T) {
					site := newSite(t, 2*time.Minute)
					time.Sleep(2 * time.Minute) // the first scan is over, which is an observation too
					var once sync.Once
					site.Fail(method, func() (err error) {
						once.Do(func() {
							site.between.fallSilent()
							err = fault.New(fault.Transient, "LOST", "nobody hears this")
						})
						return err
					})
					connector := "files"
					if method == "ReportAssignment" {
						connector = "unknown" // refused at once, which is reported
					}
					site.Assign(&agentv1.Assignment{Id: "a1", Generation: 1, Attempt: 1, KeyType: typev1.KeyType_KEY_TYPE_ECDSA_P256,
						Names:  &typev1.Names{Dns: []string{"shop.example"}},
						Target: &agentv1.Target{Name: "web", Connector: connector, Settings: map[string]string{"combined": site.dir + "/shop.pem"}}})
					for !site.between.lost() {
						time.Sleep(time.Second)
					}
					time.Sleep(renewAfter/2 + rand.N(renewAfter/8)) // a change of key would end the pauses too
					open, calls := len(site.Subscriptions()), site.Calls(method)
					site.between.back()
					time.Sleep(within)
					if len(site.Subscriptions()) == open {
						t.Error("no stream")
					}
					if site.Calls(method) == calls {
						t.Error("what was broken off was not tried again")
					}
				})
			}
		})
	}
}

// An agent that may not come back asks no more often because its old identity is refused too: each refusal is recorded.
func TestMayNeverComeBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		site := newSite(t, time.Hour)
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
	dir     string // where its agent may write
}

// newSite has its agent at work.
func newSite(t *testing.T, heartbeat time.Duration) *site {
	between := &network{lis: bufconn.Listen(1 << 20)}
	server := agenttest.Start(t, agenttest.Config{TTL: ttl, RenewAfter: renewAfter, Heartbeat: heartbeat,
		Listen: func() (net.Listener, error) { return between.lis, nil }})
	dir := t.TempDir()
	cfg := Config{Connectors: Connectors{Files: &files.Config{Config: pemfile.Config{Allow: []string{dir}}}}, Server: server.Address, StateDir: filepath.Join(t.TempDir(), "state"), Host: "web1", Scan: Scan{Listeners: "off"}}
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
	return &site{server, between, dir}
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
