package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Told is what an agent is told of one assignment.
type Told struct {
	ID          string
	Generation  int64
	Attempt     int32
	Spec        rollout.Spec
	Chain       [][]byte
	CSRReceived bool
	Withdrawn   bool
	Trace       trace.Link // of what it is told, if that is under way
	revision    int64
}

// record is one row.
type record struct {
	rollout.Assignment
	told Told

	requestNext  time.Time
	requestTries int
	requestSent  bool
}

const assignmentColumns = `id, deployment, spec, generation, attempt, state, fingerprint, not_before, not_after, csr, served, address,
	previous, replaces, reason, message, failures, next_attempt, renew_at, renew_by, renew_reason, renewed_at, quick_renews, updated, trace, trace_span, trace_parent, trace_begun,
	request_next, request_tries, request_sent, told_revision, told_generation, told_attempt, told_spec, told_chain, told_csr`

type scanner interface{ Scan(...any) error }

func scanRecord(row scanner) (record, error) {
	var r record
	var spec, toldSpec string
	var state string
	var chain []byte
	var notBefore, notAfter, next, at, by, renewed, updated, requestNext, begun int64
	err := row.Scan(&r.ID, &r.Deployment, &spec, &r.Generation, &r.Attempt, &state, &r.Certificate.Fingerprint, &notBefore, &notAfter, &r.CSR,
		&r.Served, &r.Address, &r.Previous, &r.Replaces, &r.Reason, &r.Message, &r.Failures, &next, &at, &by, &r.Renewal.Reason, &renewed,
		&r.QuickRenews, &updated, &r.Trace, &r.Span.ID, &r.Span.Parent, &begun, &requestNext, &r.requestTries, &r.requestSent,
		&r.told.revision, &r.told.Generation, &r.told.Attempt, &toldSpec, &chain, &r.told.CSRReceived)
	if err != nil {
		return record{}, err
	}
	r.State = rollout.State(state)
	r.Certificate.NotBefore, r.Certificate.NotAfter = db.Time(notBefore), db.Time(notAfter)
	r.NextAttempt, r.Renewal.At, r.Renewal.By = db.Time(next), db.Time(at), db.Time(by)
	r.Span.Begun = db.Time(begun)
	r.RenewedAt, r.Updated, r.requestNext = db.Time(renewed), db.Time(updated), db.Time(requestNext)
	if r.Spec, err = decodeSpec(spec); err != nil {
		return record{}, err
	}
	if r.told.Spec, err = decodeSpec(toldSpec); err != nil {
		return record{}, err
	}
	if r.told.Chain, err = splitDER(chain); err != nil {
		return record{}, err
	}
	r.told.ID, r.told.Withdrawn = r.ID, r.State == rollout.Withdrawn
	if r.told.Generation == r.Generation && r.told.Attempt == r.Attempt {
		r.told.Trace = linkOf(r.Assignment)
	}
	if r.Certificate.Fingerprint != "" {
		r.Chain = r.told.Chain
	}
	return r, nil
}

func (r *record) values() []any {
	return []any{r.ID, r.Deployment, encodeSpec(r.Spec), r.Generation, r.Attempt, string(r.State), r.Certificate.Fingerprint,
		db.FromTime(r.Certificate.NotBefore), db.FromTime(r.Certificate.NotAfter), r.CSR, r.Served, r.Address, r.Previous, r.Replaces,
		r.Reason, r.Message, r.Failures, db.FromTime(r.NextAttempt), db.FromTime(r.Renewal.At), db.FromTime(r.Renewal.By), r.Renewal.Reason,
		db.FromTime(r.RenewedAt), r.QuickRenews, db.FromTime(r.Updated), r.Trace, r.Span.ID, r.Span.Parent, db.FromTime(r.Span.Begun), db.FromTime(r.requestNext), r.requestTries, r.requestSent,
		r.told.revision, r.told.Generation, r.told.Attempt, r.told.spec(), joinDER(r.told.Chain), r.told.CSRReceived}
}

func (t Told) spec() string {
	if t.revision == 0 {
		return ""
	}
	return encodeSpec(t.Spec)
}

func (t *txn) insert(ctx context.Context, r *record) error {
	var args []any
	values := db.In(&args, append(r.values(), r.Spec.Target.Host, r.Spec.Target.Name))
	_, err := t.Exec(ctx, `INSERT INTO assignment (`+assignmentColumns+`, host, target) VALUES `+values, args...)
	if err != nil {
		return fmt.Errorf("storing assignment %s: %w", r.ID, err)
	}
	return nil
}

