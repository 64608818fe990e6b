package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Request is an assignment whose CSR waits for the issuer.
type Request struct {
	Assignment rollout.Assignment
	Sent       bool // the issuer is known to have it
	Tries      int

	next time.Time // when it was to be spoken about, as it was read
}

// Request reads one; ok is false when the assignment does not wait for the issuer any more.
func (s *Store) Request(ctx context.Context, id string) (q Request, ok bool, err error) {
	err = s.read(ctx, func(ctx context.Context, t *txn) error {
		list, err := t.records(ctx, `id = $1 AND state = 'requested'`, id)
		if err == nil && len(list) == 1 {
			q, ok = Request{Assignment: list[0].Assignment, Sent: list[0].requestSent, Tries: list[0].requestTries, next: list[0].requestNext}, true
		}
		return err
	})
	return q, ok, err
}

// ClaimRequests gives the ids of requests that it is time to speak to the issuer about, and keeps other replicas off them
// for the claim's time.
func (s *Store) ClaimRequests(ctx context.Context, limit int) ([]string, error) {
	var due []string
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		due, err = t.strings(ctx, `SELECT id FROM assignment WHERE state = 'requested' AND request_next <= $1 ORDER BY request_next LIMIT $2`,
			db.FromTime(t.now), limit)
		return err
	})
	if err != nil || len(due) == 0 {
		return nil, err
	}
	var won []string
	err = s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		won = nil
		now := s.c.Now()
		for _, id := range due {
			ok, err := db.Changed(tx.Exec(ctx, `UPDATE assignment SET request_next = $1 WHERE id = $2 AND state = 'requested' AND request_next <= $3`,
				db.FromTime(now.Add(s.c.Claim)), id, db.FromTime(now)))
			if err != nil {
				return fmt.Errorf("claiming request of %s: %w", id, err)
			}
			if ok {
				won = append(won, id)
			}
		}
		return nil
	})
	return won, err
}

// ReleaseRequests gives claimed requests back, so that another process can take them up at once.
func (s *Store) ReleaseRequests(ctx context.Context, ids []string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		args := []any{db.FromTime(t.now)}
		_, err := t.Exec(ctx, `UPDATE assignment SET request_next = $1 WHERE state = 'requested' AND id IN `+db.In(&args, ids), args...)
		return err
	})
}

// PostponeRequest says when to speak to the issuer again, unless an event has asked for it since q was read.
func (s *Store) PostponeRequest(ctx context.Context, q Request, until time.Time, sent bool) error {
	return s.onRequest(ctx, q.Assignment, func(ctx context.Context, t *txn, r *record) error {
		if r.requestNext.Equal(q.next) {
			r.requestNext = until
		}
		r.requestTries, r.requestSent = q.Tries+1, sent
		return t.update(ctx, r, r.Assignment)
	})
}

// Issue stores the certificate of a request and gives it to the agent.
func (s *Store) Issue(ctx context.Context, a rollout.Assignment, c rollout.Certificate, chain [][]byte) error {
	return s.onRequest(ctx, a, func(ctx context.Context, t *txn, r *record) error {
		d, err := t.decide(ctx, r.Assignment, c)
		if err != nil {
			return err
		}
		return t.advance(ctx, r, rollout.Step{Event: rollout.Issue, Certificate: c, Chain: chain, Renewal: d}, "the issuer delivered")
	})
}

// FailRequest ends the attempt: the issuer will not deliver.
func (s *Store) FailRequest(ctx context.Context, a rollout.Assignment, reason, message string) error {
	return s.onRequest(ctx, a, func(ctx context.Context, t *txn, r *record) error {
		return t.advance(ctx, r, rollout.Step{Event: rollout.Fail, Reason: reason, Message: message}, "the issuer refused")
	})
}

// onRequest runs fn if the assignment still waits for the issuer in that generation and attempt.
func (s *Store) onRequest(ctx context.Context, a rollout.Assignment, fn func(context.Context, *txn, *record) error) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		r, err := t.lock(ctx, placeOf(a))
		if err != nil {
			return err
		}
		if r.State != rollout.Requested || r.Generation != a.Generation || r.Attempt != a.Attempt {
			return nil
		}
		return fn(ctx, t, &r)
	})
}

