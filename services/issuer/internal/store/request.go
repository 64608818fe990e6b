package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// The reasons of what is asked of requests.
const (
	ReasonRequestNotFound = "REQUEST_NOT_FOUND"
	ReasonRequestReused   = "REQUEST_ID_REUSED"
	ReasonClaimLost       = "CLAIM_LOST"
)

// ErrStale says that the profile or the authority has changed since it was read: read it again and judge again.
var ErrStale = errors.New("profile or authority changed since they were read")

// Decision is a new request with what was decided about it: accepted (to be worked on), issued, or refused.
type Decision struct {
	Request issuance.Request // in its first state
	CSR     []byte
	// SubmitReason is why, in the submitter's words.
	SubmitReason string

	// What it was judged by; of no meaning for a request that is refused.
	AuthorityUID  string
	ProfileETag   string
	AuthorityETag string
	Usages        []profile.Usage
	Lifetime      time.Duration

	Issued *authority.Issued
}

const requestColumns = `r.id, r.digest, r.identity, r.profile, r.authority, r.names, r.state, r.replaces, r.reason, r.message, r.attempts,
	r.failures, r.next_attempt, r.created, r.updated, r.trace_id, r.order_profile, r.order_url, r.order_final, r.order_cert, r.order_plain,
	r.order_count, r.fingerprint, r.trace_span, r.trace_parent`

func scanRequest(row scanner, more ...any) (issuance.Request, error) {
	var r issuance.Request
	var names string
	var next, created, updated int64
	into := []any{&r.ID, &r.Digest, &r.Identity, &r.Profile, &r.Authority, &names, &r.State, &r.Replaces, &r.Reason, &r.Message, &r.Attempts,
		&r.Failures, &next, &created, &updated, &r.TraceID, &r.Order.Profile, &r.Order.URL, &r.Order.Finalize, &r.Order.Certificate, &r.Order.Plain,
		&r.Order.Count, &r.Fingerprint, &r.Span, &r.Parent}
	if err := row.Scan(append(into, more...)...); err != nil {
		return r, err
	}
	r.NextAttempt, r.Created, r.Updated = db.Time(next), db.Time(created), db.Time(updated)
	var err error
	if r.Names, err = decodeNames(names); err != nil {
		return r, fmt.Errorf("request %s: %w", r.ID, err)
	}
	return r, nil
}

// Begin stores a new request as it was decided, in one transaction with its certificate, if it has one, and its event. A
// request of the same id that is there already is given back instead, with fresh false; if its content is another, that is
// fault.Conflict REQUEST_ID_REUSED. ErrStale: nothing was stored, decide again.
func (s *Store) Begin(ctx context.Context, d Decision) (r issuance.Request, fresh bool, err error) {
	d.Request.Created = db.Time(db.FromTime(s.now()))
	d.Request.Updated = d.Request.Created
	if d.Request.State == issuance.Accepted {
		d.Request.NextAttempt = d.Request.Created
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		made, err := s.insertRequest(ctx, tx, d)
		if err != nil {
			return err
		}
		if fresh = made; !made {
			r, err = readRequest(ctx, tx, d.Request.ID)
			return err
		}
		r = d.Request
		return s.begun(ctx, tx, d)
	})
	if err != nil {
		return issuance.Request{}, false, err
	}
	if !fresh && r.Digest != d.Request.Digest {
		return issuance.Request{}, false, reused(r.ID)
	}
	return r, fresh, nil
}

func reused(id string) error {
	return fault.New(fault.Conflict, ReasonRequestReused, "request id %q stands for another content: choose a new id", id)
}

func (s *Store) insertRequest(ctx context.Context, tx db.Tx, d Decision) (bool, error) {
	r := d.Request
	var csr []byte
	if !r.State.Ended() {
		csr = d.CSR
	}
	return db.Changed(tx.Exec(ctx, `INSERT INTO request (id, digest, identity, profile, authority, authority_uid, names, csr, state, replaces,
		reason, message, attempts, failures, polls, next_attempt, created, updated, trace_id, usages, lifetime,
		order_profile, order_url, order_final, order_cert, order_plain, order_count, fingerprint, claimed_by, claimed_until, fence,
		trace_span, trace_parent)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 0, 0, 0, $13, $14, $14, $15, $16, $17, $18, '', '', '', $19, 0, $20, '', 0, 0, $21, $22)
		ON CONFLICT (id) DO NOTHING`,
		r.ID, r.Digest, r.Identity, r.Profile, r.Authority, d.AuthorityUID, encodeNames(r.Names), csr, string(r.State), string(r.Replaces),
		r.Reason, r.Message, db.FromTime(r.NextAttempt), db.FromTime(r.Created), r.TraceID, encode(d.Usages), micros(d.Lifetime),
		r.Order.Profile, false, string(r.Fingerprint), r.Span, r.Parent))
}

