package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// probeBound is how long finding out what is wrong with a connection may take.
const probeBound = 3 * time.Second

// A busy server is asked again so often, after what it asks for but at most maxWait.
const (
	maxTries = 20
	maxWait  = 5 * time.Second
)

// A server that is away is tried again for so long: it may just be restarted. Every call may be made twice: those that change
// something carry an id by which the service knows them again.
const (
	patience = 5 * time.Second
	tryAgain = 200 * time.Millisecond
)

// conn is a connection whose errors are explained.
type conn struct {
	client  *Client
	service string
	address string
	cc      *grpc.ClientConn
	err     error
}

// Invoke is a unary call. A server that bounds the calls a second is waited
// for: such a call has not been looked at yet.
func (c *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if c.err != nil {
		return c.err
	}
	ctx = trace.With(ctx, c.client.trace)
	begun := time.Now()
	for try := 1; ; try++ {
		err := c.explain(ctx, c.cc.Invoke(ctx, method, args, reply, opts...))
		var e *fault.Error
		if errors.As(err, &e) && away(e) && time.Since(begun) < patience && ctx.Err() == nil {
			wait(ctx, max(e.RetryAfter, tryAgain))
			rpc.TryNow(ctx, c.cc)
			try--
			continue
		}
		if try == maxTries || !errors.As(err, &e) || e.Reason != rpc.ReasonTooManyRequests {
			return err
		}
		wait(ctx, min(max(e.RetryAfter, 50*time.Millisecond), maxWait))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// away says that no server is there, or one that is stopping.
func away(e *fault.Error) bool {
	return e.Reason == ReasonUnreachable || e.Reason == rpc.ReasonShuttingDown
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// NewStream opens a stream.
func (c *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if c.err != nil {
		return nil, c.err
	}
	ctx = trace.With(ctx, c.client.trace)
	s, err := c.cc.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return &stream{ClientStream: s, conn: c, ctx: ctx}, nil
}

type stream struct {
	grpc.ClientStream
	conn *conn
	ctx  context.Context //nolint:containedctx // the stream's own, which grpc does not hand back
}

// RecvMsg explains as Invoke does; io.EOF stays.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if errors.Is(err, io.EOF) {
		return err
	}
	return s.conn.explain(s.ctx, err)
}

// explain turns a status into a fault and, where no server of ours has
// answered, finds out why.
func (c *conn) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := fault.Of(err)
	if status.Code(err) != codes.Unavailable || e.Reason != fault.ReasonUnavailable {
		return e
	}
	if why := c.diagnose(context.WithoutCancel(ctx)); why != nil {
		return why
	}
	return &fault.Error{Kind: fault.Transient, Reason: ReasonUnreachable, Cause: err,
		Message: fmt.Sprintf("the connection to the %s at %s broke", c.service, c.address)}
}

// diagnose connects once more by hand and judges what answers.
func (c *conn) diagnose(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	if err := c.client.checkOwn(); err != nil {
		return err
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return &fault.Error{Kind: fault.Transient, Reason: ReasonUnreachable, Cause: dialCause(err),
			Message: fmt.Sprintf("the %s cannot be reached at %s (is \"sallyport serve\" running there?)", c.service, c.address)}
	}
	tc := tls.Client(raw, &tls.Config{
		ServerName: c.service + rpc.ServerNameSuffix, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // nothing is sent: the certificate is what is looked at
	})
	defer func() { _ = tc.Close() }()
	if err := tc.HandshakeContext(ctx); err != nil {
		return &fault.Error{Kind: fault.Transient, Reason: ReasonWrongServer, Cause: err,
			Message: fmt.Sprintf("what listens at %s does not speak Sallyport's protocol (TLS 1.3): check the address", c.address)}
	}
	return c.judge(tc.ConnectionState().PeerCertificates)
}

// dialCause leaves out what the message says already.
func dialCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func (c *conn) judge(chain []*x509.Certificate) error {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Denied, ReasonWrongServer, format, args...)
	}
	own, err := c.client.source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("reading own identity: %w", err)
	}
	if len(chain) == 0 {
		return wrong("the server at %s shows no certificate: check the address", c.address)
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return wrong("the server at %s is none of Sallyport's, its certificate has no SPIFFE ID: check the address", c.address)
	}
	if !id.MemberOf(own.ID.TrustDomain()) {
		return wrong("the server at %s belongs to the trust domain %q and your identity in %s to %q: choose another context or address",
			c.address, id.TrustDomain().Name(), c.client.at.Identity, own.ID.TrustDomain().Name())
	}
	if late := outside(chain[0], c.client.now()); late != "" {
		return fault.New(fault.Transient, ReasonClockOrExpiry, "the certificate of the server at %s %s: check the clocks of both machines", c.address, late)
	}
	if _, _, err := x509svid.Verify(chain, c.client.source, x509svid.WithTime(c.client.now())); err != nil {
		return wrong("the server at %s says it is of the trust domain %q but another root signed for it: it was set up anew, or is a stranger; take the identity in %s from the right installation",
			c.address, id.TrustDomain().Name(), c.client.at.Identity)
	}
	want, err := identity.ServiceID(own.ID.TrustDomain(), c.service)
	if err != nil {
		return err
	}
	if id != want {
		return wrong("the server at %s is %q and not the %s: check the context's servers", c.address, id, c.service)
	}
	return nil
}
