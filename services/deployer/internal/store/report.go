package store

import (
	"context"
	"fmt"
	"strconv"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// The reasons of this package.
const (
	ReasonCSRRefused  = "CSR_REFUSED"
	ReasonCSRConflict = "CSR_CONFLICT"
	ReasonStale       = "STALE_ATTEMPT"
)

// TakeCSR checks and stores an agent's CSR. The same one again is harmless; another one for the same attempt is
// fault.Conflict CSR_CONFLICT; one that is not what was assigned is refused with CSR_REFUSED, recorded, and ends the attempt.
func (s *Store) TakeCSR(ctx context.Context, host, id string, generation int64, attempt int32, der []byte, steps ...AgentStep) error {
	var refused error
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		refused = nil
		r, err := t.lock(ctx, place{host: host, id: id})
		if err != nil {
			return err
		}
		if r.Generation != generation || r.Attempt != attempt || r.State == rollout.Withdrawn || r.State == rollout.Planned {
			return fault.New(fault.Conflict, ReasonStale, "assignment %s is at generation %d, attempt %d", id, r.Generation, r.Attempt)
		}
		if r.CSR != nil {
			if string(r.CSR) == string(der) {
				return nil
			}
			return fault.New(fault.Conflict, ReasonCSRConflict, "another CSR was taken for this attempt already")
		}
		if r.State != rollout.Assigned {
			return fault.New(fault.Conflict, ReasonStale, "this attempt at assignment %s is over", id)
		}
		t.agentSpans(r.Assignment, steps)
		if refused = checkCSR(der, r.Spec.Wanted); refused == nil {
			return t.advance(ctx, &r, rollout.Step{Event: rollout.TakeCSR, CSR: der}, "the agent handed in a CSR")
		}
		return t.refuseCSR(ctx, &r, refused)
	})
	if err != nil {
		return s.trespass(ctx, host, "assignment", id, err)
	}
	return refused
}

// checkCSR holds a CSR against what was assigned.
func checkCSR(der []byte, want rollout.Wanted) error {
	csr, err := pki.CheckCSR(der)
	refuse := func(format string, args ...any) error {
		f := fault.New(fault.InvalidArgument, ReasonCSRRefused, format, args...)
		f.Field = "csr"
		return f
	}
	switch {
	case err != nil:
		return refuse("%v", err)
	case csr.KeyType != want.KeyType:
		return refuse("its key is %s, assigned is %s", csr.KeyType, want.KeyType)
	case !want.Names.Contains(csr.Names):
		return refuse("it asks for %v, assigned is %v", csr.Names.Strings(), want.Names.Strings())
	case !csr.Names.Equal(want.Names):
		return refuse("it asks for %v only, assigned is %v", csr.Names.Strings(), want.Names.Strings())
	}
	return nil
}

func (t *txn) refuseCSR(ctx context.Context, r *record, refused error) error {
	message := fault.Of(refused).Message
	err := t.emit(ctx, fact{
		kind: "csr.refused", subject: "assignments/" + r.ID, reason: message, result: eventv1.Result_RESULT_REFUSED,
		facts: map[string]string{"host": r.Spec.Target.Host, "deployment": r.Deployment, "target": r.Spec.Target.Name,
			"generation": strconv.FormatInt(r.Generation, 10), "attempt": strconv.Itoa(int(r.Attempt))},
	}, nil)
	if err != nil {
		return err
	}
	return t.advance(ctx, r, rollout.Step{Event: rollout.Fail, Reason: ReasonCSRRefused, Message: message}, "the CSR was refused")
}

// TakeReport stores an agent's report, once per report id, and does what it says. A report about a generation or attempt that
// is over is recorded and changes nothing.
func (s *Store) TakeReport(ctx context.Context, host string, in rollout.Report, steps ...AgentStep) error {
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		r, err := t.lock(ctx, place{host: host, id: in.Assignment})
		if err != nil {
			return err
		}
		fresh, err := db.Changed(t.Exec(ctx, `INSERT INTO report (host, id, assignment, generation, attempt, outcome, received)
			VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
			host, in.ID, in.Assignment, in.Generation, in.Attempt, string(in.Outcome), db.FromTime(t.now)))
		if err != nil {
			return fmt.Errorf("storing report %s: %w", in.ID, err)
		}
		if !fresh {
			return nil
		}
		v := rollout.Judge(r.Assignment, in)
		switch {
		case v.Stale:
			return t.emitStale(ctx, r, in)
		case v.Event == "":
			return nil
		case r.State == rollout.Requested:
			if err := t.cancelRequest(ctx, r.RequestID(), "the agent gave up: "+v.Reason); err != nil {
				return err
			}
		}
		t.agentSpans(r.Assignment, steps)
		return t.advance(ctx, &r, rollout.Step{Event: v.Event, Served: in.Served, Address: in.Address, Reason: v.Reason, Message: v.Message},
			"the agent reported "+string(in.Outcome))
	})
	return s.trespass(ctx, host, "assignment", in.Assignment, err)
}

func (t *txn) emitStale(ctx context.Context, r record, in rollout.Report) error {
	return t.emit(ctx, fact{
		kind: "report.stale", subject: "assignments/" + r.ID, reason: in.Reason, result: eventv1.Result_RESULT_REFUSED,
		facts: map[string]string{
			"host": r.Spec.Target.Host, "deployment": r.Deployment, "target": r.Spec.Target.Name, "outcome": string(in.Outcome), "served": in.Served,
			"generation": strconv.FormatInt(in.Generation, 10), "attempt": strconv.Itoa(int(in.Attempt)),
			"current_generation": strconv.FormatInt(r.Generation, 10), "current_attempt": strconv.Itoa(int(r.Attempt)), "state": string(r.State),
		},
	}, nil)
}
