// Package fault is the one error type that crosses a border of Sallyport: a
// gRPC call, an event, the command line. It guarantees that the kind, reason,
// field and metadata of an error survive the way over the wire, and that a
// cause never leaves the process: causes are for the log.
//
// Reasons are UPPER_SNAKE and listed in docs/errors.md.
package fault

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
)

// Kind says what the caller can do about an error. The zero value is Internal.
type Kind uint8

// The kinds and the gRPC code each becomes.
const (
	Internal        Kind = iota // INTERNAL: our own mistake; the peer learns nothing but a request id
	InvalidArgument             // INVALID_ARGUMENT: change the request
	NotFound                    // NOT_FOUND
	AlreadyExists               // ALREADY_EXISTS
	Conflict                    // ABORTED: read again, decide again
	Precondition                // FAILED_PRECONDITION: something else must change first
	Unauthenticated             // UNAUTHENTICATED: we do not know who calls
	Denied                      // PERMISSION_DENIED: we know, and the answer is no
	Exhausted                   // RESOURCE_EXHAUSTED: wait RetryAfter
	Transient                   // UNAVAILABLE: the same call may succeed later
	Permanent                   // FAILED_PRECONDITION: retrying will never help
)

var kindNames = [...]string{
	"internal", "invalid argument", "not found", "already exists", "conflict", "precondition",
	"unauthenticated", "denied", "exhausted", "transient", "permanent",
}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Error is an error with a kind. Message and Meta are sent to the peer; Cause
// is not. Field is the path of the request field at fault, for InvalidArgument.
type Error struct {
	Kind       Kind
	Reason     string
	Message    string
	Field      string
	Meta       map[string]string
	RetryAfter time.Duration
	Cause      error
}

// New makes an error. A %w in format sets Cause; when it stands at the end, as
// in "asking the CA: %w", the cause's text is left out of Message.
func New(kind Kind, reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{Kind: kind, Reason: reason, Message: err.Error()}
	if e.Cause = errors.Unwrap(err); e.Cause != nil {
		e.Message = strings.TrimSuffix(strings.TrimSuffix(e.Message, e.Cause.Error()), ": ")
	}
	return e
}

// Invalid says that a field of the request is wrong. Reason is INVALID_FIELD.
func Invalid(field, format string, args ...any) *Error {
	e := New(InvalidArgument, ReasonInvalidField, format, args...)
	e.Field = field
	return e
}

// Error gives field, message and cause in one line.
func (e *Error) Error() string {
	text := e.text()
	if e.Cause == nil {
		return text
	}
	if text == "" {
		return e.Cause.Error()
	}
	return text + ": " + e.Cause.Error()
}

// text is what the peer may read.
func (e *Error) text() string {
	if e.Field != "" {
		return e.Field + ": " + e.Message
	}
	return e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is matches another *Error by Kind and, where the target names one, Reason:
// errors.Is(err, &fault.Error{Kind: fault.NotFound}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && e.Kind == t.Kind && (t.Reason == "" || t.Reason == e.Reason)
}

// With gives a copy of the error with one more metadata entry.
func (e *Error) With(key, value string) *Error {
	c := *e
	c.Meta = maps.Clone(e.Meta)
	if c.Meta == nil {
		c.Meta = map[string]string{}
	}
	c.Meta[key] = value
	return &c
}

// After gives a copy of the error that asks the caller to wait d.
func (e *Error) After(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// KindOf is the kind of Of(err). Do not ask for nil: the answer is Internal.
func KindOf(err error) Kind {
	if e := Of(err); e != nil {
		return e.Kind
	}
	return Internal
}
