package store

import (
	"context"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
)

// Found is a kind of finding.
type Found struct {
	Rule     finding.Rule
	Severity finding.Severity
}

// Survey is the whole of the inventory in a few numbers.
type Survey struct {
	// Open counts the findings that are open.
	Open map[Found]int
	// OverdueSince is when the oldest open finding of the rule overdue was opened.
	OverdueSince time.Time
	// Served and Present count certificates: seen served by some listener, seen or assigned anywhere.
	Served, Present int
	// ServedEnds is when the first of the served ones runs out, or ran out.
	ServedEnds time.Time
	// JudgedUntil is when the first judgement was due that was not made yet; zero when none is.
	JudgedUntil time.Time
}

// Survey reads counts and extremes by the indexes made for it.
func (s *Store) Survey(ctx context.Context) (Survey, error) {
	v := Survey{Open: map[Found]int{}}
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		type kind struct {
			Found
			rank, since int64
			n           int
		}
		kinds, err := collect(ctx, tx, func(r row, k *kind) error { return r.Scan(&k.Rule, &k.rank, &k.n, &k.since) },
			`SELECT rule, rank, count(*), min(opened) FROM finding WHERE closed = 0 GROUP BY rank, rule`)
		if err != nil {
			return fmt.Errorf("counting findings: %w", err)
		}
		for _, k := range kinds {
			k.Severity = severityOf(k.rank)
			v.Open[k.Found] = k.n
			if since := db.Time(k.since); k.Rule == finding.Overdue && (v.OverdueSince.IsZero() || since.Before(v.OverdueSince)) {
				v.OverdueSince = since
			}
		}
		var ends, due int64
		if err := tx.QueryRow(ctx, `SELECT count(*), coalesce(min(not_after), 0) FROM certificate WHERE served`).Scan(&v.Served, &ends); err != nil {
			return fmt.Errorf("counting served certificates: %w", err)
		}
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM certificate WHERE present`).Scan(&v.Present); err != nil {
			return fmt.Errorf("counting certificates: %w", err)
		}
		if err := tx.QueryRow(ctx, `SELECT coalesce(min(at), 0) FROM due`).Scan(&due); err != nil {
			return fmt.Errorf("looking at what is to be judged: %w", err)
		}
		v.ServedEnds = db.Time(ends)
		if at := db.Time(due); !at.IsZero() && at.Before(s.now()) {
			v.JudgedUntil = at
		}
		return nil
	})
	return v, err
}