// update is the compare-and-swap: it fails unless the row is still where it was read.
func (t *txn) update(ctx context.Context, r *record, was rollout.Assignment) error {
	args := []any{string(was.State), was.Generation, was.Attempt, r.ID}
	values := db.In(&args, r.values())
	ok, err := db.Changed(t.Exec(ctx, `UPDATE assignment SET (`+assignmentColumns+`) = `+values+`
		WHERE state = $1 AND generation = $2 AND attempt = $3 AND id = $4`, args...))
	if err != nil {
		return fmt.Errorf("storing assignment %s: %w", r.ID, err)
	}
	if !ok {
		return fault.New(fault.Conflict, "WRONG_STATE", "assignment %s has moved on meanwhile", r.ID)
	}
	return nil
}

// place is an assignment and the host that guards it.
type place struct{ host, id string }

// lock reads an assignment and keeps it from changing until the transaction ends. One on another host is not found.
func (t *txn) lock(ctx context.Context, p place) (record, error) {
	if err := t.lockHost(ctx, p.host); err != nil {
		return record{}, err
	}
	id := p.id
	r, err := scanRecord(t.QueryRow(ctx, `SELECT `+assignmentColumns+` FROM assignment WHERE id = $1 AND host = $2`, id, p.host))
	if errors.Is(err, sql.ErrNoRows) {
		return record{}, noAssignment(id)
	}
	if err != nil {
		return record{}, fmt.Errorf("reading assignment %s: %w", id, err)
	}
	return r, nil
}

func noAssignment(id string) error {
	return fault.New(fault.NotFound, "ASSIGNMENT_NOT_FOUND", "no assignment %q", id)
}

// advance makes a step of the machine: state, what the agent is told, event.
func (t *txn) advance(ctx context.Context, r *record, s rollout.Step, why string) error {
	was := r.Assignment
	s.Pause = t.pause
	if err := r.Advance(s, t.now); err != nil {
		return err
	}
	t.trace(ctx, r, was, s.Event)
	if was.State == rollout.Requested && (s.Event == rollout.Plan || s.Event == rollout.Withdraw) {
		if err := t.cancelRequest(ctx, was.RequestID(), why); err != nil {
			return err
		}
	}
	if r.State == rollout.Requested {
		// Whoever stores the CSR speaks to the issuer at once; others leave it alone for a while.
		r.requestNext, r.requestTries, r.requestSent = t.now.Add(t.s.c.Claim), 0, false
		t.requests = append(t.requests, r.ID)
	}
	if err := t.tell(ctx, r, s.Event); err != nil {
		return err
	}
	if err := t.update(ctx, r, was); err != nil {
		return err
	}
	t.deployments[r.Deployment] = true
	return t.emitAssignment(ctx, r.Assignment, why)
}

// tell brings what the agent is told up to date with a step. A plan tells it nothing: it keeps the old generation until the
// turn of the new one comes.
func (t *txn) tell(ctx context.Context, r *record, e rollout.Event) error {
	switch e {
	case rollout.Assign, rollout.RetryRequest:
		r.told.Generation, r.told.Attempt, r.told.Spec = r.Generation, r.Attempt, r.Spec
		r.told.Chain, r.told.CSRReceived = nil, false
	case rollout.RetryInstall:
		r.told.Attempt = r.Attempt
	case rollout.Issue:
		r.told.Chain = r.Chain
	case rollout.Withdraw:
		if r.told.revision == 0 {
			return nil
		}
	case rollout.TakeCSR:
		r.told.CSRReceived = true // the agent has the answer to its call
		return nil
	case rollout.Plan, rollout.Serve, rollout.Install, rollout.Fail:
		return nil
	}
	revision, err := t.bump(ctx, r.Spec.Target.Host)
	r.told.revision = revision
	return err
}

// Assignment reads one.
func (s *Store) Assignment(ctx context.Context, id string) (rollout.Assignment, error) {
	var r record
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		var err error
		r, err = scanRecord(t.QueryRow(ctx, `SELECT `+assignmentColumns+` FROM assignment WHERE id = $1`, id))
		if errors.Is(err, sql.ErrNoRows) {
			return noAssignment(id)
		}
		return err
	})
	return r.Assignment, err
}

// AssignmentFilter narrows a list; empty fields do not.
type AssignmentFilter struct {
	Deployment string
	Host       string
	States     []rollout.State
	After      string // id of the last one before
	Limit      int
}

