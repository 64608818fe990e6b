package fault

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var kinds = []Kind{Internal, InvalidArgument, NotFound, AlreadyExists, Conflict, Precondition, Unauthenticated, Denied, Exhausted, Transient, Permanent}

// What a kind, reason, field, metadata and wait are on one side of a call, they
// are on the other; the cause stays at home.
func TestOverTheWire(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.String(), func(t *testing.T) {
			for _, e := range []*Error{
				{Kind: k, Reason: "SOME_REASON", Message: "what happened"},
				{Kind: k, Reason: "SOME_REASON", Message: "what happened", Field: "a.b[2]", Meta: map[string]string{"x": "y"}, RetryAfter: 90 * time.Second},
			} {
				sent := *e
				sent.Cause = errors.New("secret")
				proto := sent.GRPCStatus().Proto() // as it goes over the wire
				got := Of(status.FromProto(proto).Err())
				if !reflect.DeepEqual(got, e) {
					t.Errorf("got %+v, want %+v", got, e)
				}
				wrapped := Of(fmt.Errorf("asking: %w", status.FromProto(proto).Err()))
				if !reflect.DeepEqual(wrapped, e) {
					t.Errorf("wrapped: got %+v, want %+v", wrapped, e)
				}
			}
		})
	}
}

func TestCodes(t *testing.T) {
	want := []codes.Code{codes.Internal, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.Aborted, codes.FailedPrecondition,
		codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted, codes.Unavailable, codes.FailedPrecondition}
	for i, k := range kinds {
		if k.Code() != want[i] {
			t.Errorf("%s: %s, want %s", k, k.Code(), want[i])
		}
	}
	if Kind(99).Code() != codes.Internal || Kind(99).String() != "kind(99)" {
		t.Error("a kind that is none")
	}
}

func TestDetails(t *testing.T) {
	st := Invalid("names", "too many").GRPCStatus()
	if st.Message() != "names: too many" || st.Code() != codes.InvalidArgument {
		t.Fatalf("got %v", st)
	}
	var info *errdetails.ErrorInfo
	var bad *errdetails.BadRequest
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.BadRequest:
			bad = d
		}
	}
	if info.GetDomain() != "sallyport" || info.GetReason() != "INVALID_FIELD" {
		t.Errorf("info %v", info)
	}
	if len(bad.GetFieldViolations()) != 1 || bad.FieldViolations[0].Field != "names" || bad.FieldViolations[0].Description != "too many" {
		t.Errorf("bad request %v", bad)
	}
}

