package store

import (
	"context"
	"strconv"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

// fact is an event in short.
type fact struct {
	kind    string // after "deployer."
	subject string
	reason  string
	result  eventv1.Result
	facts   map[string]string
}

func (t *txn) emit(ctx context.Context, f fact, fill func(*eventv1.Event)) error {
	e := &eventv1.Event{
		Type: "deployer." + f.kind, Subject: f.subject, Reason: f.reason, Result: f.result,
		Facts: f.facts, Time: timestamppb.New(t.now),
	}
	if e.Result == eventv1.Result_RESULT_UNSPECIFIED {
		e.Result = eventv1.Result_RESULT_SUCCEEDED
	}
	for k, v := range e.Facts {
		if v == "" {
			delete(e.Facts, k)
		}
	}
	if fill != nil {
		fill(e)
	}
	return event.Emit(ctx, t.Tx, e)
}

func (t *txn) emitAssignment(ctx context.Context, a rollout.Assignment, why string) error {
	return t.emitAssignmentAs(ctx, string(a.State), a, why)
}

func (t *txn) emitAssignmentAs(ctx context.Context, what string, a rollout.Assignment, why string) error {
	f := fact{
		kind: "assignment." + what, subject: "assignments/" + a.ID, reason: why,
		facts: map[string]string{
			"deployment": a.Deployment, "identity": a.Spec.Wanted.Identity, "profile": a.Spec.Wanted.Profile,
			"host": a.Spec.Target.Host, "target": a.Spec.Target.Name, "connector": a.Spec.Target.Connector,
			"generation": strconv.FormatInt(a.Generation, 10), "attempt": strconv.Itoa(int(a.Attempt)),
			"fingerprint": a.Certificate.Fingerprint, "previous": a.Previous,
		},
	}
	switch a.State {
	case rollout.Failed:
		f.result = eventv1.Result_RESULT_FAILED
		f.facts["reason"], f.facts["message"] = a.Reason, a.Message
		f.facts["next_attempt"] = stamp(a.NextAttempt)
	case rollout.Requested:
		f.facts["request_id"] = a.RequestID()
	case rollout.Issued:
		f.facts["not_after"], f.facts["renew_at"], f.facts["renew_reason"] = stamp(a.Certificate.NotAfter), stamp(a.Renewal.At), a.Renewal.Reason
	case rollout.Served, rollout.Installed:
		f.facts["served"], f.facts["address"] = a.Served, a.Address
	case rollout.Planned, rollout.Assigned, rollout.Withdrawn:
	}
	return t.emit(ctx, f, func(e *eventv1.Event) {
		e.TraceId = a.Trace
		if trace.ID(ctx) != a.Trace { // else the span of the call that did it
			e.SpanId = a.Span.ID
		}
		changed := &eventv1.AssignmentChanged{
			Assignment: a.ID, Generation: a.Generation, Deployment: a.Deployment, Identity: a.Spec.Wanted.Identity,
			Host: a.Spec.Target.Host, Target: a.Spec.Target.Name, State: string(a.State),
			Fingerprint: a.Certificate.Fingerprint, Served: a.Served, Address: a.Address,
		}
		if !a.Renewal.By.IsZero() && a.State != rollout.Withdrawn {
			changed.RenewBy = timestamppb.New(a.Renewal.By)
		}
		e.Payload = &eventv1.Event_AssignmentChanged{AssignmentChanged: changed}
	})
}

func (t *txn) emitAgent(ctx context.Context, what string, a fleet.Agent, why string, facts map[string]string) error {
	f := fact{kind: "agent." + what, subject: "agents/" + a.Host, reason: why, facts: facts}
	return t.emit(ctx, f, func(e *eventv1.Event) {
		e.Payload = &eventv1.Event_AgentChanged{AgentChanged: &eventv1.AgentChanged{
			Host: a.Host, State: agentState(a.State), Version: a.Info.Version, Platform: a.Info.Platform,
		}}
	})
}

func agentState(s fleet.State) eventv1.AgentState {
	switch s {
	case fleet.Enrolled:
		return eventv1.AgentState_AGENT_STATE_ENROLLED
	case fleet.Locked:
		return eventv1.AgentState_AGENT_STATE_LOCKED
	case fleet.Removed:
		return eventv1.AgentState_AGENT_STATE_REMOVED
	}
	return eventv1.AgentState_AGENT_STATE_UNSPECIFIED
}
