// Package store keeps identities, and the projections of what other services tell: certificates, hosts, sightings,
// assignments, findings.
//
// It guarantees that an identity never changes without its event, nor a finding; that projections come out the same in
// whatever order and however often facts arrive, even with several replicas at work, because they are written by one
// transaction at a time; and that lists page in a stable order by index. What a fact means is decided in packages catalog and
// finding.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Schema names the database of this service.
const Schema = "inventory"

//go:embed migrations/*.sql
var embedded embed.FS

// Store is the inventory's database.
type Store struct {
	db  *db.DB
	now func() time.Time
}

// Open opens the database and brings its schema up to date. now is the clock.
func Open(ctx context.Context, c db.Config, now func() time.Time) (*Store, error) {
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, c, event.WithSchema(migrations), Schema)
	if err != nil {
		return nil, err
	}
	return &Store{db: d, now: now}, nil
}

// DB is the database itself, for the relay and the consumers, whose tables stand beside ours.
func (s *Store) DB() *db.DB { return s.db }

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// turnKey is that of the lock under which projections are written.
const turnKey = 0x73616c6c79696e76 // "sallyinv"

// turn waits until no other transaction writes projections, and keeps them out until this one ends. One is enough for any
// fleet (see BenchmarkObservations), and what one fact changes because of another cannot be missed, nor can two lock each other
// out. It must be called before anything is read that another may write.
func (s *Store) turn(ctx context.Context, tx db.Tx) error {
	if s.db.Exclusive() {
		return nil // only one transaction writes at all
	}
	_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(turnKey))
	return err
}

// row is one row of a result.
type row interface{ Scan(into ...any) error }

// collect runs a query and scans each row.
func collect[T any](ctx context.Context, tx db.Tx, scan func(row, *T) error, query string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var one T
		if err := scan(rows, &one); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// texts runs a query of one text column.
func texts(ctx context.Context, tx db.Tx, query string, args ...any) ([]string, error) {
	return collect(ctx, tx, func(r row, s *string) error { return r.Scan(s) }, query, args...)
}

// found turns "no rows" into false.
func found(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// tuples writes the VALUES of several rows and appends them to args.
func tuples(args *[]any, rows [][]any) string {
	var b strings.Builder
	for i, row := range rows {
		if i > 0 {
			b.WriteString(", ")
		}
		for j, value := range row {
			*args = append(*args, value)
			fmt.Fprintf(&b, "%s$%d", []string{"(", ", "}[min(j, 1)], len(*args))
		}
		b.WriteByte(')')
	}
	return b.String()
}

// emit stamps an event with the store's clock and adds it to the outbox.
func (s *Store) emit(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
	e.Time = timestamppb.New(s.now())
	if e.GetResult() == eventv1.Result_RESULT_UNSPECIFIED {
		e.Result = eventv1.Result_RESULT_SUCCEEDED
	}
	return event.Emit(ctx, tx, e)
}
