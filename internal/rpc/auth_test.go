package rpc

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestRoles(t *testing.T) {
	w := newWorld(t)
	foreign, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("other.example"), nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		cc     *grpc.ClientConn
		kind   fault.Kind
		reason string // "" when it may
	}{
		"agent":            {cc: w.as("/agent/web-1")},
		"operator":         {cc: w.as("/operator/ann")},
		"service":          {cc: w.as("/service/deployer")},
		"other service":    {w.as("/service/audit"), fault.Denied, ReasonRoleNotAllowed},
		"anonymous":        {w.anonymous(), fault.Unauthenticated, ReasonNoCertificate},
		"unknown form":     {w.dial(w.with(w.ca, "/workload/web", time.Hour)), fault.Unauthenticated, ReasonUnknownIdentity},
		"unknown service":  {w.dial(w.with(w.ca, "/service/billing", time.Hour)), fault.Unauthenticated, ReasonUnknownIdentity},
		"same name, other": {w.dial(w.with(foreign, "/agent/web-1", time.Hour)), fault.Unauthenticated, ReasonCertificateInvalid},
		"other domain":     {w.showing(w.with(other, "/agent/web-1", time.Hour)), fault.Unauthenticated, ReasonCertificateInvalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before, read := len(w.denied()), w.echo.read.Load()
			out, err := say(t.Context(), tt.cc, "hello")
			if tt.reason == "" {
				if err != nil || out != "hello" {
					t.Fatalf("got %q, %v", out, err)
				}
				return
			}
			want(t, err, tt.kind, tt.reason)
			got := w.denied()[before:]
			if len(got) != 1 || got[0].Reason != tt.reason || got[0].Service != echoService || got[0].Method != "Echo" || got[0].Peer == "" {
				t.Fatalf("denials %+v", got)
			}
			before = len(w.denied())
			cs, err := watch(t.Context(), tt.cc, "x")
			if err == nil {
				_, err = recv(cs)
			}
			want(t, err, tt.kind, tt.reason)
			if got := w.denied()[before:]; len(got) != 1 || got[0].Method != "Watch" {
				t.Fatalf("denials of the stream %+v", got)
			}
			if n := w.echo.read.Load() - read; n != 0 { // a few bytes can stand for many
				t.Errorf("%d requests were read of who may not call", n)
			}
		})
	}
}

