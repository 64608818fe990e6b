package store

import (
	"context"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Rules hold for the index at any moment; size gives how many records the log has.
func Rules(size func() uint64) []check.Rule {
	return []check.Rule{
		{Name: "log-indexed", Broken: func(ctx context.Context, tx db.Tx, _ time.Time, limit int) ([]check.Violation, error) {
			return unindexed(ctx, tx, size, limit)
		}},
		{Name: "log-published", Broken: check.SQL(`SELECT 'log', 'the audit stream has ' || CAST(l.published AS TEXT) || ' records, the index ' || CAST(count(*) AS TEXT) FROM log l, record
			GROUP BY l.published HAVING l.published > count(*)`)},
	}
}

// unindexed finds positions of the log without a row. As each event has one row at most, a record whose event has another record
// is found here too. The log is asked first: it grows before the index does.
func unindexed(ctx context.Context, tx db.Tx, size func() uint64, limit int) ([]check.Violation, error) {
	before := int64(size())
	var rows, end int64
	if err := tx.QueryRow(ctx, `SELECT count(*), coalesce(max(position) + 1, 0) FROM record`).Scan(&rows, &end); err != nil {
		return nil, err
	}
	var all []check.Violation
	if now := int64(size()); end > now {
		all = append(all, check.Violation{Subject: fmt.Sprintf("records/%d", now), Message: fmt.Sprintf("is in the index, but the log has only %d records", now)})
	}
	if before > end {
		all = append(all, check.Violation{Subject: fmt.Sprintf("records/%d", end), Message: fmt.Sprintf("and those after it are not in the index: the log has %d records", before)})
	}
	if rows == end {
		return all, nil
	}
	gaps, err := check.SQL(`SELECT 'records/' || CAST(position + 1 AS TEXT), 'is not in the index: its event has another record, or the index has lost it' FROM record r
		WHERE position + 1 < (SELECT max(position) FROM record) AND NOT EXISTS (SELECT 1 FROM record n WHERE n.position = r.position + 1) ORDER BY position`)(ctx, tx, time.Time{}, limit)
	if err != nil {
		return nil, err
	}
	if rows > 0 {
		first, err := check.SQL(`SELECT 'records/0', 'is not in the index' FROM log WHERE NOT EXISTS (SELECT 1 FROM record WHERE position = 0)`)(ctx, tx, time.Time{}, 1)
		if err != nil {
			return nil, err
		}
		gaps = append(gaps, first...)
	}
	return append(all, gaps...), nil
}

// Positions gives where those of the events stand that have a record.
func (s *Store) Positions(ctx context.Context, ids []string) (map[string]uint64, error) {
	found := map[string]uint64{}
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		for from := 0; from < len(ids); from += lookupRows {
			var args []any
			if err := positions(ctx, tx, found, `SELECT event_id, position FROM record WHERE event_id IN `+db.In(&args, ids[from:min(from+lookupRows, len(ids))]), args); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking up %d events: %w", len(ids), err)
	}
	return found, nil
}

func positions(ctx context.Context, tx db.Tx, found map[string]uint64, query string, args []any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var position int64
		if err := rows.Scan(&id, &position); err != nil {
			return err
		}
		found[id] = uint64(position)
	}
	return rows.Err()
}
