package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Challenge is an HTTP-01 answer that an agent is to give.
type Challenge struct {
	ID               string
	Request          string
	Domain           string
	Token            string
	KeyAuthorization string
	Withdrawn        bool
	Trace            trace.Link
}

// Present gives a challenge to the agent of the request's host, within an event's transaction. One that was withdrawn
// already, its events having overtaken each other, stays withdrawn.
func (s *Store) Present(ctx context.Context, tx db.Tx, c Challenge) error {
	id, _, _, ok := rollout.ParseRequestID(c.Request)
	if !ok {
		return nil
	}
	return s.within(ctx, tx, func(ctx context.Context, t *txn) error {
		var host string
		err := t.QueryRow(ctx, `SELECT host FROM assignment WHERE id = $1`, id).Scan(&host)
		if errors.Is(err, sql.ErrNoRows) {
			return nil // somebody else's request
		}
		if err != nil {
			return fmt.Errorf("looking for the host of challenge %s: %w", c.ID, err)
		}
		revision, err := t.bump(ctx, host)
		if err != nil {
			return err
		}
		_, err = t.Exec(ctx, `INSERT INTO challenge (id, host, request, domain, token, key_authorization, revision, withdrawn, reported, message, created, traceparent)
			VALUES ($1, $2, $3, $4, $5, $6, $7, FALSE, '', '', $8, $9) ON CONFLICT DO NOTHING`,
			c.ID, host, c.Request, c.Domain, c.Token, c.KeyAuthorization, revision, db.FromTime(t.now), header(trace.Of(ctx)))
		if err != nil {
			return fmt.Errorf("storing challenge %s: %w", c.ID, err)
		}
		return nil
	})
}

// WithdrawChallenge ends a challenge, within an event's transaction.
func (s *Store) WithdrawChallenge(ctx context.Context, tx db.Tx, id, request string) error {
	return s.within(ctx, tx, func(ctx context.Context, t *txn) error {
		var host string
		err := t.QueryRow(ctx, `SELECT host FROM challenge WHERE id = $1`, id).Scan(&host)
		if errors.Is(err, sql.ErrNoRows) {
			_, err := t.Exec(ctx, `INSERT INTO challenge (id, host, request, domain, token, key_authorization, revision, withdrawn, reported, message, created)
				VALUES ($1, '', $2, '', '', '', 0, TRUE, '', '', $3) ON CONFLICT DO NOTHING`, id, request, db.FromTime(t.now))
			return err
		}
		if err != nil {
			return fmt.Errorf("looking for challenge %s: %w", id, err)
		}
		if host == "" {
			return nil
		}
		revision, err := t.bump(ctx, host)
		if err != nil {
			return err
		}
		_, err = t.Exec(ctx, `UPDATE challenge SET withdrawn = TRUE, revision = $1 WHERE id = $2 AND NOT withdrawn`, revision, id)
		return err
	})
}

// ReportChallenge stores what the agent says, to be told to the issuer.
func (s *Store) ReportChallenge(ctx context.Context, host, id string, ready bool, message string) error {
	reported := "not ready"
	if ready {
		reported = "ready"
	}
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		var was string
		var withdrawn bool
		err := t.QueryRow(ctx, `SELECT reported, withdrawn FROM challenge WHERE id = $1 AND host = $2`, id, host).Scan(&was, &withdrawn)
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.NotFound, "CHALLENGE_NOT_FOUND", "no challenge %q on host %q", id, host)
		}
		if err != nil {
			return fmt.Errorf("reading challenge %s: %w", id, err)
		}
		if withdrawn || was == reported {
			return nil
		}
		if _, err := t.Exec(ctx, `UPDATE challenge SET reported = $1, message = $2 WHERE id = $3`, reported, message, id); err != nil {
			return fmt.Errorf("storing the report of challenge %s: %w", id, err)
		}
		return t.intend(ctx, challengeIntent+id, ready, message)
	})
	return s.trespass(ctx, host, "challenge", id, err)
}

func cutIntent(id string) (challenge, request string) {
	if c, ok := strings.CutPrefix(id, challengeIntent); ok {
		return c, ""
	}
	return "", strings.TrimPrefix(id, cancelIntent)
}