// ListAssignments lists by id. Without a wish for states the withdrawn are left out.
func (s *Store) ListAssignments(ctx context.Context, f AssignmentFilter) ([]rollout.Assignment, error) {
	var list []rollout.Assignment
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		args := []any{f.After, f.Limit}
		where := `id > $1`
		if f.Deployment != "" {
			args = append(args, f.Deployment)
			where += fmt.Sprintf(` AND deployment = $%d`, len(args))
		}
		if f.Host != "" {
			args = append(args, f.Host)
			where += fmt.Sprintf(` AND host = $%d`, len(args))
		}
		if len(f.States) > 0 {
			where += ` AND state IN ` + db.In(&args, stateStrings(f.States))
		} else {
			where += ` AND state <> 'withdrawn'`
		}
		list, err = t.assignments(ctx, where+` ORDER BY id LIMIT $2`, args...)
		return err
	})
	return list, err
}

func stateStrings(states []rollout.State) []string {
	out := make([]string, len(states))
	for i, s := range states {
		out[i] = string(s)
	}
	return out
}

func (t *txn) records(ctx context.Context, where string, args ...any) ([]record, error) {
	rows, err := t.Query(ctx, `SELECT `+assignmentColumns+` FROM assignment WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("reading assignments: %w", err)
	}
	defer rows.Close()
	var list []record
	for rows.Next() {
		r, err := scanRecord(rows)
		if err != nil {
			return nil, fmt.Errorf("reading assignments: %w", err)
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

func (t *txn) assignments(ctx context.Context, where string, args ...any) ([]rollout.Assignment, error) {
	records, err := t.records(ctx, where, args...)
	list := make([]rollout.Assignment, len(records))
	for i, r := range records {
		list[i] = r.Assignment
	}
	return list, err
}

// places finds assignments, in the order in which they are to be locked.
func (t *txn) places(ctx context.Context, where string, args ...any) ([]place, error) {
	rows, err := t.Query(ctx, `SELECT host, id FROM assignment WHERE `+where+` ORDER BY host, id`, args...)
	if err != nil {
		return nil, fmt.Errorf("looking for assignments: %w", err)
	}
	defer rows.Close()
	var list []place
	for rows.Next() {
		var p place
		if err := rows.Scan(&p.host, &p.id); err != nil {
			return nil, fmt.Errorf("looking for assignments: %w", err)
		}
		list = append(list, p)
	}
	return list, rows.Err()
}

// decide computes when the certificate is to be renewed, by the deployment's rule and the CA's window.
func (t *txn) decide(ctx context.Context, a rollout.Assignment, c rollout.Certificate) (renewal.Decision, error) {
	in := renewal.Input{Assignment: a.ID, Fingerprint: c.Fingerprint, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		RenewedAt: a.RenewedAt, Quick: a.QuickRenews}
	var before int64
	err := t.QueryRow(ctx, `SELECT renew_before, renew_disabled FROM deployment WHERE name = $1`, a.Deployment).Scan(&before, &in.Rule.Disabled)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return renewal.Decision{}, fmt.Errorf("reading the renewal rule of %s: %w", a.Deployment, err)
	}
	in.Rule.Before = duration(before)
	var start, end, revoked int64
	err = t.QueryRow(ctx, `SELECT starts, ends, revoked FROM renewal_window WHERE fingerprint = $1`, c.Fingerprint).Scan(&start, &end, &revoked)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return renewal.Decision{}, fmt.Errorf("reading the renewal window of %s: %w", c.Fingerprint, err)
	}
	in.Window, in.Revoked = renewal.Window{Start: db.Time(start), End: db.Time(end)}, db.Time(revoked)
	d := renewal.Decide(in, t.now)
	d.At, d.By = d.At.Truncate(time.Microsecond), d.By.Truncate(time.Microsecond)
	return d, nil
}

// redecide brings the decision up to date after its rule or window changed, or after a pause.
func (t *txn) redecide(ctx context.Context, p place) error {
	r, err := t.lock(ctx, p)
	if err != nil {
		return err
	}
	if r.Certificate.Fingerprint == "" || r.State == rollout.Withdrawn {
		return nil
	}
	d, err := t.decide(ctx, r.Assignment, r.Certificate)
	if err != nil {
		return err
	}
	if sameDecision(d, r.Renewal, t.now) {
		return nil
	}
	r.Renewal = d
	if err := t.update(ctx, &r, r.Assignment); err != nil {
		return err
	}
	t.deployments[r.Deployment] = true
	if r.Good() {
		return t.emitAssignmentAs(ctx, "renewal_decided", r.Assignment, d.Reason)
	}
	return nil
}

// sameDecision takes two moments that are both past for the same.
func sameDecision(a, b renewal.Decision, now time.Time) bool {
	if a.Due(now) && b.Due(now) {
		return true
	}
	return a.At.Equal(b.At) && a.By.Equal(b.By) && a.Reason == b.Reason
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
