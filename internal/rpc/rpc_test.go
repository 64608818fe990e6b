package rpc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// echoService is a service of two methods made by hand, so that this module
// needs no generated code.
const (
	echoService = "sallyport.test.v1.EchoService"
	echoMethod  = "/" + echoService + "/Echo"
	watchMethod = "/" + echoService + "/Watch"
)

type echo struct {
	unary  func(ctx context.Context, text string) (string, error)
	stream func(text string, ss grpc.ServerStream) error
	read   atomic.Int32 // requests made of their bytes
}

func (e *echo) register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: echoService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			req := new(wrapperspb.StringValue)
			e.read.Add(1)
			if err := dec(req); err != nil {
				return nil, err
			}
			out, err := e.unary(ctx, req.Value)
			return wrapperspb.String(out), err
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
			req := new(wrapperspb.StringValue)
			e.read.Add(1)
			if err := ss.RecvMsg(req); err != nil {
				return err
			}
			return e.stream(req.Value, ss)
		}}},
	}, e)
}

func say(ctx context.Context, cc grpc.ClientConnInterface, text string) (string, error) {
	out := new(wrapperspb.StringValue)
	err := cc.Invoke(ctx, echoMethod, wrapperspb.String(text), out)
	return out.Value, err
}

func watch(ctx context.Context, cc grpc.ClientConnInterface, text string) (grpc.ClientStream, error) {
	cs, err := cc.NewStream(ctx, &grpc.StreamDesc{StreamName: "Watch", ServerStreams: true}, watchMethod)
	if err != nil {
		return nil, err
	}
	if err := cs.SendMsg(wrapperspb.String(text)); err != nil {
		return nil, err
	}
	return cs, cs.CloseSend()
}

func recv(cs grpc.ClientStream) (string, error) {
	out := new(wrapperspb.StringValue)
	err := cs.RecvMsg(out)
	return out.Value, err
}

// world is a trust domain with one running server.
type world struct {
	t    *testing.T
	ca   *identity.Authority
	addr string
	echo *echo
	srv  *Server
	stop func() error
	log  *buffer

	mu      sync.Mutex
	denials []Denial
	locked  map[string]bool
	now     func() time.Time
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var testDomain = spiffeid.RequireTrustDomainFromString("example.org")

func newWorld(t *testing.T, change ...func(*ServerConfig)) *world {
	t.Helper()
	ca, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: ca, log: &buffer{}, locked: map[string]bool{}, now: time.Now, echo: &echo{
		unary: func(_ context.Context, text string) (string, error) { return text, nil },
		stream: func(text string, ss grpc.ServerStream) error {
			if err := ss.SendMsg(wrapperspb.String(text)); err != nil {
				return err
			}
			<-ss.Context().Done()
			return ss.Context().Err()
		},
	}}
	cfg := ServerConfig{
		Sources: map[string]identity.Source{"issuer": w.source("/service/issuer"), "deployer": w.source("/service/deployer")},
		Default: "deployer",
		Methods: map[string][]identity.Role{
			echoMethod:  {identity.RoleAgent, identity.RoleOperator, identity.RoleDeployer},
			watchMethod: {identity.RoleAgent, identity.RoleOperator},
		},
		OnDenied: func(_ context.Context, d Denial) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.denials = append(w.denials, d)
		},
		Deny: func(c identity.Caller) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.locked[c.String()] {
				return fault.New(fault.Denied, ReasonLocked, "agent %s is locked", c.Name)
			}
			return nil
		},
		Log: slog.New(trace.LogHandler(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		Now: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now() },
	}
	for _, c := range change {
		c(&cfg)
	}
	if w.srv, err = NewServer(cfg); err != nil {
		t.Fatal(err)
	}
	w.echo.register(w.srv.Registrar())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.srv.Serve(ctx, lis) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) source(path string) identity.Source {
	w.t.Helper()
	return mintedSource(w.t, w.ca, path)
}

func mintedSource(t *testing.T, ca *identity.Authority, path string) identity.Source {
	t.Helper()
	src, err := identity.NewMinted(ca, spiffeid.RequireFromPath(ca.TrustDomain(), path), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// svid is a source whose SVID a test chooses.
type svid struct {
	identity.Source
	own atomic.Pointer[x509svid.SVID]
}

func (s *svid) get() *x509svid.SVID                  { return s.own.Load() }
func (s *svid) set(v *x509svid.SVID)                 { s.own.Store(v) }
func (s *svid) GetX509SVID() (*x509svid.SVID, error) { return s.get(), nil }

func (w *world) with(ca *identity.Authority, path string, ttl time.Duration) identity.Source {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	id := spiffeid.RequireFromPath(ca.TrustDomain(), path)
	chain, err := ca.Mint(id, key.Public(), ttl)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &svid{Source: w.source("/operator/bundle")}
	s.set(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key})
	return s
}

func (w *world) dial(src identity.Source, change ...func(*ClientConfig)) *grpc.ClientConn {
	w.t.Helper()
	cfg := ClientConfig{Address: w.addr, Service: "deployer", Source: src}
	for _, c := range change {
		c(&cfg)
	}
	cc, err := Dial(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cc.Close() })
	return cc
}

// showing dials as a client that trusts the server whatever SVID it shows itself.
func (w *world) showing(src identity.Source) *grpc.ClientConn {
	w.t.Helper()
	cfg := clientTLS(w.source("/operator/ann"), "deployer", true, time.Now)
	cfg.GetClientCertificate = clientTLS(src, "deployer", false, time.Now).GetClientCertificate
	cc, err := dial(w.addr, "deployer", credentials.NewTLS(cfg), nil, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cc.Close() })
	return cc
}

func (w *world) as(path string) *grpc.ClientConn { return w.dial(w.source(path)) }

func (w *world) anonymous() *grpc.ClientConn {
	return w.dial(w.source("/operator/nobody"), func(c *ClientConfig) { c.Anonymous = true })
}

func (w *world) denied() []Denial {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Denial(nil), w.denials...)
}

func (w *world) lock(caller string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.locked[caller] = true
}

func (w *world) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = func() time.Time { return time.Now().Add(d) }
}

// awaitLog waits for a line with all the words. A caller may have its answer before it.
func (w *world) awaitLog(words ...string) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		for line := range strings.Lines(w.log.String()) {
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				return
			}
		}
		if time.Now().After(end) {
			w.t.Fatalf("no line has %q:\n%s", words, w.log.String())
		}
	}
}

// want checks kind and reason of an error.
func want(t *testing.T, err error, kind fault.Kind, reason string) fault.Error {
	t.Helper()
	f := fault.Of(err)
	if f == nil || f.Kind != kind || f.Reason != reason {
		t.Fatalf("got %v, want %s %s", err, kind, reason)
	}
	return *f
}

func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q does not contain %q", text, p)
		}
	}
}
