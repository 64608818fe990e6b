package daemons

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

var (
	away  = flag.Duration("away", 32*time.Second, "how long the broker is away; more than any pause in the code, of which the 30s of a pull request is the longest")
	kills = flag.Int("kills", 2, "how often the leader of a cluster is killed")
)

// TestBrokerAway kills the one broker and lets the services work without it for longer than any of their pauses. When it is
// back, all that happened is told, once. Then it loses all it has, and nothing is done but to start it.
func TestBrokerAway(t *testing.T) {
	t.Parallel() // it waits, as TestCluster does
	p := newSite(t, configFolder(t))
	b, err := p.NATSProcess(t.Context(), "nats", p.configure("nats.conf", "nats.conf", map[string]string{"0.0.0.0:4222": p.natsAt}), p.natsAt)
	must(t, err)
	p.brokers = []*lab.BrokerProcess{b}
	for _, name := range services {
		p.start(name)
	}
	p.awaitAll()
	m := p.enrol()
	f := p.flows(m)
	t.Logf("a record comes after %s", f.passes("at first"))
	b.Kill()
	begun := time.Now()
	s := &shop{plant: p, site: m, deployer: f.deployer}
	for time.Since(begun) < *away {
		f.mu.Lock()
		s.generation = f.renewals["shop"]
		f.mu.Unlock()
		s.last = nil
		s.served() // renewals go on
		wait(t.Context(), time.Second)
	}
	must(t, b.Start(t.Context()))
	t.Logf("after %s away a record comes after %s", time.Since(begun).Round(time.Second), f.passes("after the broker was away"))
	b.Kill()
	must(t, os.RemoveAll(filepath.Join(p.state, "nats")))
	must(t, b.Start(t.Context()))
	t.Logf("without its data a record comes after %s", f.passes("after the broker lost its data"))
	f.ends()
}

// TestCluster runs three brokers by deploy/config/nats-cluster.conf. Leaders are killed, a follower, and one comes back without
// its data; the services go on and nothing is lost or told twice.
func TestCluster(t *testing.T) {
	t.Parallel()
	p := newSite(t, configFolder(t))
	c := newCluster(t, p)
	c.strangers()
	for _, name := range services {
		p.start(name)
	}
	p.awaitAll()
	f := p.flows(p.enrol())
	t.Logf("a record comes after %s", f.passes("at first"))
	for range *kills {
		leader := c.leader()
		c.nodes[leader].Kill()
		t.Logf("%s, the leader, was killed: a record comes after %s", leader, f.passes("after the leader was killed"))
		must(t, c.nodes[leader].Start(t.Context()))
		c.healthy()
	}
	for name, b := range c.nodes {
		if name != c.leader() {
			b.Kill()
			t.Logf("%s, a follower, was killed: a record comes after %s", name, f.passes("after a follower was killed"))
			must(t, os.RemoveAll(c.store(name)))
			must(t, b.Start(t.Context()))
			c.healthy()
			t.Logf("%s is back without its data, and has got it again", name)
			break
		}
	}
	leader := c.leader()
	must(t, c.nodes[leader].Stop())
	t.Logf("%s, the leader, was stopped in good order: a record comes after %s", leader, f.passes("after the leader was stopped"))
	must(t, c.nodes[leader].Start(t.Context()))
	c.healthy()
	f.ends()
}

// cluster is three brokers.
type cluster struct {
	p      *plant
	nodes  map[string]*lab.BrokerProcess
	health map[string]string // address
	routes map[string]string
	js     jetstream.JetStream
}