func (s *Store) begun(ctx context.Context, tx db.Tx, d Decision) error {
	if d.Request.State == issuance.Refused {
		e := requestEnded("refused", d.Request, refused)
		e.Reason = d.Request.Reason
		if d.SubmitReason != "" {
			e.Facts["submitted_for"] = d.SubmitReason
		}
		return event.Emit(ctx, tx, e)
	}
	if err := s.inForce(ctx, tx, d); err != nil {
		return err
	}
	var e *eventv1.Event
	if d.Issued != nil {
		if err := s.insertCertificate(ctx, tx, d.Request, d.AuthorityUID, *d.Issued); err != nil {
			return err
		}
		e = requestIssued(d.Request, *d.Issued)
	} else {
		tx.Notify(TopicRequests)
		e = requestFact("accepted", d.Request, succeeded)
	}
	e.Reason = d.SubmitReason
	return event.Emit(ctx, tx, e)
}

// inForce gives ErrStale if the profile or the authority is no longer what the decision was made by. On SQLite calls run one
// after the other and in this process alone: what one has seen in force is so until another calls ruleChanges.
func (s *Store) inForce(ctx context.Context, tx db.Tx, d Decision) error {
	etags := [2]string{d.ProfileETag, d.AuthorityETag}
	if s.db.Exclusive() && s.seen[d.Request.Profile] == etags {
		return nil
	}
	var one int
	err := tx.QueryRow(ctx, `SELECT 1 FROM profile p JOIN authority a ON a.name = p.authority WHERE p.name = $1 AND p.etag = $2 AND a.etag = $3`,
		d.Request.Profile, d.ProfileETag, d.AuthorityETag).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrStale
	}
	if err == nil && s.db.Exclusive() {
		s.seen[d.Request.Profile] = etags
	}
	return err
}

// ruleChanges is to be called in each transaction that changes or removes a profile or changes an authority, also if it fails
// later. An authority that is removed is in no rule: no profile names it.
func (s *Store) ruleChanges() {
	if s.db.Exclusive() {
		clear(s.seen)
	}
}

func (s *Store) insertCertificate(ctx context.Context, tx db.Tx, r issuance.Request, authorityUID string, i authority.Issued) error {
	var chain string
	var err error
	window := int64(0)
	if i.RenewalID == "" { // an internal authority: its chain was stored with it
		chain, _ = joinChain(i.Chain[1:])
	} else {
		if chain, err = s.putChain(ctx, tx, i.Chain[1:]); err != nil {
			return err
		}
		window = db.FromTime(s.now())
		tx.Notify(TopicWindows)
	}
	_, err = tx.Exec(ctx, `INSERT INTO certificate (fingerprint, request, identity, authority_uid, serial, der, chain, not_before, not_after,
		renewal_id, window_start, window_end, window_url, window_next, window_fails, claimed_by, claimed_until, fence)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, '', $11, 0, '', 0, 0)`,
		string(i.Fingerprint), r.ID, r.Identity, authorityUID, i.Serial.Text(16), i.Chain[0], chain,
		db.FromTime(i.NotBefore), db.FromTime(i.NotAfter), i.RenewalID, window)
	return err
}

func readRequest(ctx context.Context, tx db.Tx, id string) (issuance.Request, error) {
	var leaf, cas []byte
	r, err := scanRequest(tx.QueryRow(ctx, `SELECT `+requestColumns+`, k.der, c.ders FROM request r
		LEFT JOIN certificate k ON k.fingerprint = r.fingerprint LEFT JOIN chain c ON c.id = k.chain WHERE r.id = $1`, id), &leaf, &cas)
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, ReasonRequestNotFound, "there is no request %q", id)
	}
	if err != nil || leaf == nil {
		return r, err
	}
	rest, err := splitChain(cas)
	r.Chain = append([][]byte{leaf}, rest...)
	return r, err
}

// Request reads one, with its chain once issued.
func (s *Store) Request(ctx context.Context, id string) (issuance.Request, error) {
	var r issuance.Request
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		r, err = readRequest(ctx, tx, id)
		return err
	})
	return r, err
}

// Filter chooses requests; empty fields choose all.
type Filter struct {
	Identity  string
	Authority string
	States    []issuance.State
}

// Position is a place in the list of requests.
type Position struct {
	Created int64
	ID      string
}

// PositionOf is the place of a request.
func PositionOf(r issuance.Request) Position {
	return Position{Created: db.FromTime(r.Created), ID: r.ID}
}

