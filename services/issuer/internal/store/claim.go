package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// Claim is a request that this process alone may move, until the claim runs out.
type Claim struct {
	Request      issuance.Request
	AuthorityUID string
	CSR          []byte
	Usages       []profile.Usage
	Lifetime     time.Duration
	Challenges   []issuance.Challenge // those not withdrawn
	Polls        int                  // looks without news in a row
	fence        int64
}

// Claim takes up to n requests that are due and that nobody holds, the longest waiting first, until then. holder names this
// process. Replicas compare the time with their own clocks: these must agree much better than a claim is long.
func (s *Store) Claim(ctx context.Context, holder string, until time.Time, n int) ([]*Claim, error) {
	var all []*Claim
	now := db.FromTime(s.now())
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		all = nil
		ids, err := claimable(ctx, tx, `SELECT id, fence FROM request WHERE next_attempt > 0 AND next_attempt <= $1 AND claimed_until <= $1
			ORDER BY next_attempt LIMIT $2`, now, n)
		if err != nil {
			return err
		}
		for _, one := range ids {
			won, err := db.Changed(tx.Exec(ctx, `UPDATE request SET claimed_by = $1, claimed_until = $2, fence = fence + 1 WHERE id = $3 AND fence = $4`,
				holder, db.FromTime(until), one.id, one.fence))
			if err != nil {
				return err
			}
			if !won {
				continue
			}
			c, err := readClaim(ctx, tx, one.id)
			if err != nil {
				return err
			}
			all = append(all, c)
		}
		return nil
	})
	return all, err
}

type claimableRow struct {
	id    string
	fence int64
}

func claimable(ctx context.Context, tx db.Tx, query string, args ...any) ([]claimableRow, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []claimableRow
	for rows.Next() {
		var one claimableRow
		if err := rows.Scan(&one.id, &one.fence); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

func readClaim(ctx context.Context, tx db.Tx, id string) (*Claim, error) {
	c := &Claim{}
	var usages string
	var lifetime int64
	var err error
	c.Request, err = scanRequest(tx.QueryRow(ctx, `SELECT `+requestColumns+`, r.authority_uid, r.csr, r.usages, r.lifetime, r.polls, r.fence FROM request r WHERE r.id = $1`, id),
		&c.AuthorityUID, &c.CSR, &usages, &lifetime, &c.Polls, &c.fence)
	if err != nil {
		return nil, err
	}
	c.Lifetime = duration(lifetime)
	if c.Usages, err = decodeUsages(usages); err != nil {
		return nil, fmt.Errorf("request %s: reading usages: %w", id, err)
	}
	c.Challenges, err = readChallenges(ctx, tx, id)
	return c, err
}

const challengeColumns = `id, request, authorization_url, url, domain, token, key_authorization, state, message, updated`

func scanChallenge(row scanner) (issuance.Challenge, error) {
	var c issuance.Challenge
	var updated int64
	err := row.Scan(&c.ID, &c.Request, &c.Authorization, &c.URL, &c.Domain, &c.Token, &c.KeyAuthorization, &c.State, &c.Message, &updated)
	c.Updated = db.Time(updated)
	return c, err
}

func readChallenges(ctx context.Context, tx db.Tx, request string) ([]issuance.Challenge, error) {
	rows, err := tx.Query(ctx, `SELECT `+challengeColumns+` FROM challenge WHERE request = $1 AND state <> $2 ORDER BY id`, request, string(issuance.Withdrawn))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []issuance.Challenge
	for rows.Next() {
		c, err := scanChallenge(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// NextDue is when Claim will next find something, zero when nothing waits.
func (s *Store) NextDue(ctx context.Context) (time.Time, error) {
	return s.earliest(ctx, `SELECT coalesce(min(CASE WHEN claimed_until > next_attempt THEN claimed_until ELSE next_attempt END), 0) FROM request WHERE next_attempt > 0`)
}

func (s *Store) earliest(ctx context.Context, query string) (time.Time, error) {
	var at int64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error { return tx.QueryRow(ctx, query).Scan(&at) })
	return db.Time(at), err
}

// ReleaseLeftovers frees what a process before this one held, where the database can be open in one process only.
func (s *Store) ReleaseLeftovers(ctx context.Context) error {
	if !s.db.Exclusive() {
		return nil
	}
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE request SET claimed_until = 0, fence = fence + 1 WHERE next_attempt > 0 AND claimed_until > 0`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE certificate SET claimed_until = 0, fence = fence + 1 WHERE window_next > 0 AND claimed_until > 0`)
		return err
	})
}

// Release gives a claim back without a change.
func (s *Store) Release(ctx context.Context, c *Claim) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		tx.Notify(TopicRequests)
		_, err := tx.Exec(ctx, `UPDATE request SET claimed_until = 0 WHERE id = $1 AND fence = $2`, c.Request.ID, c.fence)
		return err
	})
}

