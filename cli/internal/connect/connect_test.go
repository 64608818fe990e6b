package connect

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is a root and an operator's identity.
type site struct {
	ca  *identity.Authority
	dir string
}

func newSite(t *testing.T, now func() time.Time) site {
	t.Helper()
	ca, err := identity.CreateAuthority(td, now)
	must(t, err)
	id, err := identity.OperatorID(td, "alice")
	must(t, err)
	s := site{ca: ca, dir: filepath.Join(t.TempDir(), "alice")}
	_, err = trust.WriteIdentity(s.dir, ca, id, time.Hour)
	must(t, err)
	return s
}

// inventory answers one method, with what it is told.
type inventory struct {
	inventoryv1.UnimplementedInventoryServiceServer
	get func() error
}

func (i *inventory) GetHost(context.Context, *inventoryv1.GetHostRequest) (*inventoryv1.GetHostResponse, error) {
	return &inventoryv1.GetHostResponse{}, i.get()
}

func (i *inventory) ListHosts(context.Context, *inventoryv1.ListHostsRequest) (*inventoryv1.ListHostsResponse, error) {
	return &inventoryv1.ListHostsResponse{}, nil
}

// serve runs a server that is the named service.
func (s site) serve(t *testing.T, name string, limits rpc.Limits, get func() error) string {
	t.Helper()
	id, err := identity.ServiceID(td, name)
	must(t, err)
	src, err := identity.NewMinted(s.ca, id, time.Hour)
	must(t, err)
	methods := map[string][]identity.Role{}
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Methods {
		methods["/"+inventoryv1.InventoryService_ServiceDesc.ServiceName+"/"+m.MethodName] = []identity.Role{identity.RoleOperator}
	}
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Streams {
		methods["/"+inventoryv1.InventoryService_ServiceDesc.ServiceName+"/"+m.StreamName] = []identity.Role{identity.RoleOperator}
	}
	server, err := rpc.NewServer(rpc.ServerConfig{
		Sources: map[string]identity.Source{name: src}, Default: name, Methods: methods, Limits: limits, Log: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	inventoryv1.RegisterInventoryServiceServer(server.Registrar(), &inventory{get: get})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

func (s site) call(t *testing.T, address string, now func() time.Time) error {
	t.Helper()
	c, err := Open(clientconfig.Context{Name: "x", Server: address, Identity: s.dir}, now)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = c.Inventory().GetHost(ctx, &inventoryv1.GetHostRequest{Name: "web-1"})
	return err
}

func wantFault(t *testing.T, err error, kind fault.Kind, reason, text string) {
	t.Helper()
	e := fault.Of(err)
	if e == nil || e.Kind != kind || e.Reason != reason || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %s %s with %q", err, kind, reason, text)
	}
}

func TestGoodCall(t *testing.T) {
	s := newSite(t, time.Now)
	if err := s.call(t, s.serve(t, "inventory", rpc.Limits{}, func() error { return nil }), time.Now); err != nil {
		t.Error(err)
	}
}

func TestFaultsComeThrough(t *testing.T) {
	s := newSite(t, time.Now)
	address := s.serve(t, "inventory", rpc.Limits{}, func() error { return fault.New(fault.Precondition, "HOST_BUSY", "busy") })
	wantFault(t, s.call(t, address, time.Now), fault.Precondition, "HOST_BUSY", "busy")
	// A service that says UNAVAILABLE itself is there: nothing is diagnosed.
	address = s.serve(t, "inventory", rpc.Limits{}, func() error { return fault.New(fault.Transient, "STORAGE_UNAVAILABLE", "disk full") })
	wantFault(t, s.call(t, address, time.Now), fault.Transient, "STORAGE_UNAVAILABLE", "disk full")
}

func TestBusyServerIsWaitedFor(t *testing.T) {
	s := newSite(t, time.Now)
	calls := 0
	address := s.serve(t, "inventory", rpc.Limits{CallerRate: 20}, func() error { calls++; return nil }) // bursts of 40
	c, err := Open(clientconfig.Context{Name: "x", Server: address, Identity: s.dir}, time.Now)
	must(t, err)
	defer func() { must(t, c.Close()) }()
	for range 50 {
		_, err := c.Inventory().GetHost(t.Context(), &inventoryv1.GetHostRequest{})
		must(t, err)
	}
	if calls != 50 {
		t.Errorf("%d calls came in", calls)
	}
}

func TestWrongServers(t *testing.T) {
	s := newSite(t, time.Now)
	get := func() error { return nil }

	wantFault(t, s.call(t, s.serve(t, "issuer", rpc.Limits{}, get), time.Now), fault.Denied, ReasonWrongServer, `is "spiffe://example.org/service/issuer" and not the inventory`)
	twin := newSite(t, time.Now)
	wantFault(t, s.call(t, twin.serve(t, "inventory", rpc.Limits{}, get), time.Now), fault.Denied, ReasonWrongServer, "but another root signed for it")

	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	wantFault(t, s.call(t, web.Listener.Addr().String(), time.Now), fault.Transient, ReasonWrongServer, "does not speak Sallyport's protocol")

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.EnableHTTP2 = true
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	secure.StartTLS()
	defer secure.Close()
	wantFault(t, s.call(t, secure.Listener.Addr().String(), time.Now), fault.Denied, ReasonWrongServer, "its certificate has no SPIFFE ID")

	wantFault(t, s.call(t, "127.0.0.1:1", time.Now), fault.Transient, ReasonUnreachable, "connection refused")
	wantFault(t, s.call(t, "no-such-host.invalid:1", time.Now), fault.Transient, ReasonUnreachable, "no-such-host.invalid")
}

func TestTimes(t *testing.T) {
	s := newSite(t, time.Now)
	address := s.serve(t, "inventory", rpc.Limits{}, func() error { return nil })
	later := func() time.Time { return time.Now().Add(2 * time.Hour) }
	wantFault(t, s.call(t, address, later), fault.Unauthenticated, ReasonClockOrExpiry, "has expired at")
	earlier := func() time.Time { return time.Now().Add(-2 * time.Hour) }
	wantFault(t, s.call(t, address, earlier), fault.Unauthenticated, ReasonClockOrExpiry, "check the clock")

}

func TestServerWhoseClockIsBehind(t *testing.T) {
	shifted := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	old := newSite(t, shifted(-3*time.Hour))
	cert, key := old.ca.Marshal()
	right, err := identity.LoadAuthority(cert, key, time.Now)
	must(t, err)
	behind, err := identity.LoadAuthority(cert, key, shifted(-2*time.Hour))
	must(t, err)
	id, err := identity.OperatorID(td, "alice")
	must(t, err)
	_, err = trust.WriteIdentity(old.dir, right, id, time.Hour)
	must(t, err)
	address := site{ca: behind}.serve(t, "inventory", rpc.Limits{}, func() error { return nil })
	wantFault(t, old.call(t, address, time.Now), fault.Transient, ReasonClockOrExpiry, "check the clocks of both machines")
}

func TestOwnIdentity(t *testing.T) {
	s := newSite(t, time.Now)
	_, err := Open(clientconfig.Context{Server: "h:1", Identity: filepath.Join(s.dir, "none")}, time.Now)
	wantFault(t, err, fault.Precondition, ReasonOwnIdentity, "no operator's identity")
}
