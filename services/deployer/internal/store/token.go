package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const tokenColumns = `id, secret_hash, host, expires, used_by, used_key, used, revoked, created_by, created`

func scanToken(row scanner) (fleet.Token, error) {
	var t fleet.Token
	var hash []byte
	var expires, used, created int64
	err := row.Scan(&t.ID, &hash, &t.Host, &expires, &t.UsedBy, &t.UsedKey, &used, &t.Revoked, &t.CreatedBy, &created)
	copy(t.SecretHash[:], hash)
	t.Expires, t.Used, t.Created = db.Time(expires), db.Time(used), db.Time(created)
	return t, err
}

// CreateToken stores a new join token.
func (s *Store) CreateToken(ctx context.Context, token fleet.Token) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `INSERT INTO join_token (id, secret_hash, host, expires, created_by, created) VALUES ($1, $2, $3, $4, $5, $6)`,
			token.ID, token.SecretHash[:], token.Host, db.FromTime(token.Expires), token.CreatedBy, db.FromTime(token.Created))
		if err != nil {
			return fmt.Errorf("storing join token %s: %w", token.ID, err)
		}
		return t.emit(ctx, fact{kind: "token.created", subject: "tokens/" + token.ID,
			facts: map[string]string{"host": token.Host, "expires": stamp(token.Expires)}}, nil)
	})
}

// lockToken reads one and keeps it from changing until the transaction ends; nil when there is none.
func (t *txn) lockToken(ctx context.Context, id string) (*fleet.Token, error) {
	if _, err := t.Exec(ctx, `UPDATE join_token SET id = id WHERE id = $1`, id); err != nil {
		return nil, fmt.Errorf("locking a join token: %w", err)
	}
	token, err := scanToken(t.QueryRow(ctx, `SELECT `+tokenColumns+` FROM join_token WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a join token: %w", err)
	}
	return &token, nil
}

func (t *txn) useToken(ctx context.Context, id string, j fleet.Join) error {
	_, err := t.Exec(ctx, `UPDATE join_token SET used_by = $1, used_key = $2, used = $3 WHERE id = $4`, j.Host, j.Key.Hash, db.FromTime(t.now), id)
	if err != nil {
		return fmt.Errorf("binding join token %s: %w", id, err)
	}
	return t.emit(ctx, fact{kind: "token.used", subject: "tokens/" + id, facts: map[string]string{"host": j.Host, "key": j.Key.Hash}}, nil)
}

func (t *txn) emitRefused(ctx context.Context, id string, j fleet.Join, refused error) error {
	f := fault.Of(refused)
	return t.emit(ctx, fact{kind: "token.refused", subject: "tokens/" + id, reason: f.Reason, result: eventv1.Result_RESULT_REFUSED,
		facts: map[string]string{"host": j.Host, "key": j.Key.Hash, "message": f.Message}}, nil)
}

// TokenAfter is where a page of tokens ended.
type TokenAfter struct {
	Created time.Time
	ID      string
}

// ListTokens lists join tokens, newest first.
func (s *Store) ListTokens(ctx context.Context, after TokenAfter, limit int) ([]fleet.Token, error) {
	var list []fleet.Token
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		list = nil
		rows, err := t.Query(ctx, `SELECT `+tokenColumns+` FROM join_token WHERE $1 = '' OR created < $2 OR created = $2 AND id < $1
			ORDER BY created DESC, id DESC LIMIT $3`, after.ID, db.FromTime(after.Created), limit)
		if err != nil {
			return fmt.Errorf("reading join tokens: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			token, err := scanToken(rows)
			if err != nil {
				return fmt.Errorf("reading join tokens: %w", err)
			}
			list = append(list, token)
		}
		return rows.Err()
	})
	return list, err
}

// RevokeToken makes a token useless. Doing it again is harmless.
func (s *Store) RevokeToken(ctx context.Context, id string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		token, err := t.lockToken(ctx, id)
		if err != nil {
			return err
		}
		if token == nil {
			return fault.New(fault.NotFound, "TOKEN_NOT_FOUND", "no join token %q", id)
		}
		if token.Revoked {
			return nil
		}
		if _, err := t.Exec(ctx, `UPDATE join_token SET revoked = TRUE WHERE id = $1`, id); err != nil {
			return fmt.Errorf("revoking join token %s: %w", id, err)
		}
		return t.emit(ctx, fact{kind: "token.revoked", subject: "tokens/" + id, facts: map[string]string{"host": token.Host, "used_by": token.UsedBy}}, nil)
	})
}
