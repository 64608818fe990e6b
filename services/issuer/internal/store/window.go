package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

// Window is what a CA advised about a certificate; the zero Start means nothing yet.
type Window struct {
	Fingerprint pki.Fingerprint
	Start, End  time.Time
	Explanation string
}

// WindowClaim is a certificate whose renewal window this process alone asks for, until the claim runs out.
type WindowClaim struct {
	Window
	RenewalID    string
	AuthorityUID string
	NotAfter     time.Time
	Fails        int
	fence        int64
}

// ClaimWindows takes up to n certificates that are due to be asked about.
func (s *Store) ClaimWindows(ctx context.Context, holder string, until time.Time, n int) ([]*WindowClaim, error) {
	var all []*WindowClaim
	now := db.FromTime(s.now())
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		all = nil
		due, err := claimable(ctx, tx, `SELECT fingerprint, fence FROM certificate WHERE window_next > 0 AND window_next <= $1 AND claimed_until <= $1
			ORDER BY window_next LIMIT $2`, now, n)
		if err != nil {
			return err
		}
		for _, one := range due {
			won, err := db.Changed(tx.Exec(ctx, `UPDATE certificate SET claimed_by = $1, claimed_until = $2, fence = fence + 1 WHERE fingerprint = $3 AND fence = $4`,
				holder, db.FromTime(until), one.id, one.fence))
			if err != nil {
				return err
			}
			if !won {
				continue
			}
			w := &WindowClaim{fence: one.fence + 1}
			var start, end, notAfter int64
			if err := tx.QueryRow(ctx, `SELECT fingerprint, window_start, window_end, window_url, renewal_id, authority_uid, not_after, window_fails
				FROM certificate WHERE fingerprint = $1`, one.id).
				Scan(&w.Fingerprint, &start, &end, &w.Explanation, &w.RenewalID, &w.AuthorityUID, &notAfter, &w.Fails); err != nil {
				return err
			}
			w.Start, w.End, w.NotAfter = db.Time(start), db.Time(end), db.Time(notAfter)
			all = append(all, w)
		}
		return nil
	})
	return all, err
}

// SaveWindow ends a claim: what is known now, when to ask again (zero: never), and how often asking has failed in a row. A
// window that has changed is told to the world.
func (s *Store) SaveWindow(ctx context.Context, c *WindowClaim, w Window, next time.Time, fails int) error {
	w.Fingerprint = c.Fingerprint
	w.Start, w.End = db.Time(db.FromTime(w.Start)), db.Time(db.FromTime(w.End))
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		won, err := db.Changed(tx.Exec(ctx, `UPDATE certificate SET window_start = $1, window_end = $2, window_url = $3, window_next = $4, window_fails = $5, claimed_until = 0
			WHERE fingerprint = $6 AND fence = $7`,
			db.FromTime(w.Start), db.FromTime(w.End), w.Explanation, db.FromTime(next), fails, string(c.Fingerprint), c.fence))
		if err != nil || !won { // another process has asked meanwhile
			return err
		}
		if w.Start.IsZero() || w.Start.Equal(c.Start) && w.End.Equal(c.End) && w.Explanation == c.Explanation {
			return nil
		}
		return event.Emit(ctx, tx, windowChanged(w))
	})
}

// NextWindow is when ClaimWindows will next find something, zero when nothing waits.
func (s *Store) NextWindow(ctx context.Context) (time.Time, error) {
	return s.earliest(ctx, `SELECT coalesce(min(CASE WHEN claimed_until > window_next THEN claimed_until ELSE window_next END), 0) FROM certificate WHERE window_next > 0`)
}

func noRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }
