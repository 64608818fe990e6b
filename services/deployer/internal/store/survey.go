package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Survey is the whole of the deployer in a few numbers.
type Survey struct {
	// Agents counts them by standing, without the removed.
	Agents map[fleet.State]int
	// Silent are enrolled agents of which nothing was heard for longer than they may be away.
	Silent int
	// LastHeard is when the one was heard of which nothing was heard for longest; zero when none is enrolled.
	LastHeard time.Time
	// Assignments counts them by state, without the withdrawn.
	Assignments map[rollout.State]int
	// Since is when the one entered its state that has been in it for longest, for states that are not to last.
	Since map[rollout.State]time.Time
	// Due are renewals whose time has come and that have not begun.
	Due int
	// Overdue are certificates that should have been replaced by now, whether their renewal has begun or not.
	Overdue int
	// OverdueSince is the latest moment the first of them had.
	OverdueSince time.Time
}

// Survey reads counts and extremes by the indexes made for it.
func (s *Store) Survey(ctx context.Context) (Survey, error) {
	v := Survey{Agents: map[fleet.State]int{}, Assignments: map[rollout.State]int{}, Since: map[rollout.State]time.Time{}}
	now := s.c.Now()
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		if err := v.agents(ctx, tx, now.Add(-s.c.Away)); err != nil {
			return fmt.Errorf("counting agents: %w", err)
		}
		if err := v.assignments(ctx, tx); err != nil {
			return fmt.Errorf("counting assignments: %w", err)
		}
		if err := v.underWay(ctx, tx, now); err != nil {
			return fmt.Errorf("looking at what is under way: %w", err)
		}
		if err := v.renewals(ctx, tx, now); err != nil {
			return fmt.Errorf("looking at what is to be renewed: %w", err)
		}
		return nil
	})
	return v, err
}

// The table of assignments is wide: none of these may read it as a whole.
const (
	countAssignments = `SELECT state, count(*) FROM assignment GROUP BY state`
	findUnderWay     = `SELECT state, min(updated), sum(CASE WHEN renew_by > 0 AND renew_by < $1 THEN 1 ELSE 0 END),
		coalesce(min(CASE WHEN renew_by > 0 AND renew_by < $1 THEN renew_by END), 0) FROM assignment
		WHERE state IN ('planned', 'assigned', 'requested', 'issued', 'failed') GROUP BY state`
	findDue = `SELECT count(*), coalesce(sum(CASE WHEN renew_by > 0 AND renew_by < $1 THEN 1 ELSE 0 END), 0),
		coalesce(min(CASE WHEN renew_by > 0 AND renew_by < $1 THEN renew_by END), 0) FROM assignment
		WHERE renew_at > 0 AND state IN ('served', 'installed', 'issued') AND renew_at <= $1`
)

// rows calls take for each row of a query.
func rows(ctx context.Context, tx db.Tx, query string, args []any, take func(*sql.Rows) error) error {
	found, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer found.Close()
	for found.Next() {
		if err := take(found); err != nil {
			return err
		}
	}
	return found.Err()
}

func (v *Survey) agents(ctx context.Context, tx db.Tx, silent time.Time) error {
	return rows(ctx, tx, `SELECT state, count(*), sum(CASE WHEN last_seen < $1 THEN 1 ELSE 0 END), min(last_seen) FROM agent
		WHERE state <> 'removed' GROUP BY state`, []any{db.FromTime(silent)}, func(r *sql.Rows) error {
		var state fleet.State
		var n, quiet int
		var heard int64
		if err := r.Scan(&state, &n, &quiet, &heard); err != nil {
			return err
		}
		v.Agents[state] = n
		if state == fleet.Enrolled {
			v.Silent, v.LastHeard = quiet, db.Time(heard)
		}
		return nil
	})
}

func (v *Survey) assignments(ctx context.Context, tx db.Tx) error {
	return rows(ctx, tx, countAssignments, nil, func(r *sql.Rows) error {
		var state rollout.State
		var n int
		if err := r.Scan(&state, &n); err != nil {
			return err
		}
		if state != rollout.Withdrawn {
			v.Assignments[state] = n
		}
		return nil
	})
}

func (v *Survey) underWay(ctx context.Context, tx db.Tx, now time.Time) error {
	return rows(ctx, tx, findUnderWay, []any{db.FromTime(now)}, func(r *sql.Rows) error {
		var state rollout.State
		var since, by int64
		var overdue int
		if err := r.Scan(&state, &since, &overdue, &by); err != nil {
			return err
		}
		v.Since[state] = db.Time(since)
		if state != rollout.Issued { // counted by renewals: its certificate is a new one
			v.overdue(overdue, by)
		}
		return nil
	})
}

func (v *Survey) renewals(ctx context.Context, tx db.Tx, now time.Time) error {
	var overdue int
	var by int64
	err := tx.QueryRow(ctx, findDue, db.FromTime(now)).Scan(&v.Due, &overdue, &by)
	v.overdue(overdue, by)
	return err
}

func (v *Survey) overdue(n int, by int64) {
	v.Overdue += n
	if since := db.Time(by); by > 0 && (v.OverdueSince.IsZero() || since.Before(v.OverdueSince)) {
		v.OverdueSince = since
	}
}