// RequestMoved notes within an event's transaction that the issuer has news of a request.
func (s *Store) RequestMoved(ctx context.Context, tx db.Tx, requestID string) error {
	id, generation, attempt, ok := rollout.ParseRequestID(requestID)
	if !ok {
		return nil
	}
	return s.within(ctx, tx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `UPDATE assignment SET request_next = $1 WHERE id = $2 AND generation = $3 AND attempt = $4 AND state = 'requested'`,
			db.FromTime(t.now), id, generation, attempt)
		return err
	})
}

// SetWindow stores the CA's advice within an event's transaction, and decides anew for those who use the certificate.
func (s *Store) SetWindow(ctx context.Context, tx db.Tx, fingerprint string, w renewal.Window) error {
	return s.within(ctx, tx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `INSERT INTO renewal_window (fingerprint, starts, ends, updated) VALUES ($1, $2, $3, $4)
			ON CONFLICT (fingerprint) DO UPDATE SET starts = excluded.starts, ends = excluded.ends, updated = excluded.updated`,
			fingerprint, db.FromTime(w.Start), db.FromTime(w.End), db.FromTime(t.now))
		if err != nil {
			return fmt.Errorf("storing the renewal window of %s: %w", fingerprint, err)
		}
		return t.redecideAll(ctx, `fingerprint = $1`, fingerprint)
	})
}

// SetRevoked notes within an event's transaction that a certificate was revoked, and decides anew for those who use it. Of
// several times the first counts.
func (s *Store) SetRevoked(ctx context.Context, tx db.Tx, fingerprint string, at time.Time) error {
	return s.within(ctx, tx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `INSERT INTO renewal_window (fingerprint, starts, ends, updated, revoked) VALUES ($1, 0, 0, $2, $3)
			ON CONFLICT (fingerprint) DO UPDATE SET revoked = excluded.revoked, updated = excluded.updated
			WHERE renewal_window.revoked = 0 OR renewal_window.revoked > excluded.revoked`,
			fingerprint, db.FromTime(t.now), db.FromTime(at))
		if err != nil {
			return fmt.Errorf("storing the revocation of %s: %w", fingerprint, err)
		}
		return t.redecideAll(ctx, `fingerprint = $1`, fingerprint)
	})
}

// DueRenewals lists assignments whose renewal should begin by now, the most overdue first.
func (s *Store) DueRenewals(ctx context.Context, limit int) ([]rollout.Assignment, error) {
	return s.due(ctx, `renew_at > 0 AND state IN ('served', 'installed', 'issued') AND renew_at <= $1 ORDER BY renew_at LIMIT $2`, limit)
}

// DueRetries lists failed assignments whose pause is over.
func (s *Store) DueRetries(ctx context.Context, limit int) ([]rollout.Assignment, error) {
	return s.due(ctx, `state = 'failed' AND next_attempt <= $1 ORDER BY next_attempt LIMIT $2`, limit)
}

func (s *Store) due(ctx context.Context, where string, limit int) ([]rollout.Assignment, error) {
	var list []rollout.Assignment
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		list, err = t.assignments(ctx, where, db.FromTime(t.now), limit)
		return err
	})
	return list, err
}

// BeginRenewal starts a new generation if renewal is due still, by the rule and the window as they are now.
func (s *Store) BeginRenewal(ctx context.Context, a rollout.Assignment) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		d, err := t.lockDeployment(ctx, a.Deployment)
		if err != nil {
			return err
		}
		r, err := t.lock(ctx, placeOf(a))
		if err != nil {
			return err
		}
		if r.Generation != a.Generation || !r.Good() && r.State != rollout.Issued {
			return nil
		}
		decision, err := t.decide(ctx, r.Assignment, r.Certificate)
		if err != nil {
			return err
		}
		if !decision.Due(t.now) {
			r.Renewal = decision
			return t.update(ctx, &r, r.Assignment)
		}
		r.QuickRenews = renewal.Quick(r.QuickRenews, r.RenewedAt, t.now)
		r.RenewedAt = t.now
		s := step(rollout.Plan)
		s.Spec = rollout.Spec{Wanted: d.Wanted, Target: r.Spec.Target}
		if err := t.advance(ctx, &r, s, "renewal is due: "+decision.Reason); err != nil {
			return err
		}
		return t.start(ctx, d)
	})
}

// Retry ends the pause of a failed assignment with a new attempt.
func (s *Store) Retry(ctx context.Context, a rollout.Assignment) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		r, err := t.lock(ctx, placeOf(a))
		if err != nil {
			return err
		}
		if r.State != rollout.Failed || r.NextAttempt.After(t.now) {
			return nil
		}
		return t.advance(ctx, &r, step(rollout.Retry(r.Assignment, t.now)), "the pause after "+r.Reason+" is over")
	})
}

