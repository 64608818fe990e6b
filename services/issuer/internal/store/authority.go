package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
)

// The reasons of what is asked of authorities and profiles.
const (
	ReasonAuthorityNotFound = "AUTHORITY_NOT_FOUND"
	ReasonAuthorityInUse    = "AUTHORITY_IN_USE"
	ReasonProfileNotFound   = "PROFILE_NOT_FOUND"
	ReasonEtag              = "ETAG_MISMATCH"
	ReasonChangedMeanwhile  = "CHANGED_MEANWHILE"
)

// Authority is an authority as it is stored.
type Authority struct {
	Spec    authority.Spec
	UID     string
	ETag    string
	Chain   [][]byte // DER, issuing first, root last; empty where it does not know them
	Key     []byte   // sealed: the issuing key, or the account's
	RootKey []byte   // sealed, internal authorities only
	Account authority.Account
	Problem string
	Created time.Time
}

const authorityColumns = `a.name, a.uid, a.spec, a.etag, a.key_sealed, a.root_sealed, a.account, a.problem, a.created, c.ders`

const authorityTables = ` FROM authority a LEFT JOIN chain c ON c.id = a.chain `

type scanner interface{ Scan(...any) error }

func scanAuthority(row scanner) (Authority, error) {
	var a Authority
	var spec, account string
	var created int64
	var chain []byte
	if err := row.Scan(&a.Spec.Name, &a.UID, &spec, &a.ETag, &a.Key, &a.RootKey, &account, &a.Problem, &created, &chain); err != nil {
		return Authority{}, err
	}
	if err := json.Unmarshal([]byte(spec), &a.Spec); err != nil {
		return Authority{}, fmt.Errorf("reading authority %s: %w", a.Spec.Name, err)
	}
	if err := json.Unmarshal([]byte(account), &a.Account); err != nil {
		return Authority{}, fmt.Errorf("reading the account of authority %s: %w", a.Spec.Name, err)
	}
	a.Created = db.Time(created)
	var err error
	a.Chain, err = splitChain(chain)
	return a, err
}

// CreateAuthority stores a new authority. a.UID binds its keys: choose it before sealing them. One of the same name that
// came first is fault.Conflict.
func (s *Store) CreateAuthority(ctx context.Context, a Authority) (Authority, error) {
	a.ETag, a.Created = newETag(), db.Time(db.FromTime(s.now()))
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		chain := ""
		if len(a.Chain) > 0 {
			var err error
			if chain, err = s.putChain(ctx, tx, a.Chain); err != nil {
				return err
			}
			if _, err := s.putChain(ctx, tx, a.Chain[:1]); err != nil { // what follows a leaf
				return err
			}
		}
		made, err := db.Changed(tx.Exec(ctx, `INSERT INTO authority (name, uid, kind, spec, etag, chain, key_sealed, root_sealed, account, problem, created)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '', $10) ON CONFLICT (name) DO NOTHING`,
			a.Spec.Name, a.UID, string(a.Spec.Kind()), encode(a.Spec), a.ETag, chain, a.Key, a.RootKey, encode(a.Account), db.FromTime(a.Created)))
		if err != nil {
			return err
		}
		if !made {
			return changedMeanwhile("authority", a.Spec.Name)
		}
		tx.Notify(TopicAuthorities)
		return event.Emit(ctx, tx, authorityApplied(a))
	})
	if err != nil {
		return Authority{}, fmt.Errorf("storing authority %s: %w", a.Spec.Name, err)
	}
	return a, nil
}

// ChangeAuthority stores a new spec, if the authority still has the etag old.
func (s *Store) ChangeAuthority(ctx context.Context, a Authority, old string) (Authority, error) {
	a.ETag = newETag()
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		s.ruleChanges()
		won, err := db.Changed(tx.Exec(ctx, `UPDATE authority SET spec = $1, etag = $2 WHERE name = $3 AND etag = $4`,
			encode(a.Spec), a.ETag, a.Spec.Name, old))
		if err != nil {
			return err
		}
		if !won {
			return changedMeanwhile("authority", a.Spec.Name)
		}
		tx.Notify(TopicAuthorities)
		return event.Emit(ctx, tx, authorityApplied(a))
	})
	if err != nil {
		return Authority{}, fmt.Errorf("storing authority %s: %w", a.Spec.Name, err)
	}
	return a, nil
}

