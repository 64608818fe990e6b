package trace

import (
	"context"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Kind says which side of a call a span is.
type Kind int

// The kinds.
const (
	Internal Kind = iota
	Server
	Client
	Consumer
)

// Span is a piece of work that has ended.
type Span struct {
	Link              // its own place
	Parent     string // span id, "" for the first of its trace
	Name       string // of a small set: ids stand in Attributes
	Kind       Kind
	Begun      time.Time
	Ended      time.Time
	Attributes []Attribute
	Failure    string // why it failed: a code or a reason; "" when it did not
}

// Attribute is one fact about a span.
type Attribute struct{ Key, Value string }

// Recorder takes spans that have ended; nil takes none. It must not wait.
type Recorder func(Span)

// Record gives it a span; a nil Recorder drops it.
func (r Recorder) Record(s Span) {
	if r != nil && ValidTrace(s.Trace) && ValidSpan(s.Span) {
		r(s)
	}
}

// WithRecorder has what is begun under ctx recorded.
func WithRecorder(ctx context.Context, r Recorder) context.Context {
	if r == nil {
		return ctx
	}
	return context.WithValue(ctx, recorderKey{}, r)
}

// RecorderOf is the recorder of ctx, nil when nothing is recorded.
func RecorderOf(ctx context.Context) Recorder {
	r, _ := ctx.Value(recorderKey{}).(Recorder)
	return r
}

// Active is a span under way; nil is one that is not recorded.
type Active struct {
	span   Span
	record Recorder
}

// Begin begins a span under the place of ctx and gives a context whose place it is. Where nothing is recorded it gives ctx
// back and no span.
func Begin(ctx context.Context, name string, attributes ...Attribute) (context.Context, *Active) {
	return BeginKind(ctx, Internal, name, attributes...)
}

// BeginKind is Begin for one side of a call.
func BeginKind(ctx context.Context, kind Kind, name string, attributes ...Attribute) (context.Context, *Active) {
	r := RecorderOf(ctx)
	if r == nil {
		return ctx, nil
	}
	at := Of(ctx)
	if at.Trace == "" {
		at = New()
	}
	a := &Active{record: r, span: Span{Link: Link{Trace: at.Trace, Span: NewSpan()}, Parent: at.Span, Name: name, Kind: kind, Begun: time.Now(), Attributes: attributes}}
	return With(ctx, a.span.Link), a
}

// Set adds a fact.
func (a *Active) Set(key, value string) {
	if a != nil {
		a.span.Attributes = append(a.span.Attributes, Attribute{key, value})
	}
}

// Failure is what a span says of an error: its reason, since its text may hold what no trace may.
func Failure(err error) string {
	if err == nil {
		return ""
	}
	return fault.Of(err).Reason
}

// End ends and records the span. failure is a code or a reason, "" for none.
func (a *Active) End(failure string) {
	if a == nil {
		return
	}
	a.span.Ended, a.span.Failure = time.Now(), failure
	a.record.Record(a.span)
}
