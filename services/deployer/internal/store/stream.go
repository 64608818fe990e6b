package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Delta is what an agent is to be told to be up to date.
type Delta struct {
	Revision    int64
	Snapshot    bool // all there is, not only what changed
	Assignments []Told
	Challenges  []Challenge
}

// Empty says that a delta tells nothing.
func (d Delta) Empty() bool {
	return !d.Snapshot && len(d.Assignments)+len(d.Challenges) == 0
}

// Delta reads what changed for a host after a revision; below 0, or where that cannot be told any more, all there is.
func (s *Store) Delta(ctx context.Context, host string, since int64) (Delta, error) {
	var d Delta
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		d = Delta{}
		var floor int64
		err := t.QueryRow(ctx, `SELECT revision, floor FROM host WHERE name = $1`, host).Scan(&d.Revision, &floor)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("reading host %s: %w", host, err)
		}
		d.Snapshot = since < 0 || since < floor || since > d.Revision
		after := since
		if d.Snapshot {
			after = 0
		}
		records, err := t.records(ctx, `host = $1 AND told_revision > $2 ORDER BY id`, host, after)
		if err != nil {
			return err
		}
		for _, r := range records {
			if !d.Snapshot || !r.told.Withdrawn {
				d.Assignments = append(d.Assignments, r.told)
			}
		}
		d.Challenges, err = t.challenges(ctx, host, after, d.Snapshot)
		return err
	})
	return d, err
}

func (t *txn) challenges(ctx context.Context, host string, after int64, liveOnly bool) ([]Challenge, error) {
	rows, err := t.Query(ctx, `SELECT id, request, domain, token, key_authorization, withdrawn, traceparent FROM challenge
		WHERE host = $1 AND revision > $2 AND NOT (withdrawn AND $3) ORDER BY id`, host, after, liveOnly)
	if err != nil {
		return nil, fmt.Errorf("reading challenges of %s: %w", host, err)
	}
	defer rows.Close()
	var list []Challenge
	for rows.Next() {
		var c Challenge
		var parent string
		if err := rows.Scan(&c.ID, &c.Request, &c.Domain, &c.Token, &c.KeyAuthorization, &c.Withdrawn, &parent); err != nil {
			return nil, fmt.Errorf("reading challenges of %s: %w", host, err)
		}
		c.Trace, _ = trace.Parse(parent)
		list = append(list, c)
	}
	return list, rows.Err()
}

// OpenStream notes that the agent's stream is open at a replica, and takes the place of any other.
func (s *Store) OpenStream(ctx context.Context, host, replica, stream string, info fleet.Info) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `INSERT INTO host (name, revision, changed, replica, stream) VALUES ($1, 0, $2, $3, $4)
			ON CONFLICT (name) DO UPDATE SET changed = excluded.changed, replica = excluded.replica, stream = excluded.stream`,
			host, db.FromTime(t.now), replica, stream)
		if err != nil {
			return fmt.Errorf("opening the stream of %s: %w", host, err)
		}
		_, err = t.Exec(ctx, `UPDATE agent SET last_seen = $1, version = $2, platform = $3, connectors = $4, capability = $5 WHERE host = $6`,
			db.FromTime(t.now), info.Version, info.Platform, encodeStrings(info.Connectors), info.Capability, host)
		if err != nil {
			return fmt.Errorf("opening the stream of %s: %w", host, err)
		}
		return nil
	})
}

// CloseStream notes that a stream has ended, unless another has taken its place.
func (s *Store) CloseStream(ctx context.Context, host, stream string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `UPDATE host SET replica = '', stream = '', changed = $1 WHERE name = $2 AND stream = $3`, db.FromTime(t.now), host, stream)
		return err
	})
}

// Beat says that a replica is alive, and forgets those that have long been dead.
func (s *Store) Beat(ctx context.Context, replica string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `INSERT INTO replica (id, beat) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET beat = excluded.beat`, replica, db.FromTime(t.now))
		if err != nil {
			return fmt.Errorf("beating: %w", err)
		}
		_, err = t.Exec(ctx, `DELETE FROM replica WHERE beat < $1`, db.FromTime(t.now.Add(-time.Hour)))
		return err
	})
}

// Retire forgets a replica, whose streams have ended with it.
func (s *Store) Retire(ctx context.Context, replica string) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `DELETE FROM replica WHERE id = $1`, replica)
		return err
	})
}

// HostState is what a replica follows of a host.
type HostState struct {
	Revision int64
	Stream   string
	Changed  time.Time
}

// Movements is what changed since some moment.
type Movements struct {
	Hosts       map[string]HostState
	Deployments map[string]time.Time
}

// Digest stands for what changed in one second, and is another one when that is no longer the same.
type Digest struct{ count, sum int64 }