func TestHandlerKnowsCaller(t *testing.T) {
	w := newWorld(t)
	src := w.source("/agent/web-1")
	svid, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Caller{ID: svid.ID, Role: identity.RoleAgent, Name: "web-1", Key: pki.SPKIHash(svid.PrivateKey.Public()), SVID: svid.Certificates[0]}
	w.echo.unary = func(ctx context.Context, _ string) (string, error) {
		got := identity.FromContext(ctx)
		if !got.SVID.Equal(want.SVID) {
			t.Errorf("got another SVID: %v", got.SVID)
		}
		if got.SVID = want.SVID; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		return "", nil
	}
	if _, err := say(t.Context(), w.dial(src), ""); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredSVID(t *testing.T) {
	w := newWorld(t)
	cc := w.dial(w.with(w.ca, "/agent/web-1", time.Minute))
	if _, err := say(t.Context(), cc, ""); err != nil {
		t.Fatal(err)
	}
	w.later(2 * time.Minute)
	f := want(t, second(say(t.Context(), cc, "")), fault.Unauthenticated, ReasonCertificateExpired)
	has(t, f.Message, "expired on")

	fresh := w.dial(w.with(w.ca, "/agent/web-1", time.Minute))
	f = want(t, second(say(t.Context(), fresh, "")), fault.Unauthenticated, ReasonCertificateExpired)
	has(t, f.Message, "expired on", "clock")

	w.later(-time.Hour)
	early := w.dial(w.with(w.ca, "/agent/web-1", time.Minute))
	f = want(t, second(say(t.Context(), early, "")), fault.Unauthenticated, ReasonCertificateExpired)
	has(t, f.Message, "not valid before", "clock")
}

// A connection ends with the SVID it was opened with, and the client comes back
// with the one it has by then: no call is refused in between.
func TestConnectionEndsWithSVID(t *testing.T) {
	w := newWorld(t)
	w.echo.unary = func(ctx context.Context, _ string) (string, error) { return identity.FromContext(ctx).Key, nil }
	src := w.with(w.ca, "/service/deployer", 3*time.Second).(*svid) // 2 at least: NotAfter has whole seconds
	cc := w.dial(src)
	first, err := say(t.Context(), cc, "")
	if err != nil {
		t.Fatal(err)
	}
	src.set(w.with(w.ca, "/service/deployer", time.Hour).(*svid).get())
	for key := first; key == first; {
		got, err := say(t.Context(), cc, "")
		if err != nil {
			want(t, err, fault.Transient, fault.ReasonUnavailable) // broken off under way
			continue
		}
		key = got
	}
	if got := w.denied(); len(got) != 0 {
		t.Fatalf("denials %+v", got)
	}
}

func second[T any](_ T, err error) error { return err }

func TestLockedAgent(t *testing.T) {
	w := newWorld(t)
	cc, other := w.as("/agent/web-1"), w.as("/agent/web-2")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open := func(cc *grpc.ClientConn) grpc.ClientStream {
		cs, err := watch(ctx, cc, "hello")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := recv(cs); err != nil || got != "hello" {
			t.Fatalf("got %q, %v", got, err)
		}
		return cs
	}
	cs, kept := open(cc), open(other)
	w.lock("agent/web-1")
	want(t, second(say(ctx, cc, "")), fault.Denied, ReasonLocked)
	want(t, second(recv(cs)), fault.Denied, ReasonLocked)
	if got := w.denied(); len(got) != 2 || got[0].Method != "Echo" || got[1].Method != "Watch" {
		t.Fatalf("denials %+v", got)
	}
	if _, err := say(ctx, other, ""); err != nil {
		t.Fatalf("another agent: %v", err)
	}
	if kept.Context().Err() != nil {
		t.Fatal("another agent's stream ended")
	}
}

// A handler that is stuck in sending does not see its context end.
func TestLockedAgentStuckHandler(t *testing.T) {
	w := newWorld(t)
	w.echo.stream = func(_ string, ss grpc.ServerStream) error {
		for {
			if err := ss.SendMsg(&healthpb.HealthCheckRequest{Service: string(make([]byte, 32<<10))}); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cs, err := watch(ctx, w.as("/agent/web-1"), "")
	if err != nil {
		t.Fatal(err)
	}
	for len(w.srv.open()) == 0 {
		time.Sleep(time.Millisecond)
	}
	w.lock("agent/web-1")
	for len(w.srv.open()) > 0 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Fatal("the stream of a locked agent goes on")
	}
	for err == nil {
		err = cs.RecvMsg(new(healthpb.HealthCheckRequest))
	}
}

func TestMethodTable(t *testing.T) {
	ca, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		t.Fatal(err)
	}
	op := []identity.Role{identity.RoleOperator}
	build := func(t *testing.T, methods map[string][]identity.Role) (*Server, error) {
		return NewServer(ServerConfig{
			Sources: map[string]identity.Source{"issuer": mintedSource(t, ca, "/service/issuer")}, Default: "issuer", Methods: methods, Log: discard,
		})
	}
	serve := map[string]struct {
		methods map[string][]identity.Role
		wants   string
	}{
		"missing": {map[string][]identity.Role{echoMethod: op}, watchMethod + " has no roles"},
		"stale":   {map[string][]identity.Role{echoMethod: op, watchMethod: op, "/a.B/C": op}, "/a.B/C is not registered"},
	}
	for name, tt := range serve {
		t.Run(name, func(t *testing.T) {
			s, err := build(t, tt.methods)
			if err != nil {
				t.Fatal(err)
			}
			new(echo).register(s.Registrar())
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if err = s.Serve(t.Context(), lis); err == nil {
				t.Fatal("it serves")
			}
			has(t, err.Error(), tt.wants)
		})
	}
	for name, methods := range map[string]map[string][]identity.Role{
		"no roles": {echoMethod: nil},
		"builtin":  {"/grpc.health.v1.Health/Check": op},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := build(t, methods); err == nil {
				t.Fatal("no error")
			}
		})
	}
	for name, cfg := range map[string]ServerConfig{
		"no log":     {Sources: map[string]identity.Source{"x": mintedSource(t, ca, "/service/issuer")}, Default: "x"},
		"no default": {Log: discard, Sources: map[string]identity.Source{"x": mintedSource(t, ca, "/service/issuer")}},
		"nil source": {Log: discard, Default: "x", Sources: map[string]identity.Source{"x": mintedSource(t, ca, "/service/issuer"), "y": nil}},
		"negative":   {Log: discard, Default: "x", Sources: map[string]identity.Source{"x": mintedSource(t, ca, "/service/issuer")}, Limits: Limits{CallerRate: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewServer(cfg); err == nil {
				t.Fatal("no error")
			}
		})
	}
}

