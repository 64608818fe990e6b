package pace

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

func TestGrowsAndSpreads(t *testing.T) {
	for range 50 {
		p := New(time.Second, time.Minute)
		var longest time.Duration
		for i := range 100 {
			d := p.After(errors.New("x"))
			bound := time.Minute
			if i < 6 {
				bound = time.Second << i
			}
			if d < 0 || d > bound+bound/16 {
				t.Fatalf("pause %d is %v", i, d)
			}
			longest = max(longest, d)
		}
		if longest < 20*time.Second {
			t.Errorf("never longer than %v", longest)
		}
		p.Reset()
		if d := p.After(nil); d > 2*time.Second {
			t.Errorf("after success %v", d)
		}
	}
}

func TestServerSaysWhen(t *testing.T) {
	p := New(time.Millisecond, time.Minute)
	for range 20 {
		if d := p.After(fault.New(fault.Exhausted, "BUSY", "x").After(20 * time.Second).GRPCStatus().Err()); d < 20*time.Second || d > 90*time.Second {
			t.Errorf("%v", d)
		}
	}
	p = New(time.Millisecond, time.Minute)
	if d := p.After(fault.New(fault.Denied, "LOCKED", "x")); d < patience {
		t.Errorf("%v after a refusal", d)
	}
	p = New(time.Millisecond, time.Minute)
	if d := p.After(fault.New(fault.Denied, ReasonKeyUnknown, "x")); d > time.Second {
		t.Errorf("%v after the key was replaced", d)
	}
}

func TestPassing(t *testing.T) {
	for code, want := range map[codes.Code]bool{
		codes.Unavailable: true, codes.DeadlineExceeded: true, codes.ResourceExhausted: true, codes.Unauthenticated: true, codes.PermissionDenied: true, codes.Internal: true,
		codes.NotFound: false, codes.InvalidArgument: false, codes.Aborted: false, codes.FailedPrecondition: false, codes.Unimplemented: false,
	} {
		if Passing(status.Error(code, "x")) != want {
			t.Errorf("%v: want %v", code, want)
		}
	}
}
