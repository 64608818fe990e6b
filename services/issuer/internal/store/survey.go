package store

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
)

// Survey is the whole of the issuer in a few numbers.
type Survey struct {
	// Open counts the requests that are not over, by state.
	Open map[issuance.State]int
	// Since is when the oldest of them was made.
	Since map[issuance.State]time.Time
	// Authorities are how the authorities stand.
	Authorities []Standing
}

// Standing is how an authority stands.
type Standing struct {
	Name    string
	Trouble bool
	// Ends is when the first of its CA certificates runs out; zero where it is not known.
	Ends time.Time
	// CRLEnds is until when its lists are good, the first of them to run out; when it was made, where one was never made. Zero for
	// an authority that has no lists.
	CRLEnds time.Time
}

// Survey reads what is open, however much is over.
func (s *Store) Survey(ctx context.Context) (Survey, error) {
	v := Survey{Open: map[issuance.State]int{}, Since: map[issuance.State]time.Time{}}
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := v.requests(ctx, tx); err != nil {
			return fmt.Errorf("counting open requests: %w", err)
		}
		if err := v.authorities(ctx, tx); err != nil {
			return fmt.Errorf("looking at the authorities: %w", err)
		}
		return nil
	})
	return v, err
}

func (v *Survey) requests(ctx context.Context, tx db.Tx) error {
	rows, err := tx.Query(ctx, `SELECT state, count(*), min(created) FROM request WHERE next_attempt > 0 GROUP BY state`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var state issuance.State
		var n int
		var since int64
		if err := rows.Scan(&state, &n, &since); err != nil {
			return err
		}
		v.Open[state], v.Since[state] = n, db.Time(since)
	}
	return rows.Err()
}

func (v *Survey) authorities(ctx context.Context, tx db.Tx) error {
	rows, err := tx.Query(ctx, `SELECT a.name, a.problem, c.ders, CASE WHEN a.kind <> $1 THEN 0
		WHEN (SELECT count(*) FROM crl l WHERE l.authority_uid = a.uid) < 2 THEN a.created
		ELSE (SELECT min(l.next_update) FROM crl l WHERE l.authority_uid = a.uid) END`+authorityTables+`ORDER BY a.name`, string(authority.KindInternal))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var one Standing
		var problem string
		var chain []byte
		var crlEnds int64
		if err := rows.Scan(&one.Name, &problem, &chain, &crlEnds); err != nil {
			return err
		}
		one.Trouble, one.CRLEnds = problem != "", db.Time(crlEnds)
		if one.Ends, err = firstEnd(chain); err != nil {
			return fmt.Errorf("reading the certificates of authority %s: %w", one.Name, err)
		}
		v.Authorities = append(v.Authorities, one)
	}
	return rows.Err()
}

func firstEnd(chain []byte) (time.Time, error) {
	var first time.Time
	ders, err := splitChain(chain)
	if err != nil {
		return first, err
	}
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return first, err
		}
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first, nil
}