func newCluster(t *testing.T, p *plant) *cluster {
	t.Helper()
	c := &cluster{p: p, nodes: map[string]*lab.BrokerProcess{}, health: map[string]string{}, routes: map[string]string{}}
	// Peers look at the host name, which here is the same for all.
	p.do("trust", "issue", "--dir", filepath.Join(p.etc, "trust"), "service/nats", "--dns", "localhost", "--out", p.identity("nats"))
	names := []string{"nats-1", "nats-2", "nats-3"}
	clients := map[string]string{}
	var at []string
	for _, name := range names {
		clients[name], c.health[name], c.routes[name] = address(t), address(t), address(t)
		at = append(at, clients[name])
	}
	p.natsAt = strings.Join(at, ",tls://")
	for _, name := range names {
		changes := map[string]string{
			"0.0.0.0:4222": clients[name], "127.0.0.1:8222": c.health[name], "0.0.0.0:6222": c.routes[name],
			"server_name: nats-1": "server_name: " + name, "/var/lib/sallyport/nats": c.store(name),
		}
		for _, peer := range names {
			changes[peer+".example.com:6222"] = strings.Replace(c.routes[peer], "127.0.0.1", "localhost", 1)
		}
		b, err := p.NATSProcess(t.Context(), name, p.configure("nats-cluster.conf", name+".conf", changes), clients[name])
		must(t, err)
		c.nodes[name] = b
		p.brokers = append(p.brokers, b)
	}
	conn, err := nats.Connect("tls://"+p.natsAt, nats.ClientCert(filepath.Join(p.identity("audit"), "svid.pem"), filepath.Join(p.identity("audit"), "svid-key.pem")),
		nats.RootCAs(filepath.Join(p.identity("audit"), "bundle.pem")), nats.Secure(&tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS13}),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	must(t, err)
	p.OnClose(conn.Close)
	c.js, err = jetstream.New(conn)
	must(t, err)
	c.healthy()
	return c
}

func (c *cluster) store(name string) string { return filepath.Join(c.p.state, "cluster", name) }

// leader is the broker that leads the stream of events.
func (c *cluster) leader() string {
	c.p.t.Helper()
	var leader string
	must(c.p.t, lab.Await(c.p.t.Context(), patience, "a leader", func() error {
		ctx, cancel := context.WithTimeout(c.p.t.Context(), 2*time.Second)
		defer cancel()
		s, err := c.js.Stream(ctx, "SALLYPORT")
		if err != nil {
			return err
		}
		if leader = s.CachedInfo().Cluster.Leader; leader == "" {
			return errors.New("there is none")
		}
		return nil
	}))
	return leader
}

// healthy waits until all brokers have all there is.
func (c *cluster) healthy() {
	c.p.t.Helper()
	for name, at := range c.health {
		must(c.p.t, lab.Await(c.p.t.Context(), patience, name+" to be healthy", func() error {
			r, err := http.Get("http://" + at + "/healthz")
			if err != nil {
				return err
			}
			defer r.Body.Close()
			said, err := io.ReadAll(r.Body)
			if err == nil && r.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s", said)
			}
			return err
		}, c.nodes[name].Process))
	}
}

// strangers are refused where brokers talk to each other: others with an identity of the trust domain, and who has none.
func (c *cluster) strangers() {
	t := c.p.t
	t.Helper()
	for _, who := range []string{"alice", "issuer", "nobody"} {
		conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} //nolint:gosec // who is refused here is we
		if who != "nobody" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(c.p.identity(who), "svid.pem"), filepath.Join(c.p.identity(who), "svid-key.pem"))
			must(t, err)
			conf.Certificates = []tls.Certificate{pair}
		}
		if said, err := asRoute(c.routes["nats-1"], conf); !strings.Contains(said, "Authorization Violation") && err == nil {
			t.Errorf("%s may be a broker: %s", who, said)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(c.p.identity("nats"), "svid.pem"), filepath.Join(c.p.identity("nats"), "svid-key.pem"))
	must(t, err)
	said, err := asRoute(c.routes["nats-1"], &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}}) //nolint:gosec // as above
	if err != nil || strings.Contains(said, "Authorization Violation") {
		t.Errorf("not even a broker may be one: %v: %s", err, said)
	}
}

// asRoute speaks to a broker as another broker does, and gives what it says.
func asRoute(at string, conf *tls.Config) (string, error) {
	plain, err := (&net.Dialer{Timeout: time.Minute}).Dial("tcp", at)
	if err != nil {
		return "", err
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(time.Minute))
	conn := tls.Client(plain, conf)
	if err := conn.Handshake(); err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"name\":\"stranger\",\"cluster\":\"sallyport\"}\r\nPING\r\n")
	said, lines := "", bufio.NewReader(conn)
	for err == nil && !strings.Contains(said, "PONG") { // to which it comes when it takes us for a broker
		var line string
		line, err = lines.ReadString('\n')
		said += line
	}
	return said, err
}