// Digests are those of each second since, counted from 1970, in which anything that Moved and AgentsChanged give last changed.
// since should begin a second.
func (s *Store) Digests(ctx context.Context, since time.Time) (map[int64]Digest, error) {
	all := map[int64]Digest{}
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		clear(all)
		rows, err := t.Query(ctx, `SELECT changed / 1000000, count(*), CAST(sum(changed % 1000000) AS BIGINT) FROM (
				SELECT changed FROM host WHERE changed >= $1
				UNION ALL SELECT changed FROM agent WHERE changed >= $1
				UNION ALL SELECT changed FROM deployment_change WHERE changed >= $1) x
			GROUP BY changed / 1000000`, db.FromTime(since))
		if err != nil {
			return fmt.Errorf("following changes: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var second int64
			var d Digest
			if err := rows.Scan(&second, &d.count, &d.sum); err != nil {
				return fmt.Errorf("following changes: %w", err)
			}
			all[second] = d
		}
		return rows.Err()
	})
	return all, err
}

// Moved reads what changed since. It overlaps generously: who follows compares with what it knows.
func (s *Store) Moved(ctx context.Context, since time.Time) (Movements, error) {
	var m Movements
	err := s.read(ctx, func(ctx context.Context, t *txn) error {
		m = Movements{Hosts: map[string]HostState{}, Deployments: map[string]time.Time{}}
		rows, err := t.Query(ctx, `SELECT name, revision, stream, changed FROM host WHERE changed >= $1`, db.FromTime(since))
		if err != nil {
			return fmt.Errorf("following hosts: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			var h HostState
			var changed int64
			if err := rows.Scan(&name, &h.Revision, &h.Stream, &changed); err != nil {
				return fmt.Errorf("following hosts: %w", err)
			}
			h.Changed = db.Time(changed)
			m.Hosts[name] = h
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return t.movedDeployments(ctx, since, m.Deployments)
	})
	return m, err
}

func (t *txn) movedDeployments(ctx context.Context, since time.Time, into map[string]time.Time) error {
	rows, err := t.Query(ctx, `SELECT name, changed FROM deployment_change WHERE changed >= $1`, db.FromTime(since))
	if err != nil {
		return fmt.Errorf("following deployments: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var changed int64
		if err := rows.Scan(&name, &changed); err != nil {
			return fmt.Errorf("following deployments: %w", err)
		}
		into[name] = db.Time(changed)
	}
	return rows.Err()
}

// PruneChallenges forgets withdrawn challenges that were presented before then. An agent that has not been told of the
// withdrawal gets a snapshot when it comes.
func (s *Store) PruneChallenges(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		floors, err := t.prunable(ctx, before)
		if err != nil {
			return err
		}
		for _, host := range slices.Sorted(maps.Keys(floors)) {
			if _, err := t.Exec(ctx, `UPDATE host SET floor = $1 WHERE name = $2 AND floor < $1`, floors[host], host); err != nil {
				return fmt.Errorf("pruning challenges of %s: %w", host, err)
			}
		}
		_, err = t.Exec(ctx, `DELETE FROM challenge WHERE withdrawn AND created < $1`, db.FromTime(before))
		return err
	})
}

// PruneReports forgets some of the ids of reports that were taken in before then. A report that comes again after that is one
// about a generation or attempt that is over.
func (s *Store) PruneReports(ctx context.Context, before time.Time, limit int) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `DELETE FROM report WHERE (host, id) IN (SELECT host, id FROM report WHERE received < $1 ORDER BY received LIMIT $2)`,
			db.FromTime(before), limit)
		return err
	})
}

// PruneWindows forgets the CA's advice about certificates that nobody is assigned any more, if it is older than that.
func (s *Store) PruneWindows(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(ctx context.Context, t *txn) error {
		_, err := t.Exec(ctx, `DELETE FROM renewal_window WHERE updated < $1 AND fingerprint NOT IN (SELECT fingerprint FROM assignment)`, db.FromTime(before))
		return err
	})
}

func (t *txn) prunable(ctx context.Context, before time.Time) (map[string]int64, error) {
	rows, err := t.Query(ctx, `SELECT host, max(revision) FROM challenge WHERE withdrawn AND created < $1 GROUP BY host`, db.FromTime(before))
	if err != nil {
		return nil, fmt.Errorf("looking for old challenges: %w", err)
	}
	defer rows.Close()
	floors := map[string]int64{}
	for rows.Next() {
		var host string
		var revision int64
		if err := rows.Scan(&host, &revision); err != nil {
			return nil, fmt.Errorf("looking for old challenges: %w", err)
		}
		floors[host] = revision
	}
	return floors, rows.Err()
}
