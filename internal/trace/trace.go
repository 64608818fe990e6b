// Package trace joins what follows from one cause, over processes and restarts: the trace, the span a piece of work stands
// in, and the id of the call.
//
// It guarantees that ids have one form each (those of W3C Trace Context; a request id of at most 64 plain characters), so
// that they can stand in logs, headers, records and databases as they are; that a log line written with a context names
// them; and that a process which records no spans pays nothing but the ids. It knows no exporter: who records spans hands in
// a Recorder. A span carries names, ids and states, never a secret.
package trace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
)

const (
	traceLen   = 32 // hex digits
	spanLen    = 16
	maxRequest = 64
)

// Link is a place in a trace, in lower-case hex. Without a Span it is a trace whose first span is still to come.
type Link struct {
	Trace string // 32 digits
	Span  string // 16 digits or ""
}

// New begins a trace.
func New() Link { return Link{Trace: random(traceLen)} }

// NewSpan is the id of a span to come.
func NewSpan() string { return random(spanLen) }

// NewRequest is the id of a call that came without one.
func NewRequest() string { return random(traceLen) }

func random(digits int) string {
	b := make([]byte, digits/2)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Parse reads a traceparent header. ok is false for what is not one of version 00 to fe.
func Parse(s string) (l Link, ok bool) {
	parts := strings.SplitN(s, "-", 5)
	if len(parts) < 4 || len(parts[0]) != 2 || !isHex(parts[0]) || parts[0] == "ff" || len(parts[3]) != 2 || !isHex(parts[3]) {
		return Link{}, false
	}
	if len(parts) > 4 && parts[0] == "00" {
		return Link{}, false
	}
	l = Link{Trace: parts[1], Span: parts[2]}
	return l, ValidTrace(l.Trace) && ValidSpan(l.Span)
}

// String is the traceparent header of a link with a span. All is marked as sampled: what is kept is decided by the trace's id.
func (l Link) String() string { return "00-" + l.Trace + "-" + l.Span + "-01" }

// ValidTrace says whether s is the id of a trace.
func ValidTrace(s string) bool { return len(s) == traceLen && isHex(s) && strings.Trim(s, "0") != "" }

// ValidSpan says whether s is the id of a span.
func ValidSpan(s string) bool { return len(s) == spanLen && isHex(s) && strings.Trim(s, "0") != "" }

// ValidRequest says whether s can be the id of a call: 1 to 64 letters, digits and . _ -
func ValidRequest(s string) bool {
	if s == "" || len(s) > maxRequest {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

type (
	linkKey     struct{}
	requestKey  struct{}
	recorderKey struct{}
)

// With puts ctx at a place in a trace. A malformed trace is left out, and so is a malformed span.
func With(ctx context.Context, l Link) context.Context {
	if !ValidTrace(l.Trace) {
		return ctx
	}
	if !ValidSpan(l.Span) {
		l.Span = ""
	}
	return context.WithValue(ctx, linkKey{}, l)
}

// Follow is With for a traceparent; one that is none leaves ctx as it is.
func Follow(ctx context.Context, parent string) context.Context {
	l, _ := Parse(parent)
	return With(ctx, l)
}

// Of is the place of ctx, the zero Link when it has none.
func Of(ctx context.Context) Link {
	l, _ := ctx.Value(linkKey{}).(Link)
	return l
}

// ID is the trace of ctx, "" when it has none.
func ID(ctx context.Context) string { return Of(ctx).Trace }

// WithRequest names the call that is being served.
func WithRequest(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// Request is the id of the call that ctx belongs to, "" outside of one.
func Request(ctx context.Context) string {
	s, _ := ctx.Value(requestKey{}).(string)
	return s
}