// Change is what becomes of a claimed request.
type Change struct {
	// Event moves it; empty: it stays where it is.
	Event issuance.Event
	Order issuance.Order
	// Reason and Message are the last trouble; empty: it is over.
	Reason, Message           string
	Attempts, Failures, Polls int
	// Next is when it is looked at again. It has no meaning once the request has ended.
	Next time.Time
	// Keep goes on under the same claim.
	Keep bool
	// Delayed tells the world of the trouble.
	Delayed bool

	Present []issuance.Challenge
	Again   []string
	Trigger []string
	Issued  *authority.Issued
	Adopted bool
	Dropped string // why "replaces" is left out from now on
}

// Apply makes a change, together with its events, and updates the claim. fault.Conflict CLAIM_LOST: the request was cancelled
// or taken over, and nothing was changed.
func (s *Store) Apply(ctx context.Context, c *Claim, ch Change) error {
	from, r := c.Request.State, c.Request
	if ch.Event != "" {
		var err error
		if r.State, err = issuance.Machine.Next(from, ch.Event); err != nil {
			return err
		}
	}
	r.Order, r.Reason, r.Message, r.Attempts, r.Failures = ch.Order, ch.Reason, ch.Message, ch.Attempts, ch.Failures
	r.NextAttempt, r.Updated = db.Time(db.FromTime(ch.Next)), db.Time(db.FromTime(s.now()))
	if r.State.Ended() {
		r.NextAttempt = time.Time{}
	}
	if ch.Issued != nil {
		r.Fingerprint, r.Chain = ch.Issued.Fingerprint, ch.Issued.Chain
	}
	var challenges []issuance.Challenge
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := s.move(ctx, tx, c, from, r, ch); err != nil {
			return err
		}
		if err := s.changeChallenges(ctx, tx, from, r, ch); err != nil {
			return err
		}
		if c.Request.Order.URL != "" && (r.State.Ended() || r.Order.URL == "") {
			if err := s.orderFree(ctx, tx, r.ID); err != nil {
				return err
			}
		}
		var err error
		if challenges, err = readChallenges(ctx, tx, r.ID); err != nil {
			return err
		}
		event.Hurry(tx) // the deployer presents challenges, and waits for the end
		return s.tell(ctx, tx, c, from, r, ch)
	})
	if err != nil {
		return fmt.Errorf("request %s: %w", r.ID, err)
	}
	c.Request, c.Polls, c.Challenges = r, ch.Polls, challenges
	if r.State.Ended() {
		Ended(ctx, r)
	}
	return nil
}

func (s *Store) move(ctx context.Context, tx db.Tx, c *Claim, from issuance.State, r issuance.Request, ch Change) error {
	release := ``
	if !ch.Keep {
		release = `, claimed_until = 0`
	}
	if r.State.Ended() {
		release += `, csr = NULL`
	}
	won, err := db.Changed(tx.Exec(ctx, `UPDATE request SET state = $1, order_url = $2, order_final = $3, order_cert = $4, order_plain = $5, order_count = $6,
		reason = $7, message = $8, attempts = $9, failures = $10, polls = $11, next_attempt = $12, updated = $13, fingerprint = $14`+release+`
		WHERE id = $15 AND fence = $16 AND state = $17`,
		string(r.State), r.Order.URL, r.Order.Finalize, r.Order.Certificate, r.Order.Plain, r.Order.Count,
		r.Reason, r.Message, r.Attempts, r.Failures, ch.Polls, db.FromTime(r.NextAttempt), db.FromTime(r.Updated), string(r.Fingerprint),
		r.ID, c.fence, string(from)))
	if db.Unique(err) {
		return fault.New(fault.Conflict, ReasonOrderTaken, "the CA gives the order %s, which another request for the same names has", r.Order.URL)
	}
	if err != nil {
		return err
	}
	if !won {
		return fault.New(fault.Conflict, ReasonClaimLost, "the request was cancelled, or taken over by another process")
	}
	return nil
}

