package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

const profileColumns = `name, spec, etag, created`

func scanProfile(row scanner) (profile.Profile, error) {
	var p profile.Profile
	var name, spec, etag string
	var created int64
	if err := row.Scan(&name, &spec, &etag, &created); err != nil {
		return p, err
	}
	if err := json.Unmarshal([]byte(spec), &p); err != nil {
		return p, fmt.Errorf("reading profile %s: %w", name, err)
	}
	p.Name, p.ETag, p.Created = name, etag, db.Time(created)
	return p, nil
}

// PutProfile stores a profile. old is the etag it has now, empty for one that must not exist yet.
func (s *Store) PutProfile(ctx context.Context, p profile.Profile, old string) (profile.Profile, error) {
	p.ETag = newETag()
	if old == "" {
		p.Created = db.Time(db.FromTime(s.now()))
	}
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		s.ruleChanges()
		// The authority was looked at before; here it must still be there.
		var one int
		err := tx.QueryRow(ctx, `SELECT 1 FROM authority WHERE name = $1`, p.Authority).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			return changedMeanwhile("authority", p.Authority)
		}
		if err != nil {
			return err
		}
		var won bool
		if old == "" {
			won, err = db.Changed(tx.Exec(ctx, `INSERT INTO profile (name, authority, spec, etag, created) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING`,
				p.Name, p.Authority, encode(p), p.ETag, db.FromTime(p.Created)))
		} else {
			won, err = db.Changed(tx.Exec(ctx, `UPDATE profile SET authority = $1, spec = $2, etag = $3 WHERE name = $4 AND etag = $5`,
				p.Authority, encode(p), p.ETag, p.Name, old))
		}
		if err != nil {
			return err
		}
		if !won {
			return changedMeanwhile("profile", p.Name)
		}
		return event.Emit(ctx, tx, profileApplied(p))
	})
	if err != nil {
		return profile.Profile{}, fmt.Errorf("storing profile %s: %w", p.Name, err)
	}
	return p, nil
}

// Profile reads one by name.
func (s *Store) Profile(ctx context.Context, name string) (profile.Profile, error) {
	var p profile.Profile
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		p, err = scanProfile(tx.QueryRow(ctx, `SELECT `+profileColumns+` FROM profile WHERE name = $1`, name))
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return p, fault.New(fault.NotFound, ReasonProfileNotFound, "there is no profile %q", name)
	}
	return p, err
}

// Rule reads a profile together with its authority.
func (s *Store) Rule(ctx context.Context, name string) (profile.Profile, Authority, error) {
	var p profile.Profile
	var a Authority
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		if p, err = scanProfile(tx.QueryRow(ctx, `SELECT `+profileColumns+` FROM profile WHERE name = $1`, name)); err != nil {
			return err
		}
		a, err = scanAuthority(tx.QueryRow(ctx, `SELECT `+authorityColumns+authorityTables+`WHERE a.name = $1`, p.Authority))
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return p, a, fault.New(fault.NotFound, ReasonProfileNotFound, "there is no profile %q", name)
	}
	return p, a, err
}

// Profiles reads a page by name, beginning after a name.
func (s *Store) Profiles(ctx context.Context, after string, limit int) ([]profile.Profile, error) {
	var all []profile.Profile
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+profileColumns+` FROM profile WHERE name > $1 ORDER BY name LIMIT $2`, after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			p, err := scanProfile(rows)
			if err != nil {
				return err
			}
			all = append(all, p)
		}
		return rows.Err()
	})
	return all, err
}

// DeleteProfile removes a profile. Requests under way keep what they were accepted under.
func (s *Store) DeleteProfile(ctx context.Context, name string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		s.ruleChanges()
		gone, err := db.Changed(tx.Exec(ctx, `DELETE FROM profile WHERE name = $1`, name))
		if err != nil {
			return err
		}
		if !gone {
			return fault.New(fault.NotFound, ReasonProfileNotFound, "there is no profile %q", name)
		}
		return event.Emit(ctx, tx, profileDeleted(name))
	})
}
