package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

func TestBuckets(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	b := newBuckets(2, 2) // 2 a second, bursts of 4
	for i := range 4 {
		if wait := b.take("a", now); wait != 0 {
			t.Fatalf("call %d waits %v", i, wait)
		}
	}
	if wait := b.take("a", now); wait != 500*time.Millisecond {
		t.Fatalf("waits %v", wait)
	}
	if wait := b.take("b", now); wait != 0 {
		t.Fatalf("another caller waits %v", wait)
	}
	if wait := b.take("a", now.Add(500*time.Millisecond)); wait != 0 {
		t.Fatalf("after half a second it waits %v: a refused call must cost nothing", wait)
	}
}

func TestBucketsAreBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	b := newBuckets(1, 1)
	b.max = 100
	for i := range 10_000 {
		b.take(fmt.Sprint("stranger ", i), now)
		if i%50 == 0 { // who is active keeps its bucket
			if wait := b.take("busy", now); (wait == 0) != (i == 0) {
				t.Fatalf("after %d strangers the busy one waits %v", i, wait)
			}
		}
		if n := len(b.young) + len(b.old); n > 2*b.max {
			t.Fatalf("%d buckets", n)
		}
	}
}

func TestAddressKey(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:1234":              "192.0.2.7",
		"[::ffff:192.0.2.7]:1":        "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:1234": "2001:db8:1:2::/64",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressKey(tcp); got != want {
			t.Errorf("%s: got %q, want %q", addr, got, want)
		}
	}
	if got := addressKey(&net.UnixAddr{Name: "/run/x", Net: "unix"}); got != "unix" {
		t.Errorf("got %q", got)
	}
}

// A connection is closed when it is old, and the client goes on with another.
func TestConnectionAge(t *testing.T) {
	w := newWorld(t, func(c *ServerConfig) { c.Limits.ConnectionAge = config.Duration(50 * time.Millisecond) })
	var dialled atomic.Int32
	d := func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			dialled.Add(1)
		}
		return conn, err
	}
	cc := w.dial(w.source("/service/deployer"), func(c *ClientConfig) { c.Dialer = d })
	for dialled.Load() < 3 {
		if _, err := say(t.Context(), cc, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// The order of the chain: each step is seen only by calls that passed those before.
func TestOrder(t *testing.T) {
	var steps []string
	step := func(s string) { steps = append(steps, s) }
	w := newWorld(t, func(c *ServerConfig) {
		c.Limits.CallerRate = 1 // bursts of 2
		c.Deny = func(identity.Caller) error { step("deny list"); return nil }
		c.OnDenied = func(_ context.Context, d Denial) { step("denied " + d.Reason) }
		c.Log = slog.New(stepHandler{c.Log.Handler(), step})
		c.Meter = stepMeter(step)
	})
	w.echo.unary = func(ctx context.Context, text string) (string, error) {
		step("handler")
		if _, ok := ctx.Deadline(); !ok || trace.Request(ctx) == "" || identity.FromContext(ctx).Name == "" {
			t.Error("handler without deadline, request id or caller")
		}
		if text == "panic" {
			panic(text)
		}
		return "", fault.New(fault.NotFound, "X", "x")
	}
	run := func(path, text string, want ...string) {
		t.Helper()
		steps = nil
		_, _ = say(t.Context(), w.as(path), text)
		want = append([]string{"begins"}, want...)
		if !slices.Equal(steps, want) {
			t.Errorf("%s %s: %q, want %q", path, text, steps, want)
		}
	}
	run("/agent/a", "", "deny list", "handler", "log call failed", "ended NotFound")
	run("/agent/a", "panic", "deny list", "handler", "log handler panicked", "ended Internal")
	run("/agent/a", "", "log call failed", "ended ResourceExhausted") // limits come before all else, but metrics
	run("/service/audit", "", "deny list", "log call denied", "counted ROLE_NOT_ALLOWED", "denied ROLE_NOT_ALLOWED", "ended PermissionDenied")
}

type stepMeter func(string)

func (m stepMeter) Begin(string, bool) func(codes.Code) {
	m("begins")
	return func(c codes.Code) { m("ended " + c.String()) }
}
func (m stepMeter) Denied(reason string) { m("counted " + reason) }

type stepHandler struct {
	slog.Handler
	step func(string)
}

func (h stepHandler) Handle(_ context.Context, r slog.Record) error {
	h.step("log " + r.Message)
	return nil
}
