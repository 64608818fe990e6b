package store

import (
	"context"
	"strconv"
	"time"

	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
)

// AgentStep is how long an agent took for a part of its work, by its own clock.
type AgentStep struct {
	Name   string // "agent key", "agent install", ...
	Begun  time.Time
	Ended  time.Time
	Failed bool
	Whole  bool // the others are parts of it
}

// linkOf is the place of an assignment's attempt in its trace.
func linkOf(a rollout.Assignment) trace.Link { return trace.Link{Trace: a.Trace, Span: a.Span.ID} }

// Trace is linkOf for who works on an assignment outside of the store.
func Trace(ctx context.Context, a rollout.Assignment) context.Context {
	return trace.With(ctx, linkOf(a))
}

// begin gives a generation its trace: the call's, or one of its own.
func begin(ctx context.Context, a *rollout.Assignment, now time.Time) {
	at := trace.Of(ctx)
	if at.Trace == "" {
		at = trace.New()
	}
	a.Trace = at.Trace
	a.Span = rollout.Span{ID: trace.NewSpan(), Parent: at.Span, Begun: now}
}

// trace begins and ends the span of an attempt with it.
func (t *txn) trace(ctx context.Context, r *record, was rollout.Assignment, e rollout.Event) {
	switch e {
	case rollout.Plan:
		if !was.Span.Begun.IsZero() {
			t.endSpan(was, "superseded")
		}
		begin(ctx, &r.Assignment, t.now)
	case rollout.RetryRequest, rollout.RetryInstall:
		r.Span.ID, r.Span.Begun = trace.NewSpan(), t.now
	case rollout.Serve, rollout.Install, rollout.Withdraw, rollout.Fail:
		if r.Span.Begun.IsZero() {
			return
		}
		failure := ""
		if e == rollout.Fail {
			failure = r.Reason
		}
		t.endSpan(r.Assignment, failure)
		r.Span.Begun = time.Time{}
	case rollout.Assign, rollout.TakeCSR, rollout.Issue:
	}
}

func (t *txn) endSpan(a rollout.Assignment, failure string) {
	t.spans = append(t.spans, trace.Span{
		Link: linkOf(a), Parent: a.Span.Parent, Name: "assignment", Begun: a.Span.Begun, Ended: t.now, Failure: failure, Attributes: attributes(a),
	})
}

func attributes(a rollout.Assignment) []trace.Attribute {
	return []trace.Attribute{
		{Key: "sallyport.assignment", Value: a.ID}, {Key: "sallyport.deployment", Value: a.Deployment},
		{Key: "sallyport.identity", Value: a.Spec.Wanted.Identity}, {Key: "sallyport.host", Value: a.Spec.Target.Host},
		{Key: "sallyport.target", Value: a.Spec.Target.Name}, {Key: "sallyport.generation", Value: strconv.FormatInt(a.Generation, 10)},
		{Key: "sallyport.attempt", Value: strconv.Itoa(int(a.Attempt))}, {Key: "sallyport.state", Value: string(a.State)},
		{Key: "sallyport.fingerprint", Value: a.Certificate.Fingerprint},
	}
}

// agentSpans puts what an agent did into its assignment's trace: whatever the agent says, into no other.
func (t *txn) agentSpans(a rollout.Assignment, steps []AgentStep) {
	parent := a.Span.ID
	for _, s := range steps {
		span := trace.Span{
			Link: trace.Link{Trace: a.Trace, Span: trace.NewSpan()}, Parent: parent, Name: s.Name, Begun: s.Begun, Ended: s.Ended,
			Attributes: []trace.Attribute{{Key: "sallyport.host", Value: a.Spec.Target.Host}, {Key: "sallyport.assignment", Value: a.ID}},
		}
		if s.Failed {
			span.Failure = "failed"
		}
		if s.Whole {
			parent = span.Span
		}
		t.spans = append(t.spans, span)
	}
}

// header is a link as it is stored with what is not an assignment, "" for none.
func header(l trace.Link) string {
	if l.Span == "" {
		return ""
	}
	return l.String()
}