func TestHealthAndReflection(t *testing.T) {
	w := newWorld(t)
	anon, op, agent := w.anonymous(), w.as("/operator/ann"), w.as("/agent/web-1")
	for _, service := range []string{"", echoService} {
		got, err := healthpb.NewHealthClient(anon).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("%q: got %v, %v", service, got, err)
		}
	}
	want(t, second(healthpb.NewHealthClient(anon).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "no.such"})), fault.NotFound, "NOT_FOUND")
	want(t, second(healthpb.NewHealthClient(anon).List(t.Context(), &healthpb.HealthListRequest{})), fault.Unauthenticated, ReasonNoCertificate)
	if _, err := healthpb.NewHealthClient(op).List(t.Context(), &healthpb.HealthListRequest{}); err != nil {
		t.Fatal(err)
	}
	list := func(cc *grpc.ClientConn) (*reflectionpb.ServerReflectionResponse, error) {
		cs, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(t.Context())
		if err != nil {
			return nil, err
		}
		// A refused stream may be gone before the request is out: the reason comes with Recv.
		_ = cs.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
		return cs.Recv()
	}
	want(t, second(list(anon)), fault.Unauthenticated, ReasonNoCertificate)
	want(t, second(list(agent)), fault.Denied, ReasonRoleNotAllowed)
	got, err := list(op)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range got.GetListServicesResponse().GetService() {
		found = found || s.Name == echoService
	}
	if !found {
		t.Fatalf("services %v", got)
	}
}

