package store

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
)

// The reasons of what is asked of revocations.
const (
	ReasonCertificateNotFound = "CERTIFICATE_NOT_FOUND"
	ReasonCertificateEnded    = "CERTIFICATE_ENDED"
	ReasonAlreadyRevoked      = "ALREADY_REVOKED"
	ReasonCannotRevoke        = "AUTHORITY_CANNOT_REVOKE"
	ReasonCRLNotFound         = "CRL_NOT_FOUND"
)

// Revoke takes a certificate back, with its event. One that is revoked already, for the same reason, is given back as it is.
// comment is why, in the caller's words.
func (s *Store) Revoke(ctx context.Context, f pki.Fingerprint, reason revocation.Reason, request, comment string) (revocation.Revocation, error) {
	var r revocation.Revocation
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		now := db.Time(db.FromTime(s.now()))
		var uid, serial string
		var notAfter int64
		r = revocation.Revocation{Fingerprint: f, Reason: reason, Revoked: now, Request: request}
		err := tx.QueryRow(ctx, `SELECT k.identity, k.authority_uid, r.authority, k.serial, k.not_after FROM certificate k JOIN request r ON r.id = k.request
			WHERE k.fingerprint = $1`, string(f)).Scan(&r.Identity, &uid, &r.Authority, &serial, &notAfter)
		if noRows(err) {
			return fault.New(fault.NotFound, ReasonCertificateNotFound, "no certificate with this fingerprint was issued here: give all 64 digits, as \"sallyport describe certificate\" shows them")
		}
		if err != nil {
			return err
		}
		var known bool
		if r.Serial, known = new(big.Int).SetString(serial, 16); !known {
			return fmt.Errorf("certificate %s: unreadable serial number", f)
		}
		r.NotAfter = db.Time(notAfter)
		before, err := readRevocation(ctx, tx, f)
		if !noRows(err) {
			if err == nil {
				r, err = again(before, r)
			}
			return err
		}
		if !r.NotAfter.After(now) {
			return fault.New(fault.Precondition, ReasonCertificateEnded, "the certificate has ended on %s: nobody relies on it any more. If it is still in use, renew its deployment", r.NotAfter.Format(time.RFC3339))
		}
		if err := s.revocable(ctx, tx, uid, r.Authority); err != nil {
			return err
		}
		made, err := db.Changed(tx.Exec(ctx, `INSERT INTO revocation (fingerprint, request, authority_uid, authority, identity, serial, reason, revoked, not_after, listed, last)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0) ON CONFLICT DO NOTHING`,
			string(f), request, uid, r.Authority, r.Identity, serial, int64(reason), db.FromTime(now), notAfter))
		if err != nil {
			return err
		}
		if !made { // the id is another's, or somebody else was quicker
			if before, err = readRevocation(ctx, tx, f); noRows(err) {
				return reused(request)
			}
			if err == nil {
				r, err = again(before, r)
			}
			return err
		}
		tx.Notify(TopicRevocations)
		return event.Emit(ctx, tx, certificateRevoked(r, comment))
	})
	return r, err
}

// again answers a call that comes when all is done.
func again(before, r revocation.Revocation) (revocation.Revocation, error) {
	switch {
	case before.Reason == r.Reason:
		return before, nil
	case before.Request == r.Request:
		return r, reused(r.Request)
	}
	return r, fault.New(fault.Precondition, ReasonAlreadyRevoked, "the certificate is revoked since %s, as %s: the reason cannot be changed",
		before.Revoked.Format(time.RFC3339), before.Reason)
}

// revocable refuses what only somebody else can revoke.
func (s *Store) revocable(ctx context.Context, tx db.Tx, uid, name string) error {
	var kind string
	err := tx.QueryRow(ctx, `SELECT kind FROM authority WHERE uid = $1`, uid).Scan(&kind)
	switch {
	case noRows(err):
		return fault.New(fault.Precondition, ReasonCannotRevoke, "its authority %q was deleted, and with it the key that could sign a CRL: remove that CA from the trust of all who rely on it", name)
	case err == nil && kind != string(authority.KindInternal):
		return fault.New(fault.Precondition, ReasonCannotRevoke, "authority %q is a CA of others, which keeps its own list: renew the deployment, then have the CA revoke the certificate (docs/revocation.md)", name)
	}
	return err
}

const revocationColumns = `fingerprint, request, authority, identity, serial, reason, revoked, not_after`

func scanRevocation(row scanner, more ...any) (revocation.Revocation, error) {
	var r revocation.Revocation
	var serial string
	var revoked, notAfter int64
	if err := row.Scan(append([]any{&r.Fingerprint, &r.Request, &r.Authority, &r.Identity, &serial, &r.Reason, &revoked, &notAfter}, more...)...); err != nil {
		return r, err
	}
	r.Revoked, r.NotAfter = db.Time(revoked), db.Time(notAfter)
	var known bool
	if r.Serial, known = new(big.Int).SetString(serial, 16); !known {
		return r, fmt.Errorf("revocation of %s: unreadable serial number", r.Fingerprint)
	}
	return r, nil
}

func readRevocation(ctx context.Context, tx db.Tx, f pki.Fingerprint) (revocation.Revocation, error) {
	return scanRevocation(tx.QueryRow(ctx, `SELECT `+revocationColumns+` FROM revocation WHERE fingerprint = $1`, string(f)))
}

