package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// The reasons this package gives.
const (
	ReasonNoCertificate      = "NO_CERTIFICATE"
	ReasonCertificateInvalid = "CERTIFICATE_INVALID"
	ReasonCertificateExpired = "CERTIFICATE_EXPIRED"
	ReasonUnknownIdentity    = "UNKNOWN_IDENTITY"
	ReasonRoleNotAllowed     = "ROLE_NOT_ALLOWED"
	ReasonLocked             = "LOCKED"
	ReasonTooManyRequests    = "TOO_MANY_REQUESTS"
	ReasonTooManyStreams     = "TOO_MANY_STREAMS"
	ReasonShuttingDown       = "SHUTTING_DOWN"
)

var errShuttingDown = &fault.Error{Kind: fault.Transient, Reason: ReasonShuttingDown, Message: "the server is stopping", RetryAfter: time.Second}

// call is one call on its way through the chain. The order is: metrics, recover, trace, ids and
// log, who calls (authn), how often (limits), whether it may (deny list, roles),
// deadline, handler, error map. Limits come before the roles so that a flood of
// refused calls is not a flood of denial records.
type call struct {
	s      *Server
	method string
	start  time.Time
	info   *peerInfo
	addr   string
	key    string // whose limits it counts against
	logged bool
	span   *trace.Active // unary calls only: a stream is no piece of work
}

func (s *Server) unary(ctx context.Context, method string, handler func(context.Context) (any, error)) (resp any, err error) {
	end := s.cfg.Meter.Begin(method, false)
	defer func() { end(status.Code(err)) }()
	ctx, c := s.begin(ctx, method)
	ctx = c.beginSpan(ctx)
	defer func() { err = c.end(ctx, recover(), err) }()
	if err := c.admit(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := unaryDeadline(ctx)
	defer cancel()
	return handler(ctx)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	end := s.cfg.Meter.Begin(info.FullMethod, true)
	defer func() { end(status.Code(err)) }()
	ctx, c := s.begin(ss.Context(), info.FullMethod)
	defer func() { err = c.end(ctx, recover(), err) }()
	if err := c.admit(ctx); err != nil {
		return err
	}
	st, err := s.openStream(ctx, c, ss)
	if err != nil {
		return err
	}
	defer s.closeStream(st)
	err = handler(srv, st)
	if cause := context.Cause(st.ctx); err != nil && cause != nil && ss.Context().Err() == nil {
		c.logged = true
		return cause // the handler only saw its context end; this is why
	}
	return err
}

// noMeter is what counts where nothing is counted.
type noMeter struct{}

func (noMeter) Begin(string, bool) func(codes.Code) { return func(codes.Code) {} }
func (noMeter) Denied(string)                       {}

func (s *Server) begin(ctx context.Context, method string) (context.Context, *call) {
	c := &call{s: s, method: method, start: s.now(), info: &peerInfo{caller: identity.Anonymous}}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(*peerInfo); ok {
			c.info = info
		}
		c.addr, c.key = p.Addr.String(), addressKey(p.Addr)
	}
	if c.info.caller.Name != "" {
		c.key = c.info.caller.String()
	}
	ctx = takeIDs(ctx)
	if s.cfg.Traces != nil {
		ctx = trace.WithRecorder(ctx, s.cfg.Traces(method))
	}
	return identity.WithCaller(ctx, c.info.caller), c
}

// beginSpan leaves out health and reflection, which are asked all the time and tell nothing.
func (c *call) beginSpan(ctx context.Context) context.Context {
	if !strings.HasPrefix(c.method, "/sallyport.") {
		return ctx
	}
	ctx, c.span = trace.BeginKind(ctx, trace.Server, spanName(c.method))
	c.span.Set("rpc.system", "grpc")
	c.span.Set("sallyport.caller", c.info.caller.String())
	c.span.Set("sallyport.request_id", trace.Request(ctx))
	return ctx
}

// spanName is "sallyport.issuer.v1.IssuerService/SubmitRequest", by the conventions of OpenTelemetry.
func spanName(method string) string { return strings.TrimPrefix(method, "/") }

func (c *call) admit(ctx context.Context) error {
	if err := c.limit(); err != nil {
		c.span = nil // a flood shall not push out what is worth seeing
		return err
	}
	if err := c.s.authorize(c.info, c.method); err != nil {
		c.denied(ctx, err)
		c.logged = true
		return err
	}
	return nil
}

func (c *call) limit() error {
	var wait time.Duration
	switch caller := c.info.caller; {
	case caller.Name == "":
		wait = c.s.anonymous.take(c.key, c.start)
	case !slices.Contains(identity.Services, caller.Role):
		wait = c.s.callers.take(c.key, c.start)
	}
	if wait > 0 {
		return fault.New(fault.Exhausted, ReasonTooManyRequests, "too many requests").After(wait)
	}
	return nil
}

