package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sallyport-pki/sallyport/internal/heldport"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// mint makes an SVID for /service/<name>, whatever the name.
func mint(t *testing.T, d *servicetest.Domain, name string) (tls.Certificate, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromSegments(d.Authority.TrustDomain(), "service", name)
	chain, err := d.Authority.Mint(id, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pki.EncodeChainPEM(chain)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair, certPEM, keyPEM
}

// broker runs a NATS server that shows the SVID of /service/<name>.
func broker(t *testing.T, d *servicetest.Domain, name string) string {
	t.Helper()
	return "tls://" + brokerAt(t, d, name, heldport.Address(t)).Addr().String()
}

// brokerAt runs one with an empty store.
func brokerAt(t *testing.T, d *servicetest.Domain, name, address string) *server.Server {
	t.Helper()
	at := netip.MustParseAddrPort(address)
	pair, _, _ := mint(t, d, name)
	roots := x509.NewCertPool()
	for _, c := range d.Authority.Bundle().X509Authorities() {
		roots.AddCert(c)
	}
	srv, err := server.NewServer(&server.Options{
		Host: at.Addr().String(), Port: int(at.Port()), JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		TLS: true, TLSVerify: true, TLSTimeout: 10,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("NATS is not ready")
	}
	return srv
}

func identityDir(t *testing.T, d *servicetest.Domain, name string) string {
	t.Helper()
	dir := t.TempDir()
	_, cert, key := mint(t, d, name)
	bundle := pki.EncodeChainPEM(d.Authority.Bundle().X509Authorities())
	for file, data := range map[string][]byte{identity.FileSVID: cert, identity.FileKey: key, identity.FileBundle: bundle} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

type idle struct {
	parts   Parts
	closed  bool
	running chan struct{}
}

func (s *idle) Register(grpc.ServiceRegistrar)       {}
func (s *idle) OnDenied(context.Context, rpc.Denial) {}
func (s *idle) Traces() trace.Recorder               { return nil }
func (s *idle) Close() error                         { s.closed = true; return nil }
func (s *idle) Run(ctx context.Context) error {
	close(s.running)
	<-ctx.Done()
	return nil
}

func TestRunServesAndStops(t *testing.T) {
	d := servicetest.TrustDomain(t)
	cfg := Config{Listen: heldport.Address(t), Identity: Identity{Dir: identityDir(t, d, "issuer")}, NATS: NATS{URL: broker(t, d, "nats")}}
	s := &idle{running: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, Spec{Name: "issuer", Build: func(_ context.Context, p Parts) (Service, error) { s.parts = p; return s, nil }})
	}()
	select {
	case <-s.running:
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	}
	conn, err := rpc.Dial(rpc.ClientConfig{Address: cfg.Listen, Service: "issuer", Source: d.Operator("ann")})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("health: %v", err)
	}
	if err := s.parts.NATS.FlushTimeout(10 * time.Second); err != nil {
		t.Fatalf("NATS over TLS: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("stopping: %v", err)
	}
	if !s.closed || !s.parts.NATS.IsClosed() {
		t.Error("service and NATS connection must be closed")
	}
}

// A broker that comes back with nothing gets its streams from a daemon that has run all the time.
func TestStreamsAreMadeAgain(t *testing.T) {
	d := servicetest.TrustDomain(t)
	at := heldport.Address(t)
	srv := brokerAt(t, d, "nats", at)
	url := "tls://" + at
	s := &idle{running: make(chan struct{})}
	cfg := Config{Listen: heldport.Address(t), Identity: Identity{Dir: identityDir(t, d, "issuer")}, NATS: NATS{URL: url}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, Spec{Name: "issuer", Build: func(context.Context, Parts) (Service, error) { return s, nil }})
	}()
	conn, err := connect(NATS{URL: url}, d.Service("issuer"), "test", servicetest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	there := func(when string) {
		t.Helper()
		for _, name := range []string{event.StreamName, event.AuditStream} {
			for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
				_, err := js.Stream(ctx, name)
				if err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s there is no stream %s: %v", when, name, err)
				}
			}
		}
	}
	there("at first")
	srv.Shutdown()
	srv.WaitForShutdown()
	brokerAt(t, d, "nats", at)
	there("at a broker that has lost everything")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopping: %v", err)
	}
}

func TestBrokerMustBeNATS(t *testing.T) {
	d := servicetest.TrustDomain(t)
	conn, err := connect(NATS{URL: broker(t, d, "audit")}, d.Service("issuer"), "issuer", servicetest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.FlushTimeout(2 * time.Second); err == nil {
		t.Fatal("a broker with another service's SVID was accepted")
	}
}

func TestPortInUse(t *testing.T) {
	d := servicetest.TrustDomain(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &idle{running: make(chan struct{})}
	cfg := Config{Listen: l.Addr().String(), Identity: Identity{Dir: identityDir(t, d, "issuer")}, NATS: NATS{URL: "tls://127.0.0.1:1"}}
	err = Run(t.Context(), cfg, Spec{Name: "issuer", Build: func(context.Context, Parts) (Service, error) { return s, nil }})
	if err == nil || !strings.Contains(err.Error(), "another program listens there") {
		t.Fatalf("got %v", err)
	}
	if !s.closed {
		t.Error("the service must be closed")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Listen: "127.0.0.1:1", Identity: Identity{Dir: "d"}, NATS: NATS{URL: "tls://a:4222,tls://b:4222", Replicas: 3}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"listen":        func(c *Config) { c.Listen = "8443" },
		"identity":      func(c *Config) { c.Identity.WorkloadAPI = "unix:///s" },
		"identity: ":    func(c *Config) { c.Identity = Identity{} },
		"nats.url":      func(c *Config) { c.NATS.URL = "nats://u:secret@a:4222" },
		"nats.replicas": func(c *Config) { c.NATS.Replicas = 2 },
		"log":           func(c *Config) { c.Log.Level = "loud" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v", want, err)
		}
	}
}
