package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// Those that have begun go before those that wait to begin, who give up after a while.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, time.Second)
		if err := g.enter(false); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, what)
		}
		wait := func(who string, begun bool) {
			go func() {
				if err := g.enter(begun); err != nil {
					note(who + " gave up")
					return
				}
				note(who)
				time.Sleep(300 * time.Millisecond)
				g.leave()
			}()
			synctest.Wait()
		}
		wait("fresh 1", false)
		wait("fresh 2", false)
		wait("begun", true)
		time.Sleep(500 * time.Millisecond)
		g.leave()
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		g.mu.Lock()
		defer g.mu.Unlock()
		want := []string{"begun", "fresh 1", "fresh 2 gave up"}
		if len(order) != 3 || order[0] != want[0] || order[1] != want[1] || order[2] != want[2] {
			t.Errorf("%q, want %q", order, want)
		}
		if g.free != 1 || len(g.begun)+len(g.fresh) != 0 {
			t.Errorf("left behind: %d places, %d begun, %d fresh", g.free, len(g.begun), len(g.fresh))
		}
	})
}

// The memory of those that wait is bounded.
func TestGateCrowded(t *testing.T) {
	g := newGate(0, time.Hour)
	g.fresh = make([]chan struct{}, freshMax)
	if err := g.enter(false); !errors.Is(err, errCrowded) {
		t.Errorf("one more: %v", err)
	}
}

// Peers that say half a sentence and then nothing hold no place: others come through.
func TestHandshakesThatHang(t *testing.T) {
	w := newWorld(t)
	for range 200 {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		// The beginning of a ClientHello of which the rest is awaited.
		if _, err := conn.Write([]byte{22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), handshakeBound/2)
	defer cancel()
	conn, err := (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true}}).DialContext(ctx, "tcp", w.addr) //nolint:gosec // whom it reaches is of no interest
	if err != nil {
		t.Fatalf("a peer among 200 that hang: %v", err)
	}
	conn.Close()
}

// When the server stops, each stream is given a time of its own to come back.
func TestStreamsComeBackOneByOne(t *testing.T) {
	s := &Server{streams: map[*openStream]struct{}{}, perKey: map[string]int{}}
	var ctxs []context.Context
	for range 3 * returnRate {
		st := &openStream{call: &call{info: &peerInfo{caller: identity.Anonymous}}}
		st.ctx, st.cancel = context.WithCancelCause(t.Context())
		s.streams[st] = struct{}{}
		ctxs = append(ctxs, st.ctx)
	}
	s.endStreams()
	each := map[int]int{}
	for _, ctx := range ctxs {
		f := fault.Of(context.Cause(ctx))
		if f == nil || f.Reason != ReasonShuttingDown {
			t.Fatalf("ended by %v", context.Cause(ctx))
		}
		each[int(f.RetryAfter/time.Second)]++
	}
	if len(each) != 3 || each[1] != returnRate || each[2] != returnRate || each[3] != returnRate {
		t.Errorf("to come back in each second: %v", each)
	}
}
