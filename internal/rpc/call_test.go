package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

var discard = slog.New(slog.DiscardHandler)

const secret = "10.1.2.3:5432 password hunter2"

func TestErrorsLeave(t *testing.T) {
	w := newWorld(t)
	cc := w.as("/agent/web-1")
	tests := map[string]struct {
		err    error
		code   codes.Code
		kind   fault.Kind
		reason string
	}{
		"fault":              {fault.New(fault.NotFound, "NO_SUCH_THING", "no thing %q", "x"), codes.NotFound, fault.NotFound, "NO_SUCH_THING"},
		"wrapped fault":      {fmt.Errorf(secret+": %w", fault.New(fault.Conflict, "WRONG_STATE", "wrong state")), codes.Aborted, fault.Conflict, "WRONG_STATE"},
		"cause":              {fault.New(fault.Transient, "CA_DOWN", "asking the CA: %w", errors.New(secret)), codes.Unavailable, fault.Transient, "CA_DOWN"},
		"permanent":          {fault.New(fault.Permanent, "NEVER", "never"), codes.FailedPrecondition, fault.Permanent, "NEVER"},
		"internal fault":     {fault.New(fault.Internal, "BROKEN", secret), codes.Internal, fault.Internal, fault.ReasonInternal},
		"unknown":            {errors.New(secret), codes.Internal, fault.Internal, fault.ReasonInternal},
		"canceled":           {fmt.Errorf("x: %w", context.Canceled), codes.Canceled, fault.Transient, fault.ReasonCanceled},
		"deadline":           {fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded, fault.Transient, fault.ReasonDeadlineExceeded},
		"downstream ours":    {fmt.Errorf("asking: %w", fault.New(fault.Precondition, "NOT_YET", "not yet").GRPCStatus().Err()), codes.FailedPrecondition, fault.Precondition, "NOT_YET"},
		"downstream denied":  {fault.New(fault.Denied, "ROLE_NOT_ALLOWED", secret).GRPCStatus().Err(), codes.Internal, fault.Internal, fault.ReasonInternal},
		"downstream away":    {status.Error(codes.Unavailable, secret), codes.Unavailable, fault.Transient, fault.ReasonUnavailable},
		"downstream unknown": {status.Error(codes.Unknown, secret), codes.Internal, fault.Internal, fault.ReasonInternal},
		"unimplemented":      {status.Error(codes.Unimplemented, "method X not implemented"), codes.Unimplemented, fault.Permanent, fault.ReasonUnimplemented},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w.echo.unary = func(context.Context, string) (string, error) { return "", tt.err }
			_, err := say(t.Context(), cc, "")
			if got := status.Code(err); got != tt.code {
				t.Errorf("code %s, want %s", got, tt.code)
			}
			want(t, err, tt.kind, tt.reason)
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the peer learns %q", err)
			}
		})
	}
}

func TestInternalErrorIsLoggedOnce(t *testing.T) {
	w := newWorld(t)
	w.echo.unary = func(context.Context, string) (string, error) { return "", errors.New("disk on fire") }
	f := want(t, second(say(t.Context(), w.as("/agent/web-1"), "")), fault.Internal, fault.ReasonInternal)
	if n := strings.Count(w.log.String(), "disk on fire"); n != 1 {
		t.Fatalf("logged %d times", n)
	}
	has(t, w.log.String(), f.Meta["request_id"])
	has(t, f.Message, "internal error (request id "+f.Meta["request_id"])
}

func TestFieldAndRetryAfter(t *testing.T) {
	w := newWorld(t)
	cc := w.as("/agent/web-1")
	w.echo.unary = func(context.Context, string) (string, error) { return "", fault.Invalid("names.dns[2]", "not a name") }
	if f := want(t, second(say(t.Context(), cc, "")), fault.InvalidArgument, fault.ReasonInvalidField); f.Field != "names.dns[2]" || f.Message != "not a name" {
		t.Fatalf("got %+v", f)
	}
	w.echo.unary = func(context.Context, string) (string, error) {
		return "", fault.New(fault.Exhausted, "SLOW_DOWN", "slow down").After(90 * time.Second)
	}
	if f := want(t, second(say(t.Context(), cc, "")), fault.Exhausted, "SLOW_DOWN"); f.RetryAfter != 90*time.Second {
		t.Fatalf("got %+v", f)
	}
}

