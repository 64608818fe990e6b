package store

import (
	"context"
	"crypto/x509"
	"fmt"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// takeRestoration notes, once, that the database was restored. What was told to agents since the backup is not known, so all
// of them get everything anew. Which join tokens were used since is not known either, so those that were not used are void.
func (s *Store) takeRestoration(ctx context.Context) error {
	if s.c.Lost.Until.IsZero() {
		return nil
	}
	err := s.write(ctx, func(ctx context.Context, t *txn) error {
		fresh, err := db.Changed(t.Exec(ctx, `INSERT INTO restoration (at, backup) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
			db.FromTime(s.c.Lost.Until), db.FromTime(s.c.Lost.From)))
		if err != nil || !fresh {
			return err
		}
		for _, statement := range []string{`DELETE FROM epoch`, `UPDATE host SET replica = '', stream = '' WHERE stream <> ''`} {
			if _, err := t.Exec(ctx, statement); err != nil {
				return err
			}
		}
		res, err := t.Exec(ctx, `UPDATE join_token SET revoked = TRUE WHERE used_key = '' AND NOT revoked AND expires > $1`, db.FromTime(t.now))
		if err != nil {
			return err
		}
		revoked, err := res.RowsAffected()
		if err != nil {
			return err
		}
		return t.emit(ctx, fact{kind: "store.restored", subject: "stores/deployer", reason: "the database was restored from a backup", facts: map[string]string{
			"backup": stamp(s.c.Lost.From), "restored": stamp(s.c.Lost.Until), "tokens_revoked": fmt.Sprint(revoked)}}, nil)
	})
	if err != nil {
		return fmt.Errorf("taking in that the database was restored: %w", err)
	}
	return nil
}

// Adopt takes an agent's SVID that was granted in the time which the store has lost; see fleet.Lost.
func (s *Store) Adopt(ctx context.Context, host string, svid *x509.Certificate) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		a, err := t.lockAgent(ctx, host)
		if err != nil {
			return err
		}
		adopted, err := s.c.Lost.Adopt(a, svid)
		if err != nil || adopted.Key.Hash == a.Key.Hash {
			return err
		}
		adopted.LastSeen = t.now
		if err := t.saveAgent(ctx, adopted); err != nil {
			return err
		}
		return t.emitAgent(ctx, "key_adopted", adopted, "granted between backup and restore: "+stamp(s.c.Lost.From)+" to "+stamp(s.c.Lost.Until), map[string]string{
			"key": adopted.Key.Hash, "replaces_key": a.Key.Hash, "serial": svid.SerialNumber.Text(16), "svid_expires": stamp(svid.NotAfter)})
	})
}

// Lost is the time that the store does not remember.
func (s *Store) Lost() fleet.Lost { return s.c.Lost }
