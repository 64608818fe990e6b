package fault

import (
	"context"
	"errors"
	"maps"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the ErrorInfo domain of every Sallyport error (AIP-193).
const Domain = "sallyport"

// Reasons that this package gives itself.
const (
	ReasonInvalidField     = "INVALID_FIELD"
	ReasonInternal         = "INTERNAL"
	ReasonCanceled         = "CANCELED"
	ReasonDeadlineExceeded = "DEADLINE_EXCEEDED"
	ReasonUnavailable      = "UNAVAILABLE"
	ReasonUnimplemented    = "UNIMPLEMENTED"
)

var kindCodes = [...]codes.Code{
	codes.Internal, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.Aborted, codes.FailedPrecondition,
	codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted, codes.Unavailable, codes.FailedPrecondition,
}

// metaKind carries the kind where two kinds share one code.
const metaKind = "kind"

// Code is the gRPC code of the kind.
func (k Kind) Code() codes.Code {
	if int(k) < len(kindCodes) {
		return kindCodes[k]
	}
	return codes.Internal
}

// GRPCStatus gives the status with ErrorInfo, and BadRequest and RetryInfo
// where they apply. The cause is left out.
func (e *Error) GRPCStatus() *status.Status {
	info := &errdetails.ErrorInfo{Reason: utf8(e.Reason), Domain: Domain}
	if len(e.Meta) > 0 || e.Kind == Permanent {
		info.Metadata = make(map[string]string, len(e.Meta)+1)
	}
	for k, v := range e.Meta {
		info.Metadata[utf8(k)] = utf8(v)
	}
	if e.Kind == Permanent {
		info.Metadata[metaKind] = e.Kind.String()
	}
	details := []protoadapt.MessageV1{info}
	if e.Field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: utf8(e.Field), Description: utf8(e.Message), Reason: utf8(e.Reason)}}})
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	st := status.New(e.Kind.Code(), utf8(e.text()))
	if with, err := st.WithDetails(details...); err == nil {
		return with
	}
	return st
}

// utf8 keeps a message that repeats foreign bytes from losing its details:
// protobuf refuses to encode them.
func utf8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Of finds the *Error in err: by errors.As, or from a gRPC status. A status of
// somebody else's (no ErrorInfo of our domain) keeps its kind by code, with the
// code's name as reason. Anything else is Internal with err as Cause. Of(nil)
// is nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return &Error{Kind: Transient, Reason: ReasonCanceled, Message: "canceled", Cause: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: Transient, Reason: ReasonDeadlineExceeded, Message: "deadline exceeded", Cause: err}
	}
	// Not status.FromError: for a wrapped status it makes the message of the whole
	// error's text, "rpc error: code = ..." and all.
	var st interface{ GRPCStatus() *status.Status }
	if errors.As(err, &st) {
		return ofStatus(st.GRPCStatus())
	}
	return &Error{Kind: Internal, Reason: ReasonInternal, Message: "internal error", Cause: err}
}

func ofStatus(st *status.Status) *Error {
	e := &Error{Message: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Domain == Domain {
				e.Reason, e.Meta = d.Reason, maps.Clone(d.Metadata)
			}
		case *errdetails.BadRequest:
			if len(d.FieldViolations) > 0 {
				e.Field, e.Message = d.FieldViolations[0].Field, d.FieldViolations[0].Description
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.RetryDelay.AsDuration()
		}
	}
	e.Kind = kindOfCode(st.Code())
	if e.Meta[metaKind] == Permanent.String() {
		e.Kind = Permanent
		if delete(e.Meta, metaKind); len(e.Meta) == 0 {
			e.Meta = nil
		}
	}
	if e.Reason == "" {
		e.Reason = reasonOfCode(st.Code())
	}
	if e.Message == "" {
		e.Message = "no more is said than " + e.Reason
	}
	return e
}

func kindOfCode(c codes.Code) Kind {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange:
		return InvalidArgument
	case codes.NotFound:
		return NotFound
	case codes.AlreadyExists:
		return AlreadyExists
	case codes.Aborted:
		return Conflict
	case codes.FailedPrecondition:
		return Precondition
	case codes.Unauthenticated:
		return Unauthenticated
	case codes.PermissionDenied:
		return Denied
	case codes.ResourceExhausted:
		return Exhausted
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return Transient
	case codes.Unimplemented:
		return Permanent
	}
	return Internal
}

// codeReasons name what went wrong when nobody gave a reason.
var codeReasons = map[codes.Code]string{
	codes.Canceled:           ReasonCanceled,
	codes.InvalidArgument:    "INVALID_ARGUMENT",
	codes.DeadlineExceeded:   ReasonDeadlineExceeded,
	codes.NotFound:           "NOT_FOUND",
	codes.AlreadyExists:      "ALREADY_EXISTS",
	codes.PermissionDenied:   "PERMISSION_DENIED",
	codes.ResourceExhausted:  "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Aborted:            "ABORTED",
	codes.OutOfRange:         "OUT_OF_RANGE",
	codes.Unimplemented:      ReasonUnimplemented,
	codes.Unavailable:        ReasonUnavailable,
	codes.Unauthenticated:    "UNAUTHENTICATED",
}

func reasonOfCode(c codes.Code) string {
	if r, ok := codeReasons[c]; ok {
		return r
	}
	return ReasonInternal
}