func TestPanic(t *testing.T) {
	w := newWorld(t)
	cc := w.as("/agent/web-1")
	w.echo.unary = func(context.Context, string) (string, error) { panic("at the disco") }
	want(t, second(say(t.Context(), cc, "")), fault.Internal, fault.ReasonInternal)
	w.echo.stream = func(string, grpc.ServerStream) error { panic("in the stream") }
	cs, err := watch(t.Context(), cc, "")
	if err == nil {
		_, err = recv(cs)
	}
	want(t, err, fault.Internal, fault.ReasonInternal)
	has(t, w.log.String(), "at the disco", "in the stream", "call_test.go")
	w.echo.unary = func(context.Context, string) (string, error) { return "alive", nil }
	if got, err := say(t.Context(), cc, ""); err != nil || got != "alive" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestDeadlines(t *testing.T) {
	w := newWorld(t)
	cc := w.as("/agent/web-1")
	var left time.Duration
	w.echo.unary = func(ctx context.Context, _ string) (string, error) {
		d, ok := ctx.Deadline()
		if !ok {
			return "", errors.New("no deadline")
		}
		left = time.Until(d)
		return "", nil
	}
	if _, err := say(t.Context(), cc, ""); err != nil {
		t.Fatal(err)
	}
	if left <= 0 || left > defaultTimeout-keptBack {
		t.Fatalf("without a deadline of the caller: %v left", left)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := say(ctx, cc, ""); err != nil {
		t.Fatal(err)
	}
	if left < 59*time.Minute || left > time.Hour {
		t.Fatalf("with a deadline of the caller: %v left", left)
	}

	// A little is kept back, so that the true cause reaches the client in time.
	theirs, _ := ctx.Deadline()
	ours, stop := unaryDeadline(ctx)
	defer stop()
	if d, ok := ours.Deadline(); !ok || theirs.Sub(d) != keptBack {
		t.Fatalf("the handler has until %v, the client until %v", d, theirs)
	}
	ours, stop = unaryDeadline(t.Context())
	defer stop()
	if _, ok := ours.Deadline(); !ok {
		t.Fatal("a handler without a deadline")
	}

	w.echo.stream = func(_ string, ss grpc.ServerStream) error {
		if _, ok := ss.Context().Deadline(); ok {
			return errors.New("a stream has a deadline")
		}
		return fault.New(fault.NotFound, "FINE", "fine")
	}
	cs, err := watch(context.Background(), cc, "")
	if err == nil {
		_, err = recv(cs)
	}
	want(t, err, fault.NotFound, "FINE")
}

func TestIDs(t *testing.T) {
	w := newWorld(t)
	cc := w.as("/agent/web-1")
	var request string
	var link trace.Link
	w.echo.unary = func(ctx context.Context, _ string) (string, error) {
		request, link = trace.Request(ctx), trace.Of(ctx)
		return "", nil
	}
	do := func(ctx context.Context) {
		t.Helper()
		if _, err := say(ctx, cc, ""); err != nil {
			t.Fatal(err)
		}
		if !trace.ValidRequest(request) || !trace.ValidTrace(link.Trace) {
			t.Fatalf("request %q, trace %+v", request, link)
		}
	}
	do(t.Context())
	first, id := request, trace.New()
	do(trace.With(t.Context(), id))
	if link != id || request == first {
		t.Fatalf("request %q after %q, trace %+v, want %+v", request, first, link, id)
	}
	id.Span = trace.NewSpan()
	do(trace.WithRequest(trace.With(t.Context(), id), "req-7.A_b"))
	if link != id || request != "req-7.A_b" {
		t.Fatalf("request %q, trace %+v, want %+v", request, link, id)
	}
	do(trace.With(t.Context(), trace.Link{Trace: "no id\nat all"}))
	// A client not made here may send anything.
	for _, md := range []metadata.MD{
		metadata.Pairs(metaRequest, "x y\nz", metaTrace, strings.Repeat("g", 32)),
		metadata.Pairs(metaRequest, strings.Repeat("a", 65), metaParent, "00-"+strings.Repeat("0", 32)+"-00f067aa0ba902b7-01"),
	} {
		ctx := takeIDs(metadata.NewIncomingContext(t.Context(), md))
		if !trace.ValidRequest(trace.Request(ctx)) || !trace.ValidTrace(trace.ID(ctx)) || trace.Of(ctx).Span != "" {
			t.Fatalf("request %q, trace %+v", trace.Request(ctx), trace.Of(ctx))
		}
	}
}

// TestSpans: a call has one span on each side where spans are recorded, the server's under the client's, and its request id
// goes on to the calls it makes itself.
func TestSpans(t *testing.T) {
	var mu sync.Mutex
	var got []trace.Span
	record := trace.Recorder(func(s trace.Span) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, s)
	})
	w := newWorld(t, func(c *ServerConfig) { c.Traces = func(string) trace.Recorder { return record } })
	cc := w.as("/service/deployer")
	w.echo.unary = func(ctx context.Context, text string) (string, error) {
		if text == "again" {
			return "", fault.New(fault.NotFound, "NO_SUCH_THING", "no such thing")
		}
		return say(ctx, cc, "again")
	}
	id := trace.New()
	ctx := trace.WithRecorder(trace.WithRequest(trace.With(t.Context(), id), "req-1"), record)
	want(t, second(say(ctx, cc, "first")), fault.NotFound, "NO_SUCH_THING")
	if len(got) != 4 { // inner server, inner client, outer server, outer client
		t.Fatalf("spans %+v", got)
	}
	for i, s := range got {
		parent := ""
		if i < 3 {
			parent = got[i+1].Link.Span
			if s.Begun.Before(got[i+1].Begun) || s.Ended.After(got[i+1].Ended) {
				t.Errorf("span %d lies outside its parent", i)
			}
		}
		if s.Link.Trace != id.Trace || s.Parent != parent || s.Kind != []trace.Kind{trace.Server, trace.Client}[i%2] || s.Name != echoMethod[1:] || s.Failure != "NotFound NO_SUCH_THING" {
			t.Errorf("span %d: %+v, want the parent %q", i, s, parent)
		}
		if i%2 == 0 && !slices.Contains(s.Attributes, trace.Attribute{Key: "sallyport.request_id", Value: "req-1"}) {
			t.Errorf("span %d: attributes %v", i, s.Attributes)
		}
	}
}

