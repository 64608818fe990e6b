package event

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// How long what lies in the boxes is kept (decision 7). An event can come again as long as an outbox holds it, since it may be
// published again, and after that for as long as the stream holds it; so an inbox must remember it for longer than both
// together.
const (
	keepStream = 30 * 24 * time.Hour // StreamLimits.MaxAge by default
	keepOutbox = 35 * 24 * time.Hour // after it was last published; what a consumer missed in the stream is still there
	keepInbox  = 70 * 24 * time.Hour // after it was last received
)

// farAway is later than anything.
var farAway = time.Unix(1<<40, 0)

const (
	pruneEach   = time.Hour
	pruneAtOnce = 500 // rows in one transaction
	pruneRest   = 50 * time.Millisecond
)

// prune forgets some of what can never come again, and says whether there is more. What was skipped is kept, with its reason.
//
// Ids begin with the time at which they were made (UUIDv7), so what is old is found at the beginning of the primary key.
func prune(ctx context.Context, d *db.DB, now time.Time) (more bool, err error) {
	err = d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		more = false
		for _, box := range []struct {
			delete string
			keep   time.Duration
		}{
			{`DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE id < $1 AND published_at < $2 ORDER BY id LIMIT $3)`, keepOutbox},
			{`DELETE FROM inbox WHERE event_id IN (SELECT event_id FROM inbox WHERE event_id < $1 AND received < $2 AND error = '' ORDER BY event_id LIMIT $3)`, keepInbox},
		} {
			before := now.Add(-box.keep)
			res, err := tx.Exec(ctx, box.delete, firstID(before), db.FromTime(before), pruneAtOnce)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			more = more || n == pruneAtOnce
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("forgetting old events: %w", err)
	}
	return more, nil
}

// firstID is less than the id of any event made at that time or later (RFC 9562 section 5.7), and not less than that of any
// made before.
func firstID(t time.Time) string {
	ms := uint64(max(t.UnixMilli(), 0))
	return fmt.Sprintf("%08x-%04x", ms>>16, ms&0xffff)
}

// again marks facts that were published in [from, until) as still to be published. It goes through the outbox in parts.
func again(ctx context.Context, d *db.DB, from, until time.Time) (int, error) {
	return sweep(ctx, d, `SELECT id FROM outbox WHERE id > $1 AND kind = 'facts' AND published_at >= $2 AND published_at < $3 ORDER BY id LIMIT $4`,
		`UPDATE outbox SET published_at = NULL WHERE id IN `, db.FromTime(from), db.FromTime(until))
}

// renew begins the time anew for which an inbox remembers what it received before then: all of it may come once more.
func renew(ctx context.Context, d *db.DB, before, now time.Time) error {
	_, err := sweep(ctx, d, `SELECT event_id FROM inbox WHERE event_id > $1 AND received >= $2 AND received < $3 ORDER BY event_id LIMIT $4`,
		fmt.Sprintf(`UPDATE inbox SET received = %d WHERE event_id IN `, db.FromTime(now)), 0, db.FromTime(before))
	return err
}

// sweep updates the rows that find gives, part by part. Each part is committed by itself; doing it again finds the rest.
func sweep(ctx context.Context, d *db.DB, find, update string, from, until int64) (n int, err error) {
	for after := ""; ; {
		var ids []string
		err := d.Write(ctx, func(ctx context.Context, tx db.Tx) (err error) {
			ids, err = found(ctx, tx, find, after, from, until, pruneAtOnce)
			if err != nil || len(ids) == 0 {
				return err
			}
			var args []any
			in := db.In(&args, ids)
			_, err = tx.Exec(ctx, update+in, args...)
			return err
		})
		if err != nil || len(ids) == 0 {
			return n, err
		}
		n += len(ids)
		after = ids[len(ids)-1]
	}
}

func found(ctx context.Context, tx db.Tx, query string, args ...any) ([]string, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// Names of marks: when the stream that this store publishes to has begun, and when it was made, which is earlier where it began anew.
const (
	markStream = "stream"
	markMade   = "stream made"
)

func marksOfStream(ctx context.Context, d *db.DB) (begun, made time.Time, err error) {
	err = d.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		if begun, err = markIn(ctx, tx, markStream); err != nil {
			return err
		}
		made, err = markIn(ctx, tx, markMade)
		return err
	})
	return begun, made, err
}

// mark reads when something of that name was last noted; zero if never.
func mark(ctx context.Context, d *db.DB, name string) (at time.Time, err error) {
	err = d.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		at, err = markIn(ctx, tx, name)
		return err
	})
	return at, err
}

func markIn(ctx context.Context, tx db.Tx, name string) (time.Time, error) {
	var micros int64
	err := tx.QueryRow(ctx, `SELECT at FROM event_mark WHERE name = $1`, name).Scan(&micros)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	return db.Time(micros), err
}

func setMark(ctx context.Context, d *db.DB, name string, at time.Time) error {
	return d.Write(ctx, func(ctx context.Context, tx db.Tx) error { return setMarkIn(ctx, tx, name, at) })
}

func setMarkIn(ctx context.Context, tx db.Tx, name string, at time.Time) error {
	_, err := tx.Exec(ctx, `INSERT INTO event_mark (name, at) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET at = excluded.at`, name, db.FromTime(at))
	return err
}

// raiseMarkIn is setMarkIn that leaves what is later, as another replica may have noted meanwhile.
func raiseMarkIn(ctx context.Context, tx db.Tx, name string, at time.Time) error {
	_, err := tx.Exec(ctx, `INSERT INTO event_mark (name, at) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET at = excluded.at WHERE event_mark.at < excluded.at`, name, db.FromTime(at))
	return err
}
