// Package store is the search index over the log: which positions hold the records that are asked for, and which events have
// a record.
//
// It guarantees that what it answers is in the log, and that it knows every record before next() of the last Add. It holds no
// record: those are read from the log.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations are the tables of the audit service, its outbox included.
func Migrations() fs.FS {
	own, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the name is a constant of this file
	}
	return event.WithSchema(own)
}

// How many rows one statement has. SQLite takes $1, $2 ... for names and looks each of them up among all, so that a statement's
// time grows with the square of its parameters: these are the sizes at which both databases are near their best.
const (
	insertRows = 16
	lookupRows = 64
)

// Store is the index in one database.
type Store struct{ db *db.DB }

// New takes a database that was opened with Migrations.
func New(d *db.DB) *Store { return &Store{d} }

// Entry is a record and where it is.
type Entry struct {
	Position uint64
	Record   auditlog.Record
}

// Tip is the newest record the index knows.
type Tip struct {
	Next    uint64 // positions before it were indexed
	EventID string // of the record before Next; empty when Next is 0
}

// Adopt binds an empty index to the log with this verifier key, or checks that it is that log's.
func (s *Store) Adopt(ctx context.Context, verifier string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO log (id, verifier) VALUES (1, $1) ON CONFLICT DO NOTHING`, verifier); err != nil {
			return err
		}
		var owner string
		if err := tx.QueryRow(ctx, `SELECT verifier FROM log WHERE id = 1`).Scan(&owner); err != nil {
			return err
		}
		if owner != verifier {
			return fault.New(fault.Precondition, "INDEX_REFUSED", "the database is the index of the log with key %q, this log has key %q: give this log a database of its own, or restore the log that belongs to the database", owner, verifier)
		}
		return nil
	})
}

// Tip gives the newest record the index knows.
func (s *Store) Tip(ctx context.Context) (Tip, error) {
	var tip Tip
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		var last int64
		err := tx.QueryRow(ctx, `SELECT position, event_id FROM record ORDER BY position DESC LIMIT 1`).Scan(&last, &tip.EventID)
		if errors.Is(err, sql.ErrNoRows) {
			tip = Tip{}
			return nil
		}
		tip.Next = uint64(last) + 1
		return err
	})
	if err != nil {
		return Tip{}, fmt.Errorf("reading the tip of the index: %w", err)
	}
	return tip, nil
}

// Add indexes records. A position or event it knows already is left as it is; it gives how many were new.
func (s *Store) Add(ctx context.Context, entries []Entry) (int, error) {
	added := 0
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		added = 0
		for from := 0; from < len(entries); from += insertRows {
			part := entries[from:min(from+insertRows, len(entries))]
			query, args := insert(part)
			res, err := tx.Exec(ctx, query, args...)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			added += int(n)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("indexing %d records: %w", len(entries), err)
	}
	return added, nil
}

func insert(entries []Entry) (string, []any) {
	const columns = 8
	var b strings.Builder
	b.WriteString(`INSERT INTO record (position, event_id, time, type, subject, actor, result, trace_id) VALUES `)
	args := make([]any, 0, columns*len(entries))
	for i, e := range entries {
		if i > 0 {
			b.WriteByte(',')
		}
		n := len(args)
		fmt.Fprintf(&b, "($%d,$%d,$%d,$%d,$%d,$%d,$%d,$%d)", n+1, n+2, n+3, n+4, n+5, n+6, n+7, n+8)
		r := e.Record
		args = append(args, int64(e.Position), r.ID, db.FromTime(r.Time), []byte(r.Type), []byte(r.Subject), r.Actor, r.Result, r.TraceID)
	}
	b.WriteString(` ON CONFLICT DO NOTHING`)
	return b.String(), args
}

// Known gives those of the event ids that have a record.
func (s *Store) Known(ctx context.Context, ids []string) (map[string]bool, error) {
	known := map[string]bool{}
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		for from := 0; from < len(ids); from += lookupRows {
			var args []any
			query := `SELECT event_id FROM record WHERE event_id IN ` + db.In(&args, ids[from:min(from+lookupRows, len(ids))])
			var id string
			if err := each(ctx, tx, query, args, &id, func() { known[id] = true }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking up %d events: %w", len(ids), err)
	}
	return known, nil
}

// each reads a query of one column, calling take after each row.
func each(ctx context.Context, tx db.Tx, query string, args []any, into any, take func()) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(into); err != nil {
			return err
		}
		take()
	}
	return rows.Err()
}

// Search gives the positions of up to limit records that f selects and that stand before position before, newest first.
func (s *Store) Search(ctx context.Context, f record.Filter, before uint64, limit int) ([]uint64, error) {
	where, args := conditions(f, before)
	args = append(args, limit)
	query := fmt.Sprintf(`SELECT position FROM record WHERE %s ORDER BY position DESC LIMIT $%d`, where, len(args))
	var found []uint64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		var p int64
		return each(ctx, tx, query, args, &p, func() { found = append(found, uint64(p)) })
	})
	if err != nil {
		return nil, fmt.Errorf("searching the index: %w", err)
	}
	return found, nil
}

// conditions writes a filter as SQL; record.Filter.Match is the same in Go.
func conditions(f record.Filter, before uint64) (string, []any) {
	var terms []string
	var args []any
	and := func(term string, value any) {
		args = append(args, value)
		terms = append(terms, strings.ReplaceAll(term, "?", fmt.Sprintf("$%d", len(args))))
	}
	and(`position < ?`, int64(min(before, math.MaxInt64)))
	if !f.From.IsZero() {
		and(`time >= ?`, f.From.UnixMicro())
	}
	if !f.To.IsZero() {
		and(`time < ?`, f.To.UnixMicro())
	}
	text := func(column, want, separator string) {
		switch {
		case want == "":
		case strings.HasSuffix(want, separator):
			end := want[:len(want)-1] + string(separator[0]+1) // '/' follows '.', '0' follows '/'
			and(column+` >= ?`, []byte(want))
			and(column+` < ?`, []byte(end))
		default:
			and(column+` = ?`, []byte(want))
		}
	}
	text("type", f.Type, ".")
	text("subject", f.Subject, "/")
	if f.Actor != "" {
		and(`actor = ?`, f.Actor)
	}
	if f.Result != eventv1.Result_RESULT_UNSPECIFIED {
		and(`result = ?`, record.Result(f.Result))
	}
	if f.TraceID != "" {
		// Said twice because the index is of traced records only.
		and(`trace_id <> '' AND trace_id = ?`, f.TraceID)
	}
	return strings.Join(terms, " AND "), args
}

// Published is the position up to which records were published.
func (s *Store) Published(ctx context.Context) (uint64, error) {
	var n int64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT published FROM log WHERE id = 1`).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("reading how far records were published: %w", err)
	}
	return uint64(n), nil
}

// SetPublished notes that the records before position next were published.
func (s *Store) SetPublished(ctx context.Context, next uint64) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE log SET published = $1 WHERE id = 1`, int64(next))
		return err
	})
	if err != nil {
		return fmt.Errorf("noting how far records were published: %w", err)
	}
	return nil
}
