package servicetest

import (
	"context"
	"net"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"google.golang.org/grpc"
)

// Server is a real server of one service on loopback: TLS, interceptors and role table included.
type Server struct {
	Address string
	domain  *Domain
	service string
	t       testing.TB
}

// Serve starts a server for a service, such as "issuer". c gives the Methods and whatever else matters to the test (OnDenied,
// Deny, Limits); the identity and, if absent, the log are filled in. register is usually (*Service).Register.
// The server ends with the test.
func (d *Domain) Serve(service string, c rpc.ServerConfig, register func(grpc.ServiceRegistrar)) *Server {
	d.t.Helper()
	c.Sources = map[string]identity.Source{service: d.Service(service)}
	c.Default = service
	if c.Log == nil {
		c.Log = Log(d.t)
	}
	srv, err := rpc.NewServer(c)
	if err != nil {
		d.t.Fatalf("making a server for %s: %v", service, err)
	}
	register(srv.Registrar())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatalf("listening: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, lis) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			d.t.Errorf("serving %s: %v", service, err)
		}
	})
	return &Server{Address: lis.Addr().String(), domain: d, service: service, t: d.t}
}

// As connects with an identity: d.Operator("ann"), d.Agent("web-1"), d.Service("deployer").
func (s *Server) As(source identity.Source) *grpc.ClientConn {
	s.t.Helper()
	return s.dial(rpc.ClientConfig{Source: source})
}

// Anonymous connects without an SVID.
func (s *Server) Anonymous() *grpc.ClientConn {
	s.t.Helper()
	return s.dial(rpc.ClientConfig{Source: s.domain.Service(s.service), Anonymous: true})
}

func (s *Server) dial(c rpc.ClientConfig) *grpc.ClientConn {
	s.t.Helper()
	c.Address, c.Service = s.Address, s.service
	conn, err := rpc.Dial(c)
	if err != nil {
		s.t.Fatalf("connecting to %s: %v", s.service, err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}