func TestRateLimits(t *testing.T) {
	w := newWorld(t, func(c *ServerConfig) {
		c.Limits.CallerRate, c.Limits.AnonymousRate = 0.001, 0.001
		c.Methods[echoMethod] = append(c.Methods[echoMethod], identity.RoleAnonymous)
	})
	for name, cc := range map[string]*grpc.ClientConn{"agent": w.as("/agent/web-1"), "other agent": w.as("/agent/web-2"), "operator": w.as("/operator/ann"), "anonymous": w.anonymous()} {
		t.Run(name, func(t *testing.T) {
			if _, err := say(t.Context(), cc, ""); err != nil {
				t.Fatal(err)
			}
			f := want(t, second(say(t.Context(), cc, "")), fault.Exhausted, ReasonTooManyRequests)
			if f.RetryAfter < time.Minute {
				t.Fatalf("retry after %v", f.RetryAfter)
			}
		})
	}
	// Who is refused anyway makes no flood of denials.
	bad := w.dial(w.with(w.ca, "/workload/x", time.Hour))
	want(t, second(say(t.Context(), bad, "")), fault.Exhausted, ReasonTooManyRequests)
	if got := w.denied(); len(got) != 0 {
		t.Fatalf("denials %+v", got)
	}
	service := w.as("/service/deployer")
	for range 20 {
		if _, err := say(t.Context(), service, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStreamLimit(t *testing.T) {
	w := newWorld(t, func(c *ServerConfig) { c.Limits.StreamsPerCaller = 3 })
	for name, limit := range map[string]int{"/agent/web-1": 2, "/operator/ann": 3} {
		t.Run(name, func(t *testing.T) {
			var cancels []context.CancelFunc
			open := func() error {
				ctx, cancel := context.WithCancel(t.Context())
				cancels = append(cancels, cancel)
				cs, err := watch(ctx, w.as(name), "x") // a connection each: the bound is the caller's
				if err == nil {
					_, err = recv(cs)
				}
				return err
			}
			for range limit {
				if err := open(); err != nil {
					t.Fatal(err)
				}
			}
			if f := want(t, open(), fault.Exhausted, ReasonTooManyStreams); f.RetryAfter == 0 {
				t.Fatal("no time to wait")
			}
			cancels[0]()
			for err := open(); err != nil; err = open() { // until the server has seen the end
				want(t, err, fault.Exhausted, ReasonTooManyStreams)
			}
		})
	}
}

func TestMessageSize(t *testing.T) {
	w := newWorld(t, func(c *ServerConfig) { c.Limits.MessageSize = 1 << 10 })
	want(t, second(say(t.Context(), w.as("/agent/web-1"), strings.Repeat("x", 2<<10))), fault.Exhausted, "RESOURCE_EXHAUSTED")
	w.awaitLog("level=WARN", "code=ResourceExhausted")
}

func TestRequestThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	err := w.as("/agent/web-1").Invoke(t.Context(), echoMethod, wrapperspb.Bytes([]byte{0xff}), new(wrapperspb.StringValue)) // text is UTF-8
	if status.Code(err) != codes.Internal {                                                                                  // as grpc says it
		t.Errorf("got %v", err)
	}
	w.awaitLog("level=INFO", "code=InvalidArgument", "cannot be read") // it is no fault of ours
}

func TestShutdown(t *testing.T) {
	w := newWorld(t)
	cc := w.as("/agent/web-1")
	started, release := make(chan struct{}), make(chan struct{})
	w.echo.unary = func(context.Context, string) (string, error) { close(started); <-release; return "done", nil }
	cs, err := watch(t.Context(), cc, "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := recv(cs); err != nil {
		t.Fatal(err)
	}
	type result struct {
		out string
		err error
	}
	answered := make(chan result, 1)
	go func() { out, err := say(t.Context(), cc, ""); answered <- result{out, err} }()
	<-started
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	want(t, second(recv(cs)), fault.Transient, ReasonShuttingDown) // the stream ends at once,
	close(release)
	if r := <-answered; r.err != nil || r.out != "done" { // the call under way ends well.
		t.Fatalf("got %+v", r)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if _, err := net.DialTimeout("tcp", w.addr, time.Second); err == nil {
		t.Fatal("it still listens")
	}
}

func TestDialRefuses(t *testing.T) {
	ca, err := identity.CreateAuthority(testDomain, nil)
	if err != nil {
		t.Fatal(err)
	}
	src := mintedSource(t, ca, "/operator/ann")
	for name, cfg := range map[string]ClientConfig{
		"no source":  {Address: "a:1", Service: "issuer"},
		"no service": {Address: "a:1", Source: src},
		"no port":    {Address: "a", Service: "issuer", Source: src},
		"no address": {Service: "issuer", Source: src},
	} {
		if cc, err := Dial(cfg); err == nil {
			t.Errorf("%s: no error", name)
			cc.Close()
		}
	}
}

// A network that is back is used by the very next call.
func TestTryNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := identity.CreateAuthority(testDomain, nil)
		if err != nil {
			t.Fatal(err)
		}
		srv, err := NewServer(ServerConfig{
			Sources: map[string]identity.Source{"deployer": mintedSource(t, ca, "/service/deployer")}, Default: "deployer", Log: discard,
			Methods: map[string][]identity.Role{echoMethod: {identity.RoleAgent}, watchMethod: {identity.RoleAgent}},
		})
		if err != nil {
			t.Fatal(err)
		}
		(&echo{unary: func(_ context.Context, text string) (string, error) { return text, nil }}).register(srv.Registrar())
		lis := bufconn.Listen(1 << 16)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- srv.Serve(ctx, lis) }()
		var back atomic.Bool
		cc, err := Dial(ClientConfig{Address: "deployer.test:1", Service: "deployer", Source: mintedSource(t, ca, "/agent/web1"),
			Dialer: func(ctx context.Context, _ string) (net.Conn, error) {
				if !back.Load() {
					return nil, errors.New("network is unreachable")
				}
				return lis.DialContext(ctx)
			}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = say(t.Context(), cc, "x")
		want(t, err, fault.Transient, fault.ReasonUnavailable)
		synctest.Wait() // gRPC knows it a little later than the call
		back.Store(true)
		TryNow(t.Context(), cc)
		if _, err := say(t.Context(), cc, "x"); err != nil {
			t.Error(err)
		}
		cancel()
		if err := errors.Join(cc.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
}
