package exit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

func TestCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Code
	}{
		{nil, OK},
		{errors.New("x"), General},
		{&config.Error{}, Usage},
		{Errorf(Clock, "x"), Clock},
		{fmt.Errorf("y: %w", Errorf(Space, "x")), Space},
		{errors.Join(errors.New("a"), Errorf(Data, "x")), Data},
		{context.DeadlineExceeded, Timeout},
		{fmt.Errorf("x: %w", context.Canceled), Interrupted},
		{&fault.Error{Kind: fault.Transient, Reason: fault.ReasonDeadlineExceeded}, Timeout},
		{fault.New(fault.InvalidArgument, "R", "x"), Usage},
		{fault.New(fault.NotFound, "R", "x"), NotFound},
		{fault.New(fault.AlreadyExists, "R", "x"), Refused},
		{fault.New(fault.Conflict, "R", "x"), Refused},
		{fault.New(fault.Precondition, "R", "x"), Refused},
		{fault.New(fault.Permanent, "R", "x"), Refused},
		{fault.New(fault.Unauthenticated, "R", "x"), Refused},
		{fault.New(fault.Denied, "R", "x"), Refused},
		{fault.New(fault.Exhausted, "R", "x"), Unreachable},
		{fault.New(fault.Transient, "R", "x"), Unreachable},
		{fault.New(fault.Internal, "R", "x"), General},
	} {
		if got := Of(c.err); got != c.want {
			t.Errorf("%v: code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestTableHasEachCodeOnce(t *testing.T) {
	seen := map[Code]bool{}
	for _, r := range Table {
		if seen[r.Code] || r.Meaning == "" {
			t.Errorf("code %d: twice or without meaning", r.Code)
		}
		seen[r.Code] = true
	}
	for _, c := range []Code{OK, General, Usage, NotFound, Refused, Unreachable, Failed, Timeout, Verification, Unverified, Data, Address, Clock, Space, Unsound, Unseen, Interrupted} {
		if !seen[c] {
			t.Errorf("code %d is not in the table", c)
		}
	}
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("one\ntwo\r\nthree"), "sp: one; two; three\n"},
		{errors.Join(errors.New("a"), errors.Join(errors.New("b"), errors.New("c"))), "sp: a\nsp: b\nsp: c\n"},
		{With(Usage, errors.Join(errors.New("a"), errors.New("b"))), "sp: a\nsp: b\n"},
		{fmt.Errorf("profile/web: %w", fault.New(fault.Precondition, "NO_AUTHORITY", "no authority %q", "x")), "sp: profile/web: no authority \"x\" (NO_AUTHORITY)\n"},
		{fault.Invalid("a.b", "wrong"), "sp: a.b: wrong\n"},
		{fault.New(fault.Exhausted, "BUSY", "busy").After(3 * time.Second), "sp: busy (BUSY); try again in 3s\n"},
		{fmt.Errorf("watching: %w", context.DeadlineExceeded), "sp: watching: the time given was not enough\n"},
		{context.Canceled, "sp: interrupted\n"},
	} {
		var b strings.Builder
		Report(&b, "sp", c.err)
		if b.String() != c.want {
			t.Errorf("got %q, want %q", b.String(), c.want)
		}
	}
}
