package servicetest

import (
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Broker is a NATS server with JetStream inside the test process. It listens on nothing.
type Broker struct {
	t   testing.TB
	dir string

	mu  sync.Mutex
	srv *server.Server
}

// NATS starts a Broker and gives a connection to it.
func NATS(t testing.TB) *nats.Conn {
	t.Helper()
	return NewBroker(t).Connect()
}

// NewBroker starts a Broker, for tests that stop and start it.
func NewBroker(t testing.TB) *Broker {
	t.Helper()
	b := &Broker{t: t, dir: t.TempDir()}
	t.Cleanup(b.Stop)
	b.Start()
	return b
}

// Start begins with what the last Stop left in the store.
func (b *Broker) Start() {
	b.t.Helper()
	srv, err := server.NewServer(&server.Options{
		ServerName: "test", DontListen: true, JetStream: true, StoreDir: b.dir, NoSigs: true, NoLog: true,
		JetStreamMaxStore: 1 << 30, JetStreamMaxMemory: 64 << 20,
	})
	if err != nil {
		b.t.Fatalf("making a NATS server: %v", err)
	}
	srv.Start()
	if !srv.ReadyForConnections(time.Minute) {
		b.t.Fatal("NATS server: not ready after a minute")
	}
	b.mu.Lock()
	b.srv = srv
	b.mu.Unlock()
}

// Stop shuts the server down. Connections stay and reconnect after the next Start.
func (b *Broker) Stop() {
	b.mu.Lock()
	srv := b.srv
	b.srv = nil
	b.mu.Unlock()
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// Lose has a stopped server begin with nothing.
func (b *Broker) Lose() {
	b.t.Helper()
	if err := os.RemoveAll(b.dir); err != nil {
		b.t.Fatal(err)
	}
}

// Connect gives a connection that reconnects for ever.
func (b *Broker) Connect() *nats.Conn {
	b.t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(b), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		b.t.Fatalf("connecting to NATS: %v", err)
	}
	b.t.Cleanup(nc.Close)
	return nc
}

// InProcessConn makes Broker a nats.InProcessConnProvider of whatever server runs now.
func (b *Broker) InProcessConn() (net.Conn, error) {
	b.mu.Lock()
	srv := b.srv
	b.mu.Unlock()
	if srv == nil {
		return nil, errors.New("NATS server is stopped")
	}
	return srv.InProcessConn()
}