// ReasonOrderTaken: the order is another request's. Two may try to take up the same lost one, and a CA may answer a second wish
// for the same names with the order of the first, as long as that is not finalized.
const ReasonOrderTaken = "ORDER_TAKEN"

// orderFree lets those go on that wait for the order of a request: it is over, or the request is.
func (s *Store) orderFree(ctx context.Context, tx db.Tx, id string) error {
	tx.Notify(TopicRequests)
	now := db.FromTime(s.now())
	_, err := tx.Exec(ctx, `UPDATE request SET next_attempt = $1 WHERE next_attempt > $1 AND reason = $2
		AND (authority_uid, names) = (SELECT authority_uid, names FROM request WHERE id = $3)`, now, ReasonOrderTaken, id)
	return err
}

func (s *Store) changeChallenges(ctx context.Context, tx db.Tx, from issuance.State, r issuance.Request, ch Change) error {
	now := db.FromTime(s.now())
	for _, p := range ch.Present {
		_, err := tx.Exec(ctx, `INSERT INTO challenge (`+challengeColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, '', $9)`,
			p.ID, p.Request, p.Authorization, p.URL, p.Domain, p.Token, p.KeyAuthorization, string(issuance.Presented), now)
		if err != nil {
			return err
		}
		if err := event.Emit(ctx, tx, challengePresented(r, p)); err != nil {
			return err
		}
	}
	for _, id := range ch.Again {
		c, err := s.moveChallenge(ctx, tx, id, issuance.PresentAgain, "")
		if err != nil {
			return err
		}
		if err := event.Emit(ctx, tx, challengePresented(r, c)); err != nil {
			return err
		}
	}
	for _, id := range ch.Trigger {
		if _, err := s.moveChallenge(ctx, tx, id, issuance.Trigger, ""); err != nil {
			return err
		}
	}
	if from == issuance.Ordered && r.State != issuance.Ordered {
		return s.withdraw(ctx, tx, r)
	}
	return nil
}

func (s *Store) moveChallenge(ctx context.Context, tx db.Tx, id string, e issuance.ChallengeEvent, message string) (issuance.Challenge, error) {
	c, err := scanChallenge(tx.QueryRow(ctx, `SELECT `+challengeColumns+` FROM challenge WHERE id = $1`, id))
	if err != nil {
		return c, fmt.Errorf("challenge %s: %w", id, err)
	}
	from := c.State
	if c.State, err = issuance.ChallengeMachine.Next(from, e); err != nil {
		return c, err
	}
	c.Message, c.Updated = message, db.Time(db.FromTime(s.now()))
	won, err := db.Changed(tx.Exec(ctx, `UPDATE challenge SET state = $1, message = $2, updated = $3 WHERE id = $4 AND state = $5`,
		string(c.State), c.Message, db.FromTime(c.Updated), id, string(from)))
	if err == nil && !won {
		err = fault.New(fault.Conflict, ReasonClaimLost, "the challenge moved meanwhile")
	}
	return c, err
}

// withdraw ends every challenge of a request that is still open.
func (s *Store) withdraw(ctx context.Context, tx db.Tx, r issuance.Request) error {
	open, err := readChallenges(ctx, tx, r.ID)
	if err != nil {
		return err
	}
	for _, c := range open {
		c, err := s.moveChallenge(ctx, tx, c.ID, issuance.Withdraw, c.Message)
		if err != nil {
			return err
		}
		if err := event.Emit(ctx, tx, challengeWithdrawn(r, c)); err != nil {
			return err
		}
	}
	return nil
}

// tell emits the events of the request itself.
func (s *Store) tell(ctx context.Context, tx db.Tx, c *Claim, from issuance.State, r issuance.Request, ch Change) error {
	if ch.Dropped != "" {
		e := requestFact("replaces_dropped", r, succeeded)
		e.Reason = ch.Dropped
		if err := event.Emit(ctx, tx, e); err != nil {
			return err
		}
	}
	if ch.Delayed && !r.State.Ended() {
		if err := event.Emit(ctx, tx, requestDelayed(r)); err != nil {
			return err
		}
	}
	if from == r.State {
		return nil
	}
	switch r.State {
	case issuance.Issued:
		if ch.Issued == nil {
			return errors.New("issued without a certificate")
		}
		if err := s.insertCertificate(ctx, tx, r, c.AuthorityUID, *ch.Issued); err != nil {
			return err
		}
		return event.Emit(ctx, tx, requestIssued(r, *ch.Issued))
	case issuance.Refused:
		e := requestEnded("refused", r, refused)
		e.Reason = r.Reason
		return event.Emit(ctx, tx, e)
	case issuance.Accepted: // ordered again: told as a delay
		return nil
	}
	e := requestFact(string(r.State), r, succeeded)
	if r.Order.URL != "" {
		e.Facts["order"] = r.Order.URL
	}
	if ch.Adopted {
		e.Facts["found_at_ca"] = "true"
	}
	return event.Emit(ctx, tx, e)
}

// ReportChallenge notes what the host of a challenge says. Telling the same twice, or too late, is no error. wait gives the
// pause before the host is asked again, by the number of failures in a row.
func (s *Store) ReportChallenge(ctx context.Context, id string, ready bool, message string, wait func(failures int) time.Duration) error {
	var err error
	for range reportTries {
		if err = s.reportChallenge(ctx, id, ready, message, wait); fault.KindOf(err) != fault.Conflict {
			return err
		}
	}
	return err
}

// reportTries is how often a report is looked at again because another came at the same moment.
const reportTries = 3

func (s *Store) reportChallenge(ctx context.Context, id string, ready bool, message string, wait func(failures int) time.Duration) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		c, err := scanChallenge(tx.QueryRow(ctx, `SELECT `+challengeColumns+` FROM challenge WHERE id = $1`, id))
		if noRows(err) {
			return fault.New(fault.NotFound, ReasonChallengeNotFound, "there is no challenge %q", id)
		}
		if err != nil {
			return err
		}
		e, what, result := issuance.Answered, "ready", succeeded
		if !ready {
			e, what, result = issuance.Unanswerable, "failed", failed
		}
		if _, err := issuance.ChallengeMachine.Next(c.State, e); err != nil {
			return nil //nolint:nilerr // told already, or no longer of interest
		}
		if c, err = s.moveChallenge(ctx, tx, id, e, message); err != nil {
			return err
		}
		r, err := scanRequest(tx.QueryRow(ctx, `SELECT `+requestColumns+` FROM request r WHERE r.id = $1`, c.Request))
		if err != nil {
			return err
		}
		if err := s.wake(ctx, tx, &r, ready, message, wait); err != nil {
			return err
		}
		return event.Emit(ctx, tx, challengeFact(what, r, c, result))
	})
}

// ReasonChallengeNotFound is given for a challenge id that was never presented; ReasonNotServed is the trouble of a request
// whose host cannot answer.
const (
	ReasonChallengeNotFound = "CHALLENGE_NOT_FOUND"
	ReasonNotServed         = "CHALLENGE_NOT_SERVED"
)

// wake takes the request from whoever works on it just now: he looked at the challenge as it was before, and would put off
// the next look. In this state nothing that he does at the CA is harmed by being done twice.
func (s *Store) wake(ctx context.Context, tx db.Tx, r *issuance.Request, ready bool, message string, wait func(int) time.Duration) error {
	if r.State != issuance.Ordered {
		return nil
	}
	now := s.now()
	if ready {
		tx.Notify(TopicRequests)
		_, err := tx.Exec(ctx, `UPDATE request SET next_attempt = $1, polls = 0, fence = fence + 1, claimed_until = 0 WHERE id = $2 AND state = $3`, db.FromTime(now), r.ID, string(issuance.Ordered))
		return err
	}
	r.Reason, r.Message = ReasonNotServed, "the host cannot answer the challenge: "+message
	r.NextAttempt = now.Add(wait(r.Failures))
	r.Attempts, r.Failures, r.Updated = r.Attempts+1, r.Failures+1, now
	_, err := tx.Exec(ctx, `UPDATE request SET next_attempt = $1, reason = $2, message = $3, attempts = $4, failures = $5, updated = $6, fence = fence + 1, claimed_until = 0
		WHERE id = $7 AND state = $8`,
		db.FromTime(r.NextAttempt), r.Reason, r.Message, r.Attempts, r.Failures, db.FromTime(now), r.ID, string(issuance.Ordered))
	if err != nil {
		return err
	}
	return event.Emit(ctx, tx, requestDelayed(*r))
}
