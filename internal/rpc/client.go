package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// ClientConfig says whom to call.
type ClientConfig struct {
	// Address is host:port. Without a Dialer its host is resolved by DNS, and all
	// its addresses are tried.
	Address string
	// Service the server must be: its SVID is spiffe://<our trust domain>/service/<Service>.
	Service string
	// Source gives our SVID and the bundle that the server is verified against.
	Source identity.Source
	// Anonymous leaves our SVID out: for an agent whose SVID has run out.
	Anonymous bool
	// Dialer opens connections; nil dials TCP directly. Proxies of the environment
	// are never used.
	Dialer Dialer
	// MaxMessageSize bounds what is received, in bytes; default 4 MiB.
	MaxMessageSize int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Dial makes a client connection. It connects at the first call; a server that
// is not the wanted one shows as UNAVAILABLE with the reason in the text.
func Dial(cfg ClientConfig) (*grpc.ClientConn, error) {
	if cfg.Source == nil {
		return nil, errors.New("rpc: dialling without an identity source")
	}
	if cfg.Service == "" {
		return nil, errors.New("rpc: dialling without the name of the service")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	creds := credentials.NewTLS(clientTLS(cfg.Source, cfg.Service, cfg.Anonymous, cfg.Now))
	return dial(cfg.Address, cfg.Service, creds, cfg.Dialer, cfg.MaxMessageSize)
}

// FirstContact is the connection of an agent that has nothing but its join
// token yet.
type FirstContact struct {
	*grpc.ClientConn
	seen *atomic.Pointer[x509bundle.Bundle]
}

// Bundle is the trust bundle of the server, proven by the token's root hash;
// nil until a call has gone through.
func (f *FirstContact) Bundle() *x509bundle.Bundle { return f.seen.Load() }

// DialFirstContact makes a connection to the deployer at address which is
// verified by the token alone: the chain must end in the root the token names
// and the SVID must be the deployer's. No certificate is shown.
func DialFirstContact(address string, token identity.JoinToken, dialer Dialer) (*FirstContact, error) {
	return dialFirstContact(address, token, dialer, time.Now)
}

func dialFirstContact(address string, token identity.JoinToken, dialer Dialer, now func() time.Time) (*FirstContact, error) {
	if token.TrustDomain.IsZero() {
		return nil, errors.New("rpc: first contact without a join token")
	}
	f := &FirstContact{seen: &atomic.Pointer[x509bundle.Bundle]{}}
	conn, err := dial(address, string(identity.RoleDeployer), credentials.NewTLS(firstContactTLS(token, f.seen, now)), dialer, 0)
	if err != nil {
		return nil, err
	}
	f.ClientConn = conn
	return f, nil
}

// tryBound is how long TryNow waits for the connection it has asked for.
const tryBound = 2 * time.Second

// TryNow ends gRPC's own pause after a connection that failed, for a caller that has pauses of its own, and gives the try a
// moment: until it has succeeded gRPC answers calls with why the last one failed. In any other state it does nothing: grpc-go
// (v1.85) reads its connections without their lock there, and they are only made in the others.
func TryNow(ctx context.Context, cc *grpc.ClientConn) {
	if cc.GetState() != connectivity.TransientFailure {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tryBound)
	defer cancel()
	cc.ResetConnectBackoff()
	cc.WaitForStateChange(ctx, connectivity.TransientFailure)
}

func dial(address, service string, creds credentials.TransportCredentials, dialer Dialer, maxMessage int) (*grpc.ClientConn, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("address %q: want host:port", address)
	}
	if maxMessage == 0 {
		maxMessage = defaultMessageSize
	}
	target := "dns:///" + address
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(service + ServerNameSuffix),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithChainUnaryInterceptor(unaryClient),
		grpc.WithChainStreamInterceptor(streamClient),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientKeepalive, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.5, MaxDelay: time.Minute},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithWriteBufferSize(writeBuffer), grpc.WithReadBufferSize(readBuffer),
		grpc.WithStaticStreamWindowSize(streamWindow), grpc.WithStaticConnWindowSize(connWindow),
	}
	if dialer != nil {
		target = "passthrough:///" + address // the dialer, or its proxy, resolves the name
		opts = append(opts, grpc.WithContextDialer(dialer))
	}
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	return conn, nil
}

func unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	ctx, span := trace.BeginKind(ctx, trace.Client, spanName(method))
	err := invoke(giveIDs(ctx), method, req, reply, cc, opts...)
	span.End(failure(err))
	return err
}

func streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(giveIDs(ctx), desc, cc, method, opts...)
}