// Health says what Ready says, for each API and for all.
func TestHealthTellsTheTruth(t *testing.T) {
	var away atomic.Value // of whom
	away.Store("nobody")
	w := newWorld(t, func(c *ServerConfig) {
		c.Ready = func(api string) error {
			if away.Load() == api {
				return errors.New("its database is away")
			}
			return nil
		}
	})
	anon := healthpb.NewHealthClient(w.anonymous())
	until := func(api string, want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for begun := time.Now(); ; {
			got, err := anon.Check(t.Context(), &healthpb.HealthCheckRequest{Service: api})
			if err == nil && got.Status == want {
				return
			}
			if time.Since(begun) > time.Minute || fault.KindOf(err) != fault.Exhausted && err != nil {
				t.Fatalf("%q: %v, %v, want %v", api, got, err, want)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	until(echoService, healthpb.HealthCheckResponse_SERVING)
	away.Store(echoService)
	until(echoService, healthpb.HealthCheckResponse_NOT_SERVING)
	until("", healthpb.HealthCheckResponse_SERVING)
	away.Store("")
	until(echoService, healthpb.HealthCheckResponse_SERVING)
	until("", healthpb.HealthCheckResponse_NOT_SERVING)
}

func TestServerIdentity(t *testing.T) {
	w := newWorld(t)
	issuer := w.dial(w.source("/service/deployer"), func(c *ClientConfig) { c.Service = "issuer" })
	if _, err := say(t.Context(), issuer, ""); err != nil {
		t.Fatalf("the issuer by its server name: %v", err)
	}
	// No source for audit: the default's SVID comes, which is not the one wanted.
	audit := w.dial(w.source("/operator/ann"), func(c *ClientConfig) { c.Service = "audit" })
	has(t, want(t, second(say(t.Context(), audit, "")), fault.Transient, fault.ReasonUnavailable).Message, "/service/deployer", "/service/audit")

	stranger, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		t.Fatal(err)
	}
	lost := w.dial(mintedSource(t, stranger, "/operator/ann"))
	has(t, want(t, second(say(t.Context(), lost, "")), fault.Transient, fault.ReasonUnavailable).Message, "server certificate", "unknown authority")

	ahead := w.dial(w.source("/operator/ann"), func(c *ClientConfig) { c.Now = func() time.Time { return time.Now().Add(48 * time.Hour) } })
	has(t, want(t, second(say(t.Context(), ahead, "")), fault.Transient, fault.ReasonUnavailable).Message, "expired on", "check the clocks")
	behind := w.dial(w.source("/operator/ann"), func(c *ClientConfig) { c.Now = func() time.Time { return time.Now().Add(-48 * time.Hour) } })
	has(t, want(t, second(say(t.Context(), behind, "")), fault.Transient, fault.ReasonUnavailable).Message, "not valid before", "check the clocks")
}

func TestFirstContact(t *testing.T) {
	w := newWorld(t, func(c *ServerConfig) {
		c.Methods[echoMethod] = []identity.Role{identity.RoleAnonymous}
	})
	w.echo.unary = func(ctx context.Context, _ string) (string, error) { return identity.FromContext(ctx).String(), nil }
	token := func(td spiffeid.TrustDomain, hash [sha256.Size]byte) identity.JoinToken {
		tok, err := identity.NewJoinToken(td, "tok1", hash)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	contact := func(addr string, tok identity.JoinToken, now func() time.Time) (*FirstContact, string, error) {
		fc, err := dialFirstContact(addr, tok, nil, now)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { fc.Close() })
		out, err := say(t.Context(), fc, "")
		return fc, out, err
	}
	fc, out, err := contact(w.addr, token(testDomain, w.ca.RootHash()), time.Now)
	if err != nil || out != "anonymous" {
		t.Fatalf("got %q, %v", out, err)
	}
	if !fc.Bundle().Equal(w.ca.Bundle()) {
		t.Fatal("the bundle seen is not the trust domain's")
	}
	// With the bundle alone the server can be called again, as after Enroll.
	if got := fc.Bundle().X509Authorities(); len(got) != 1 || sha256.Sum256(got[0].Raw) != w.ca.RootHash() {
		t.Fatal("wrong root")
	}

	wrong := w.ca.RootHash()
	wrong[0] ^= 1
	fc, _, err = contact(w.addr, token(testDomain, wrong), time.Now)
	has(t, want(t, err, fault.Transient, fault.ReasonUnavailable).Message, "root's hash differs")
	if fc.Bundle() != nil {
		t.Fatal("a bundle of a server that was refused")
	}
	_, _, err = contact(w.addr, token(spiffeid.RequireTrustDomainFromString("other.example"), w.ca.RootHash()), time.Now)
	want(t, err, fault.Transient, fault.ReasonUnavailable)
	_, _, err = contact(w.addr, token(testDomain, w.ca.RootHash()), func() time.Time { return time.Now().Add(-24 * time.Hour) })
	has(t, want(t, err, fault.Transient, fault.ReasonUnavailable).Message, "clock")

	impostor := newWorldOf(t, w.ca, "issuer")
	_, _, err = contact(impostor, token(testDomain, w.ca.RootHash()), time.Now)
	has(t, want(t, err, fault.Transient, fault.ReasonUnavailable).Message, "/service/issuer")
	if _, err := DialFirstContact("x:1", identity.JoinToken{}, nil); err == nil {
		t.Fatal("first contact without a token")
	}
}

// newWorldOf starts a server that is only the given service, in ca's domain.
func newWorldOf(t *testing.T, ca *identity.Authority, service string) string {
	t.Helper()
	s, err := NewServer(ServerConfig{
		Sources: map[string]identity.Source{service: mintedSource(t, ca, "/service/"+service)}, Default: service, Log: discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

// The root must come with the chain, and nothing but the path to it.
func TestServerChainEndsInRoot(t *testing.T) {
	ca, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		t.Fatal(err)
	}
	src := mintedSource(t, ca, "/service/issuer")
	own := &ownCert{Source: src}
	cert, err := own.get()
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.Certificate) != 2 || sha256.Sum256(cert.Certificate[1]) != ca.RootHash() {
		t.Fatalf("%d certificates", len(cert.Certificate))
	}
	if again, _ := own.get(); again != cert {
		t.Fatal("made anew for the same SVID")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil || len(leaf.URIs) != 1 {
		t.Fatalf("leaf %v, %v", leaf, err)
	}
}
