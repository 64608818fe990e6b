package session

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

func TestHub(t *testing.T) {
	h := NewHub()
	a, b := h.Wait(HostKey("a")), h.Wait(HostKey("a"))
	other := h.Wait(DeploymentKey("a"))
	for range 1000 { // a slow one costs no memory
		h.Wake(HostKey("a"), HostKey("nobody"))
	}
	for _, s := range []*Signal{a, b} {
		select {
		case <-s.C:
		default:
			t.Fatal("not woken")
		}
		select {
		case <-s.C:
			t.Fatal("woken twice for what was not looked at between")
		default:
		}
	}
	select {
	case <-other.C:
		t.Fatal("a deployment was woken for a host")
	default:
	}
	b.Stop()
	h.Wake(HostKey("a"))
	select {
	case <-b.C:
		t.Fatal("woken after it stopped waiting")
	default:
	}
	a.Stop()
	other.Stop()
	if len(h.waiters) != 0 {
		t.Fatalf("left behind: %v", h.waiters)
	}
}

func TestHubConcurrently(t *testing.T) {
	h := NewHub()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				s := h.Wait(HostKey("a"))
				h.Wake(HostKey("a"))
				<-s.C
				s.Stop()
			}
		})
	}
	wg.Wait()
}

func TestStreams(t *testing.T) {
	s := NewStreams(2)
	first, one, err := s.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	second, two, err := s.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if f := fault.Of(context.Cause(first)); f == nil || f.Reason != ReasonReplaced {
		t.Fatalf("the first stream ended by %v", context.Cause(first))
	}
	s.Close(one) // late: it must not take the second away
	if second.Err() != nil {
		t.Fatal("closing the old stream ended the new one")
	}
	if _, _, err := s.Open(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Open(t.Context(), "c")
	if f := fault.Of(err); f == nil || f.Kind != fault.Exhausted || f.RetryAfter <= 0 {
		t.Fatalf("a third: %v", err)
	}
	if _, _, err := s.Open(t.Context(), "b"); err != nil {
		t.Fatalf("one's own place is taken over: %v", err)
	}
	s.Close(two)
	if _, _, err := s.Open(t.Context(), "c"); err != nil {
		t.Fatalf("a place that was given back: %v", err)
	}
}

func TestMoved(t *testing.T) {
	s := NewStreams(2)
	ctx, st, err := s.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	alive := func(what string, asked time.Time, stream string) {
		t.Helper()
		s.Moved("a", stream, asked)
		if ctx.Err() != nil {
			t.Fatalf("%s ended the stream", what)
		}
	}
	asked := time.Now()
	alive("what the store said before it knew of the stream", asked, "old")
	s.Recorded(st)
	alive("what the store was asked before it knew of the stream", asked, "old")
	later := time.Now().Add(time.Second)
	alive("itself", later, st.ID)
	alive("no stream", later, "")
	s.Moved("b", "other", later)
	s.Moved("a", "other", later)
	if f := fault.Of(context.Cause(ctx)); f == nil || f.Reason != ReasonReplaced {
		t.Fatalf("a stream elsewhere: %v", context.Cause(ctx))
	}
}

// TestAdmission has a fleet of 1000 come back at once, and again when each was told to: all are in within the time that the
// rate allows, and nobody asks more than a few times.
func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAdmission(100, 50, time.Now)
		start := time.Now()
		var mu sync.Mutex
		asked, worst := 0, 0
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				for n := 1; ; n++ {
					err := a.Admit()
					mu.Lock()
					asked++
					worst = max(worst, n)
					mu.Unlock()
					if err == nil {
						return
					}
					var f *fault.Error
					if !errors.As(err, &f) || f.Kind != fault.Exhausted || f.Reason != ReasonBusy || f.RetryAfter < 100*time.Millisecond {
						t.Errorf("refused with %v", err)
						return
					}
					time.Sleep(f.RetryAfter)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took < 9*time.Second || took > 15*time.Second {
			t.Errorf("1000 agents at 100 a second came in within %s", took)
		}
		if asked > 2500 || worst > 6 {
			t.Errorf("they asked %d times, one of them %d times", asked, worst)
		}
		time.Sleep(time.Hour)
		for range 50 {
			if err := a.Admit(); err != nil {
				t.Fatalf("after an hour's quiet: %v", err)
			}
		}
	})
}