// Requests reads a page, newest first, beginning after a position; nil: from the newest.
func (s *Store) Requests(ctx context.Context, f Filter, after *Position, limit int) ([]issuance.Request, error) {
	var args []any
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	where := "1 = 1"
	if f.Identity != "" {
		where += ` AND r.identity = ` + arg(f.Identity)
	}
	if f.Authority != "" {
		where += ` AND r.authority = ` + arg(f.Authority)
	}
	if len(f.States) > 0 {
		states := make([]string, len(f.States))
		for i, st := range f.States {
			states[i] = string(st)
		}
		where += ` AND r.state IN ` + db.In(&args, states)
	}
	if after != nil {
		where += ` AND (r.created, r.id) < (` + arg(after.Created) + `, ` + arg(after.ID) + `)`
	}
	query := `SELECT ` + requestColumns + ` FROM request r WHERE ` + where + ` ORDER BY r.created DESC, r.id DESC LIMIT ` + arg(limit)
	var all []issuance.Request
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			r, err := scanRequest(rows)
			if err != nil {
				return err
			}
			all = append(all, r)
		}
		return rows.Err()
	})
	return all, err
}

// Certificate is an issued certificate as others may name it.
type Certificate struct {
	Identity     string
	AuthorityUID string
	DER          []byte
}

// CertificateByFingerprint reads one; known is false for one that was not issued here.
func (s *Store) CertificateByFingerprint(ctx context.Context, f pki.Fingerprint) (c Certificate, known bool, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT identity, authority_uid, der FROM certificate WHERE fingerprint = $1`, string(f)).Scan(&c.Identity, &c.AuthorityUID, &c.DER)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Certificate{}, false, nil
	}
	return c, err == nil, err
}

// Taken says which order URLs belong to a request.
func (s *Store) Taken(ctx context.Context, urls []string) (map[string]bool, error) {
	taken := map[string]bool{}
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		for len(urls) > 0 {
			n := min(len(urls), 500)
			var args []any
			query := `SELECT order_url FROM request WHERE order_url IN ` + db.In(&args, urls[:n])
			urls = urls[n:]
			if err := collect(ctx, tx, query, args, func(url string) { taken[url] = true }); err != nil {
				return err
			}
		}
		return nil
	})
	return taken, err
}

func collect(ctx context.Context, tx db.Tx, query string, args []any, each func(string)) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var one string
		if err := rows.Scan(&one); err != nil {
			return err
		}
		each(one)
	}
	return rows.Err()
}

// Cancel gives a request up. One that is cancelled already is given back as it is.
func (s *Store) Cancel(ctx context.Context, id, reason string) (issuance.Request, error) {
	var r issuance.Request
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		if r, err = readRequest(ctx, tx, id); err != nil || r.State == issuance.Cancelled {
			return err
		}
		from := r.State
		if r.State, err = issuance.Machine.Next(from, issuance.Cancel); err != nil {
			return err
		}
		r.Updated, r.NextAttempt = db.Time(db.FromTime(s.now())), time.Time{}
		r.Reason, r.Message = ReasonCancelled, "cancelled before a certificate was issued"
		won, err := db.Changed(tx.Exec(ctx, `UPDATE request SET state = $1, next_attempt = 0, updated = $2, fence = fence + 1, csr = NULL, reason = $3, message = $4
			WHERE id = $5 AND state = $6`, string(r.State), db.FromTime(r.Updated), r.Reason, r.Message, id, string(from)))
		if err != nil {
			return err
		}
		if !won {
			return fault.New(fault.Conflict, "WRONG_STATE", "the request moved meanwhile: try again")
		}
		if err := s.withdraw(ctx, tx, r); err != nil {
			return err
		}
		if r.Order.URL != "" {
			if err := s.orderFree(ctx, tx, id); err != nil {
				return err
			}
		}
		e := requestEnded("cancelled", r, succeeded)
		e.Reason = reason
		return event.Emit(ctx, tx, e)
	})
	if err == nil {
		Ended(ctx, r)
	}
	return r, err
}

// Ended records the span of a request that has waited for its authority, now that it is over.
func Ended(ctx context.Context, r issuance.Request) {
	trace.RecorderOf(ctx).Record(trace.Span{
		Link: trace.Link{Trace: r.TraceID, Span: r.Span}, Parent: r.Parent, Name: "request", Begun: r.Created, Ended: r.Updated, Failure: r.Reason,
		Attributes: []trace.Attribute{
			{Key: "sallyport.request", Value: r.ID}, {Key: "sallyport.authority", Value: r.Authority}, {Key: "sallyport.identity", Value: r.Identity},
			{Key: "sallyport.state", Value: string(r.State)}, {Key: "sallyport.fingerprint", Value: string(r.Fingerprint)},
		},
	})
}

// ReasonCancelled is the reason of a request that was given up.
const ReasonCancelled = "CANCELLED"

// RefuseUnread tells that something handed in was refused that could not even be read as a request.
func (s *Store) RefuseUnread(ctx context.Context, r issuance.Request, submitReason string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		e := requestFact("refused", r, refused)
		e.Facts["reason"], e.Facts["message"] = r.Reason, r.Message
		delete(e.Facts, "state")
		e.Reason = submitReason
		return event.Emit(ctx, tx, e)
	})
}

func decodeUsages(text string) ([]profile.Usage, error) {
	var all []profile.Usage
	err := json.Unmarshal([]byte(text), &all)
	return all, err
}