// Authority reads one by name.
func (s *Store) Authority(ctx context.Context, name string) (Authority, error) {
	return s.authority(ctx, `a.name = $1`, name)
}

// AuthorityByUID reads one by its uid.
func (s *Store) AuthorityByUID(ctx context.Context, uid string) (Authority, error) {
	return s.authority(ctx, `a.uid = $1`, uid)
}

func (s *Store) authority(ctx context.Context, where, value string) (Authority, error) {
	var a Authority
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		a, err = scanAuthority(tx.QueryRow(ctx, `SELECT `+authorityColumns+authorityTables+`WHERE `+where, value))
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Authority{}, fault.New(fault.NotFound, ReasonAuthorityNotFound, "there is no authority %q", value)
	}
	return a, err
}

// Authorities reads a page by name, beginning after a name.
func (s *Store) Authorities(ctx context.Context, after string, limit int) ([]Authority, error) {
	var all []Authority
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+authorityColumns+authorityTables+`WHERE a.name > $1 ORDER BY a.name LIMIT $2`, after, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			a, err := scanAuthority(rows)
			if err != nil {
				return err
			}
			all = append(all, a)
		}
		return rows.Err()
	})
	return all, err
}

// DeleteAuthority removes an authority that no profile names and no open request waits for. Its keys are gone with it.
func (s *Store) DeleteAuthority(ctx context.Context, name string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		a, err := scanAuthority(tx.QueryRow(ctx, `SELECT `+authorityColumns+authorityTables+`WHERE a.name = $1`, name))
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.NotFound, ReasonAuthorityNotFound, "there is no authority %q", name)
		}
		if err != nil {
			return err
		}
		var profiles, requests int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM profile WHERE authority = $1`, name).Scan(&profiles); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM request WHERE next_attempt > 0 AND authority_uid = $1`, a.UID).Scan(&requests); err != nil {
			return err
		}
		if profiles > 0 || requests > 0 {
			return fault.New(fault.Precondition, ReasonAuthorityInUse, "authority %q is named by %d profiles and %d open requests: delete or cancel them first", name, profiles, requests)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM authority WHERE uid = $1`, a.UID); err != nil {
			return err
		}
		return event.Emit(ctx, tx, authorityDeleted(a))
	})
}

// SaveAccount stores what the CA has confirmed of the account.
func (s *Store) SaveAccount(ctx context.Context, uid string, account authority.Account) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		a, err := scanAuthority(tx.QueryRow(ctx, `SELECT `+authorityColumns+authorityTables+`WHERE a.uid = $1`, uid))
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.NotFound, ReasonAuthorityNotFound, "the authority was deleted")
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE authority SET account = $1 WHERE uid = $2`, encode(account), uid); err != nil {
			return err
		}
		a.Account = account
		return event.Emit(ctx, tx, authorityRegistered(a))
	})
}

// NoteProblem stores what is wrong with an authority now, empty for nothing. Only the beginning and the end of trouble are
// events.
func (s *Store) NoteProblem(ctx context.Context, uid, problem string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		a, err := scanAuthority(tx.QueryRow(ctx, `SELECT `+authorityColumns+authorityTables+`WHERE a.uid = $1`, uid))
		if errors.Is(err, sql.ErrNoRows) || err == nil && a.Problem == problem {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE authority SET problem = $1 WHERE uid = $2`, problem, uid); err != nil {
			return err
		}
		if (a.Problem == "") == (problem == "") {
			return nil
		}
		return event.Emit(ctx, tx, authorityTrouble(a, problem))
	})
}

func newETag() string {
	id := uuid.New()
	return id.String()
}

func changedMeanwhile(kind, name string) error {
	return fault.New(fault.Conflict, ReasonChangedMeanwhile, "%s %q was changed by somebody else meanwhile: read it again", kind, name)
}