// Standings tells how far the lists of all internal authorities are.
func (s *Store) Standings(ctx context.Context) ([]revocation.Standing, error) {
	var all []revocation.Standing
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		all = nil
		rows, err := tx.Query(ctx, `SELECT a.uid, a.name, k.root, coalesce(c.number, 0), coalesce(c.this_update, 0),
			NOT k.root AND EXISTS (SELECT 1 FROM revocation r WHERE r.authority_uid = a.uid AND r.listed = 0)
			FROM authority a CROSS JOIN (SELECT TRUE AS root UNION ALL SELECT FALSE) AS k
			LEFT JOIN crl c ON c.authority_uid = a.uid AND c.root = k.root WHERE a.kind = $1 ORDER BY a.name, k.root`, string(authority.KindInternal))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var one revocation.Standing
			var thisUpdate int64
			if err := rows.Scan(&one.AuthorityUID, &one.Authority, &one.Root, &one.Number, &thisUpdate, &one.Unlisted); err != nil {
				return err
			}
			one.ThisUpdate = db.Time(thisUpdate)
			all = append(all, one)
		}
		return rows.Err()
	})
	return all, err
}

// Revoked gives the certificates that the next list of an authority has, the oldest revocation first.
func (s *Store) Revoked(ctx context.Context, uid string) (all []revocation.Revocation, unlisted []pki.Fingerprint, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		all, unlisted = nil, nil
		rows, err := tx.Query(ctx, `SELECT `+revocationColumns+`, listed FROM revocation WHERE authority_uid = $1 AND last = 0 ORDER BY revoked, fingerprint`, uid)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var listed int64
			r, err := scanRevocation(rows, &listed)
			if err != nil {
				return err
			}
			if all = append(all, r); listed == 0 {
				unlisted = append(unlisted, r.Fingerprint)
			}
		}
		return rows.Err()
	})
	return all, unlisted, err
}

// CRL is a list as it was signed.
type CRL struct {
	KeyID        string
	AuthorityUID string
	Authority    string
	Root         bool
	Number       int64
	ThisUpdate   time.Time
	NextUpdate   time.Time
	Entries      int
	DER          []byte
}

const crlColumns = `key_id, authority_uid, authority, root, number, this_update, next_update, entries, der`

func scanCRL(row scanner) (CRL, error) {
	var c CRL
	var this, next int64
	err := row.Scan(&c.KeyID, &c.AuthorityUID, &c.Authority, &c.Root, &c.Number, &this, &next, &c.Entries, &c.DER)
	c.ThisUpdate, c.NextUpdate = db.Time(this), db.Time(next)
	return c, err
}

// SaveCRL stores a list in the place of the one before it, with its event. fresh are the certificates that it is the first to
// have, last those that no later one must have. It runs under the lease of whoever makes lists.
func (s *Store) SaveCRL(ctx context.Context, c CRL, fresh, last []pki.Fingerprint) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := lease.Guard(ctx, tx); err != nil {
			return err
		}
		newer, err := db.Changed(tx.Exec(ctx, `INSERT INTO crl (`+crlColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
			ON CONFLICT (key_id) DO UPDATE SET number = excluded.number, this_update = excluded.this_update, next_update = excluded.next_update,
			entries = excluded.entries, der = excluded.der WHERE crl.number < excluded.number`,
			c.KeyID, c.AuthorityUID, c.Authority, c.Root, c.Number, db.FromTime(c.ThisUpdate), db.FromTime(c.NextUpdate), c.Entries, c.DER))
		if err != nil {
			return err
		}
		if !newer {
			return errors.New("the stored CRL has a greater number")
		}
		if err := mark(ctx, tx, `UPDATE revocation SET listed = $1 WHERE listed = 0 AND fingerprint IN `, c.Number, fresh); err != nil {
			return err
		}
		if err := mark(ctx, tx, `UPDATE revocation SET last = $1 WHERE last = 0 AND fingerprint IN `, c.Number, last); err != nil {
			return err
		}
		return event.Emit(ctx, tx, crlSigned(c))
	})
}

func mark(ctx context.Context, tx db.Tx, update string, number int64, fingerprints []pki.Fingerprint) error {
	for part := range slices.Chunk(fingerprints, 500) {
		args := []any{number}
		texts := make([]string, len(part))
		for i, f := range part {
			texts[i] = string(f)
		}
		if _, err := tx.Exec(ctx, update+db.In(&args, texts), args...); err != nil {
			return err
		}
	}
	return nil
}

// CRLs gives the lists of an authority: the issuing CA's, then the root's.
func (s *Store) CRLs(ctx context.Context, uid string) ([]CRL, error) {
	return s.crls(ctx, `SELECT `+crlColumns+` FROM crl WHERE authority_uid = $1 ORDER BY root`, uid)
}

// CRL gives the list that the CA with this key identifier has signed.
func (s *Store) CRL(ctx context.Context, keyID string) (CRL, error) {
	all, err := s.crls(ctx, `SELECT `+crlColumns+` FROM crl WHERE key_id = $1`, keyID)
	if err == nil && len(all) == 0 {
		return CRL{}, fault.New(fault.NotFound, ReasonCRLNotFound, "there is no CRL of a CA with key identifier %s", keyID)
	}
	if err != nil {
		return CRL{}, err
	}
	return all[0], nil
}

func (s *Store) crls(ctx context.Context, query string, args ...any) ([]CRL, error) {
	var all []CRL
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		all = nil
		rows, err := tx.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			c, err := scanCRL(rows)
			if err != nil {
				return err
			}
			all = append(all, c)
		}
		return rows.Err()
	})
	return all, err
}

// CRLNumbers gives the number of the newest list of every CA, by key identifier.
func (s *Store) CRLNumbers(ctx context.Context) (map[string]int64, error) {
	all := map[string]int64{}
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT key_id, number FROM crl`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key string
			var number int64
			if err := rows.Scan(&key, &number); err != nil {
				return err
			}
			all[key] = number
		}
		return rows.Err()
	})
	return all, err
}