// authorize says whether the peer may call the method now.
func (s *Server) authorize(p *peerInfo, method string) *fault.Error {
	if p.refused != nil {
		return p.refused
	}
	if err := s.standing(p); err != nil {
		return err
	}
	roles := s.methods[method]
	if slices.Contains(roles, p.caller.Role) || slices.Contains(roles, identity.RoleAnonymous) {
		return nil
	}
	if p.caller.Name == "" {
		return fault.New(fault.Unauthenticated, ReasonNoCertificate, "this method needs a client certificate")
	}
	return fault.New(fault.Denied, ReasonRoleNotAllowed, "the role %s may not call this method", p.caller.Role)
}

// standing says whether the peer is still who it was when it connected: its
// SVID may have run out, or it may have been put on the deny list.
func (s *Server) standing(p *peerInfo) *fault.Error {
	if p.caller.Name == "" {
		return nil
	}
	if s.now().After(p.notAfter) {
		return fault.New(fault.Unauthenticated, ReasonCertificateExpired, "client certificate: expired on %s: connect with a new one",
			p.notAfter.UTC().Format(time.RFC3339))
	}
	if s.cfg.Deny == nil {
		return nil
	}
	err := s.cfg.Deny(p.caller)
	if err == nil {
		return nil
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return &fault.Error{Kind: fault.Denied, Reason: ReasonLocked, Message: "the caller is locked", Cause: err}
}

func (c *call) denied(ctx context.Context, err *fault.Error) {
	service, method, _ := strings.Cut(strings.TrimPrefix(c.method, "/"), "/")
	d := Denial{Service: service, Method: method, Caller: c.info.caller, Reason: err.Reason, Detail: err.Error(), Peer: c.addr}
	c.s.log.WarnContext(ctx, "call denied", "method", c.method, "caller", d.Caller.String(), "reason", d.Reason, "detail", d.Detail,
		"peer", d.Peer)
	c.s.cfg.Meter.Denied(d.Reason)
	if c.s.cfg.OnDenied == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deniedBound)
	defer cancel()
	c.s.cfg.OnDenied(ctx, d)
}

// unaryDeadline keeps a little of the client's deadline back, and sets one
// where the client has not.
func unaryDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if d, ok := ctx.Deadline(); ok {
		return context.WithDeadline(ctx, d.Add(-keptBack))
	}
	return context.WithTimeout(ctx, serverTimeout)
}

// end logs the call once, ends its span, and gives the error its outer form.
func (c *call) end(ctx context.Context, panicked any, err error) (out error) {
	defer func() { c.span.End(failure(out)) }()
	attrs := []any{"method", c.method, "caller", c.info.caller.String(), "peer", c.addr, "duration", c.s.now().Sub(c.start)}
	if panicked != nil {
		c.s.log.ErrorContext(ctx, "handler panicked", append(attrs, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))...)
		return internalError(ctx)
	}
	if err == nil {
		c.s.log.DebugContext(ctx, "call", attrs...)
		return nil
	}
	var level slog.Level
	level, out = outer(ctx, err)
	if c.logged {
		return out
	}
	c.s.log.Log(ctx, level, "call failed", append(attrs, "code", status.Code(out).String(), "error", err)...)
	return out
}

// failure is what a span says of an error.
func failure(err error) string {
	if err == nil {
		return ""
	}
	return status.Code(err).String() + " " + fault.Of(err).Reason
}

func internalError(ctx context.Context) error {
	e := fault.New(fault.Internal, fault.ReasonInternal, "internal error (request id %s)", trace.Request(ctx))
	return e.With(trace.KeyRequest, trace.Request(ctx)).GRPCStatus().Err()
}

// outer maps what a handler returned to what the peer may see.
func outer(ctx context.Context, err error) (slog.Level, error) {
	var f *fault.Error
	switch {
	case errors.As(err, &f):
	case errors.Is(err, context.Canceled):
		return slog.LevelDebug, status.Error(codes.Canceled, "canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return slog.LevelWarn, status.Error(codes.DeadlineExceeded, "deadline exceeded")
	case status.Code(err) == codes.Unimplemented:
		return slog.LevelInfo, status.Error(codes.Unimplemented, "not implemented by this server")
	default:
		if f = downstream(err); f == nil {
			return slog.LevelError, internalError(ctx)
		}
	}
	switch f.Kind {
	case fault.Internal:
		return slog.LevelError, internalError(ctx)
	case fault.Transient, fault.Exhausted, fault.Unauthenticated, fault.Denied:
		return slog.LevelWarn, f.GRPCStatus().Err()
	}
	return slog.LevelInfo, f.GRPCStatus().Err()
}

// downstream maps the error of a call that the handler itself made, or a plain
// status of grpc's own services. What concerns our own standing with the other
// service is no business of the peer.
func downstream(err error) *fault.Error {
	f := fault.Of(err)
	switch {
	case f.Kind == fault.Unauthenticated, f.Kind == fault.Denied, f.Kind == fault.Internal:
		return nil
	case f.Reason == fault.ReasonUnavailable, f.Reason == fault.ReasonDeadlineExceeded, f.Reason == fault.ReasonCanceled:
		return &fault.Error{Kind: fault.Transient, Reason: fault.ReasonUnavailable, Message: "a service this call needs does not answer",
			RetryAfter: f.RetryAfter, Cause: err}
	}
	return f
}