// Statuses that we did not make keep their kind and never get a reason of ours.
func TestForeignStatus(t *testing.T) {
	for code, want := range map[codes.Code]struct {
		kind   Kind
		reason string
	}{
		codes.Canceled:           {Transient, ReasonCanceled},
		codes.Unknown:            {Internal, ReasonInternal},
		codes.InvalidArgument:    {InvalidArgument, "INVALID_ARGUMENT"},
		codes.DeadlineExceeded:   {Transient, ReasonDeadlineExceeded},
		codes.NotFound:           {NotFound, "NOT_FOUND"},
		codes.AlreadyExists:      {AlreadyExists, "ALREADY_EXISTS"},
		codes.PermissionDenied:   {Denied, "PERMISSION_DENIED"},
		codes.ResourceExhausted:  {Exhausted, "RESOURCE_EXHAUSTED"},
		codes.FailedPrecondition: {Precondition, "FAILED_PRECONDITION"},
		codes.Aborted:            {Conflict, "ABORTED"},
		codes.OutOfRange:         {InvalidArgument, "OUT_OF_RANGE"},
		codes.Unimplemented:      {Permanent, ReasonUnimplemented},
		codes.Internal:           {Internal, ReasonInternal},
		codes.Unavailable:        {Transient, ReasonUnavailable},
		codes.DataLoss:           {Internal, ReasonInternal},
		codes.Unauthenticated:    {Unauthenticated, "UNAUTHENTICATED"},
	} {
		err := status.Error(code, "text")
		if got := Of(err); got.Kind != want.kind || got.Reason != want.reason || got.Message != "text" || KindOf(err) != want.kind {
			t.Errorf("%s: got %+v", code, got)
		}
	}
	st, err := status.New(codes.NotFound, "text").WithDetails(&errdetails.ErrorInfo{Domain: "googleapis.com", Reason: "THEIRS", Metadata: map[string]string{"kind": "permanent"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := Of(st.Err()); got.Kind != NotFound || got.Reason != "NOT_FOUND" || got.Meta != nil {
		t.Errorf("got %+v", got)
	}
}

func TestOf(t *testing.T) {
	if Of(nil) != nil {
		t.Error("something of nothing")
	}
	e := New(NotFound, "X", "x")
	if Of(fmt.Errorf("more: %w", e)) != e || Of(errors.Join(errors.New("a"), e)) != e {
		t.Error("lost in wrapping")
	}
	plain := errors.New("plain")
	if got := Of(plain); got.Kind != Internal || got.Message != "internal error" || !errors.Is(got, plain) {
		t.Errorf("got %+v", got)
	}
	for err, reason := range map[error]string{context.Canceled: ReasonCanceled, context.DeadlineExceeded: ReasonDeadlineExceeded} {
		if got := Of(fmt.Errorf("x: %w", err)); got.Kind != Transient || got.Reason != reason || !errors.Is(got, err) {
			t.Errorf("%v: got %+v", err, got)
		}
	}
}

func TestNew(t *testing.T) {
	cause := errors.New("connection refused")
	for _, tt := range []struct {
		err                  *Error
		message, text, field string
		cause                error
	}{
		{New(Transient, "X", "asking %s", "it"), "asking it", "asking it", "", nil},
		{New(Transient, "X", "asking: %w", cause), "asking", "asking: connection refused", "", cause},
		{New(Transient, "X", "%w", cause), "", "connection refused", "", cause},
		{New(Transient, "X", "(%w) while asking", cause), "(connection refused) while asking", "(connection refused) while asking: connection refused", "", cause},
		{Invalid("a.b", "want %d", 3), "want 3", "a.b: want 3", "a.b", nil},
		{Invalid("a.b", "no name: %w", cause), "no name", "a.b: no name: connection refused", "a.b", cause},
	} {
		if tt.err.Message != tt.message || tt.err.Error() != tt.text || tt.err.Field != tt.field || !errors.Is(tt.err.Cause, tt.cause) {
			t.Errorf("got %+v, text %q, want %q, %q", tt.err, tt.err, tt.message, tt.text)
		}
		if tt.cause != nil && !errors.Is(tt.err, cause) {
			t.Errorf("%v: the cause is not in the chain", tt.err)
		}
	}
}

func TestIs(t *testing.T) {
	err := fmt.Errorf("x: %w", New(NotFound, "NO_AGENT", "no agent"))
	for target, want := range map[*Error]bool{
		{Kind: NotFound}:                     true,
		{Kind: NotFound, Reason: "NO_AGENT"}: true,
		{Kind: NotFound, Reason: "NO_TOKEN"}: false,
		{Kind: Conflict}:                     false,
		{Kind: Conflict, Reason: "NO_AGENT"}: false,
	} {
		if errors.Is(err, target) != want {
			t.Errorf("%+v: want %v", target, want)
		}
	}
}

// With and After must not change the error they are asked on: it may be a
// package's variable.
func TestCopies(t *testing.T) {
	e := New(Exhausted, "X", "x").With("a", "1")
	f := e.With("b", "2").After(time.Second)
	if !reflect.DeepEqual(e.Meta, map[string]string{"a": "1"}) || e.RetryAfter != 0 {
		t.Errorf("changed: %+v", e)
	}
	if !reflect.DeepEqual(f.Meta, map[string]string{"a": "1", "b": "2"}) || f.RetryAfter != time.Second {
		t.Errorf("got %+v", f)
	}
	p := New(Permanent, "X", "x").With("a", "1")
	_ = p.GRPCStatus()
	if len(p.Meta) != 1 {
		t.Errorf("making a status changed the error: %v", p.Meta)
	}
}

func TestKindNames(t *testing.T) {
	var names []string
	for _, k := range kinds {
		if slices.Contains(names, k.String()) {
			t.Errorf("%s twice", k)
		}
		names = append(names, k.String())
	}
}

// A message may repeat what a peer sent.
func TestForeignBytes(t *testing.T) {
	e := Invalid("names[\xff]", "bad name %q and \xfe", "\xfd").With("\xfc", "\xfb").After(time.Second)
	got := Of(status.FromProto(e.GRPCStatus().Proto()).Err())
	if got.Kind != InvalidArgument || got.Reason != ReasonInvalidField || got.Field != "names[\uFFFD]" || got.Meta["\uFFFD"] != "\uFFFD" || got.RetryAfter != time.Second {
		t.Fatalf("got %+v", got)
	}
}
