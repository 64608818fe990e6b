package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/registry"
)

// Types of the events about identities.
const (
	IdentityApplied = "inventory.identity.applied"
	IdentityDeleted = "inventory.identity.deleted"
)

const identityColumns = `name, owner, purpose, names, labels, etag, created`

func scanIdentity(r row, i *registry.Identity) error {
	var names, labels string
	var created int64
	if err := r.Scan(&i.Name, &i.Owner, &i.Purpose, &names, &labels, &i.ETag, &created); err != nil {
		return err
	}
	i.Created = db.Time(created)
	if err := json.Unmarshal([]byte(names), &i.Names); err != nil {
		return fmt.Errorf("reading the names of identity %s: %w", i.Name, err)
	}
	if err := json.Unmarshal([]byte(labels), &i.Labels); err != nil {
		return fmt.Errorf("reading the labels of identity %s: %w", i.Name, err)
	}
	return nil
}

func noIdentity(name string) error {
	return fault.New(fault.NotFound, "IDENTITY_NOT_FOUND", "no identity %q", name)
}

// ApplyIdentity creates or changes an identity so that it is as wanted, and gives it as stored and whether that changed
// anything. Where nothing changes nothing is written; with checkOnly nothing ever is, and the answer is what it would be.
// A wanted ETag that is not the stored one is refused with fault.Conflict ETAG_MISMATCH.
func (s *Store) ApplyIdentity(ctx context.Context, want registry.Identity, checkOnly bool) (registry.Identity, bool, error) {
	var next registry.Identity
	var changed bool
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		next, _, changed, err = compare(ctx, tx, want)
		return err
	})
	if err != nil || !changed || checkOnly {
		return next, changed, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		var exists bool
		var err error
		next, exists, changed, err = compare(ctx, tx, want)
		if err != nil || !changed {
			return err
		}
		before := next.ETag
		next.ETag = rand.Text()[:16]
		if !exists {
			next.Created = db.Time(db.FromTime(s.now()))
		}
		return s.putIdentity(ctx, tx, next, exists, before)
	})
	return next, changed, err
}

// compare gives the wanted identity with the ETag and creation time of the stored one, whether there is one, and whether the
// wanted is different.
func compare(ctx context.Context, tx db.Tx, want registry.Identity) (next registry.Identity, exists, changed bool, err error) {
	var stored registry.Identity
	exists, err = found(scanIdentity(tx.QueryRow(ctx, `SELECT `+identityColumns+` FROM identity WHERE name = $1`, want.Name), &stored))
	if err == nil && want.ETag != "" && want.ETag != stored.ETag {
		err = stale(want.Name)
	}
	next = want
	next.ETag, next.Created = stored.ETag, stored.Created
	return next, exists, !exists || !stored.Equal(want), err
}

func stale(name string) error {
	return fault.New(fault.Conflict, "ETAG_MISMATCH", "identity %q has changed meanwhile: read it and apply again", name)
}

func (s *Store) putIdentity(ctx context.Context, tx db.Tx, i registry.Identity, exists bool, before string) error {
	names, err := json.Marshal(i.Names)
	if err != nil {
		return err
	}
	labels, err := json.Marshal(i.Labels)
	if err != nil {
		return err
	}
	var won bool
	if exists {
		won, err = db.Changed(tx.Exec(ctx, `UPDATE identity SET owner = $1, purpose = $2, names = $3, labels = $4, etag = $5 WHERE name = $6 AND etag = $7`,
			i.Owner, i.Purpose, string(names), string(labels), i.ETag, i.Name, before))
	} else {
		won, err = db.Changed(tx.Exec(ctx, `INSERT INTO identity (`+identityColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
			i.Name, i.Owner, i.Purpose, string(names), string(labels), i.ETag, db.FromTime(i.Created)))
	}
	if err != nil {
		return err
	}
	if !won {
		return stale(i.Name)
	}
	if exists {
		event.Hurry(tx) // the deployer plans anew
	} else {
		if err := s.touchIdentity(ctx, tx, i.Name); err != nil {
			return err
		}
	}
	facts := identityFacts(i)
	facts["change"] = map[bool]string{false: "created", true: "changed"}[exists]
	return s.emit(ctx, tx, &eventv1.Event{Type: IdentityApplied, Subject: "identities/" + i.Name, Facts: facts})
}

func identityFacts(i registry.Identity) map[string]string {
	return map[string]string{
		"identity": i.Name,
		"owner":    i.Owner,
		"purpose":  i.Purpose,
		"dns":      strings.Join(i.Names.DNS, ","),
		"ip":       strings.Join(i.Names.IPStrings(), ","),
	}
}

// touchIdentity has the certificates of an identity judged again: whether somebody answers for them has changed.
func (s *Store) touchIdentity(ctx context.Context, tx db.Tx, name string) error {
	if err := s.turn(ctx, tx); err != nil {
		return err
	}
	tx.Notify(DueTopic)
	_, err := tx.Exec(ctx, `INSERT INTO due (subject, at) SELECT $1 || fingerprint, $2 FROM certificate WHERE identity = $3 AND present
		ON CONFLICT (subject) DO UPDATE SET at = excluded.at`, finding.Certificates+"/", db.FromTime(s.now()), name)
	return err
}

// Identity gives one; fault.NotFound IDENTITY_NOT_FOUND if it is not there. It is one read by primary key.
func (s *Store) Identity(ctx context.Context, name string) (registry.Identity, error) {
	var i registry.Identity
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		ok, err := found(scanIdentity(tx.QueryRow(ctx, `SELECT `+identityColumns+` FROM identity WHERE name = $1`, name), &i))
		if err == nil && !ok {
			return noIdentity(name)
		}
		return err
	})
	return i, err
}

// Identities lists those after a name, of one owner unless owner is empty, by name.
func (s *Store) Identities(ctx context.Context, owner, after string, limit int) ([]registry.Identity, error) {
	query := `SELECT ` + identityColumns + ` FROM identity WHERE name > $1`
	args := []any{after, limit}
	if owner != "" {
		query += ` AND owner = $3`
		args = append(args, owner)
	}
	var all []registry.Identity
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		all, err = collect(ctx, tx, scanIdentity, query+` ORDER BY name LIMIT $2`, args...)
		return err
	})
	return all, err
}

// DeleteIdentity removes one; fault.NotFound IDENTITY_NOT_FOUND if it is not there.
func (s *Store) DeleteIdentity(ctx context.Context, name string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		var i registry.Identity
		ok, err := found(scanIdentity(tx.QueryRow(ctx, `DELETE FROM identity WHERE name = $1 RETURNING `+identityColumns, name), &i))
		if err != nil {
			return err
		}
		if !ok {
			return noIdentity(name)
		}
		if err := s.touchIdentity(ctx, tx, name); err != nil {
			return err
		}
		return s.emit(ctx, tx, &eventv1.Event{Type: IdentityDeleted, Subject: "identities/" + name, Facts: identityFacts(i)})
	})
}