// Redecide computes the renewal of up to limit assignments anew, from the id after on, and gives the last id, "" at the end.
// It makes up for a change that was missed.
func (s *Store) Redecide(ctx context.Context, after string, limit int) (string, error) {
	var list []rollout.Assignment
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		list, err = t.assignments(ctx, `id > $1 AND fingerprint <> '' AND state <> 'withdrawn' ORDER BY id LIMIT $2`, after, limit)
		return err
	})
	if err != nil || len(list) == 0 {
		return "", err
	}
	for _, a := range list {
		err := s.write(ctx, func(ctx context.Context, t *txn) error { return t.redecide(ctx, placeOf(a)) })
		if err != nil {
			return "", err
		}
	}
	return list[len(list)-1].ID, nil
}

// Intent is something the issuer is still to be told.
type Intent struct {
	Challenge string // id: report it
	Request   string // id: cancel it
	Ready     bool
	Message   string
	Tries     int
	Trace     trace.Link

	id, stamp string
}

const (
	challengeIntent = "challenge/"
	cancelIntent    = "cancel/"
)

func (t *txn) intend(ctx context.Context, id string, ready bool, message string) error {
	t.intents = true
	_, err := t.Exec(ctx, `INSERT INTO intent (id, stamp, ready, message, due, tries, created, traceparent) VALUES ($1, $2, $3, $4, $5, 0, $5, $6)
		ON CONFLICT (id) DO UPDATE SET stamp = excluded.stamp, ready = excluded.ready, message = excluded.message, due = excluded.due, tries = 0,
		traceparent = excluded.traceparent`,
		id, uuid.NewString(), ready, message, db.FromTime(t.now), header(trace.Of(ctx)))
	if err != nil {
		return fmt.Errorf("storing intent %s: %w", id, err)
	}
	return nil
}

func (t *txn) cancelRequest(ctx context.Context, requestID, why string) error {
	return t.intend(ctx, cancelIntent+requestID, false, why)
}

// ClaimIntents gives what it is time to tell the issuer, and keeps other replicas off it for the claim's time.
func (s *Store) ClaimIntents(ctx context.Context, limit int) ([]Intent, error) {
	var list []Intent
	err := s.read(ctx, func(ctx context.Context, t *txn) (err error) {
		list, err = t.dueIntents(ctx, limit)
		return err
	})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	var won []Intent
	err = s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		won = nil
		now := s.c.Now()
		for _, in := range list {
			ok, err := db.Changed(tx.Exec(ctx, `UPDATE intent SET due = $1 WHERE id = $2 AND stamp = $3 AND due <= $4`,
				db.FromTime(now.Add(s.c.Claim)), in.id, in.stamp, db.FromTime(now)))
			if err != nil {
				return fmt.Errorf("claiming intent %s: %w", in.id, err)
			}
			if ok {
				won = append(won, in)
			}
		}
		return nil
	})
	return won, err
}

func (t *txn) dueIntents(ctx context.Context, limit int) ([]Intent, error) {
	rows, err := t.Query(ctx, `SELECT id, stamp, ready, message, tries, traceparent FROM intent WHERE due <= $1 ORDER BY due LIMIT $2`, db.FromTime(t.now), limit)
	if err != nil {
		return nil, fmt.Errorf("reading intents: %w", err)
	}
	defer rows.Close()
	var list []Intent
	for rows.Next() {
		var in Intent
		var parent string
		if err := rows.Scan(&in.id, &in.stamp, &in.Ready, &in.Message, &in.Tries, &parent); err != nil {
			return nil, fmt.Errorf("reading intents: %w", err)
		}
		in.Trace, _ = trace.Parse(parent)
		in.Challenge, in.Request = cutIntent(in.id)
		list = append(list, in)
	}
	return list, rows.Err()
}

// FinishIntent forgets an intent that was carried out, unless it was rewritten meanwhile.
func (s *Store) FinishIntent(ctx context.Context, in Intent) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `DELETE FROM intent WHERE id = $1 AND stamp = $2`, in.id, in.stamp)
		return err
	})
}

// PostponeIntent says when to try again.
func (s *Store) PostponeIntent(ctx context.Context, in Intent, until time.Time) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `UPDATE intent SET due = $1, tries = $2 WHERE id = $3 AND stamp = $4`, db.FromTime(until), in.Tries+1, in.id, in.stamp)
		return err
	})
}
