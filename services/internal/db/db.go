// Package db gives a service its own database: SQLite in one file by default, PostgreSQL where one machine is not enough.
//
// It guarantees that a nil error from Write means the change is on disk, that a failed or abandoned Write left nothing behind,
// that nothing is written any more once the disk has failed to sync (Watch), that the schema is the one this program knows, and that a data file is open in one process only.
// It leaves to its callers to write portable SQL: placeholders $1..$n, the types TEXT, BIGINT, BYTEA and BOOLEAN, times as
// BIGINT microseconds (FromTime, Time), JSON as TEXT, ON CONFLICT. After a failed statement a transaction must be given up,
// because PostgreSQL refuses everything that follows.
package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// Config says where a service keeps its data.
type Config struct {
	// Driver is "sqlite" or "postgres".
	Driver string `yaml:"driver"`
	// DSN is the path of the data file (sqlite), whose directory must exist and be on a local file system, or a
	// PostgreSQL connection string or URL. A password in it belongs into a PGPASSFILE or PGPASSWORD instead.
	DSN string `yaml:"dsn"`

	rehearse bool `yaml:"-"`
}

// Rehearsed is c for tests: on SQLite, each function given to Write that succeeds is run once more, as if it had shared its first
// transaction with one that failed. So what is not repeatable shows.
func (c Config) Rehearsed() Config {
	c.rehearse = true
	return c
}

// LogValue hides all of a connection string but its scheme: it may hold a password, against all advice.
func (c Config) LogValue() slog.Value {
	dsn := c.DSN
	if scheme, _, ok := strings.Cut(dsn, "://"); ok {
		dsn = scheme + "://..."
	} else if dsn != "" && (c.Driver != SQLite || strings.Contains(dsn, "=")) { // the other kind's, with the wrong driver
		dsn = "..."
	}
	return slog.GroupValue(slog.String("driver", c.Driver), slog.String("dsn", dsn))
}

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	if c.Driver != SQLite && c.Driver != Postgres {
		return fault.Invalid("database.driver", "want %q or %q, not %q", SQLite, Postgres, c.Driver)
	}
	if c.DSN == "" {
		return fault.Invalid("database.dsn", "must not be empty: give the path of the data file or a PostgreSQL connection string")
	}
	return nil
}

// Tx is one transaction. It must not be used after the function it was given to has returned. A Row is to be scanned before the
// same statement is run again.
type Tx interface {
	Exec(ctx context.Context, query string, args ...any) (sql.Result, error)
	Query(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRow(ctx context.Context, query string, args ...any) *sql.Row
	// Notify wakes those who Listen to topic, in this process, once the transaction is committed.
	Notify(topic string)
}

// DB is one service's database. Its methods may be called concurrently.
type DB struct {
	name     string // what error messages call it: the file, or the host
	instance string
	reads    *sql.DB
	writes   *sql.DB
	writer   *writer  // SQLite only
	lock     *os.File // SQLite only
	closed   atomic.Bool
	open     gate
	topics   topics
	meters   *meters
	distrust distrust
}

var schemaName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,40}$`)

// Open opens the database, creates what is missing and brings the schema up to date with the goose migrations (*.sql in the
// root of migrations). schema names the service: PostgreSQL keeps its tables in a schema of that name, and a database of
// another service is refused, as is one written by a newer program. Every refusal says what to do about it.
func Open(ctx context.Context, c Config, migrations fs.FS, schema string) (*DB, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if !schemaName.MatchString(schema) {
		return nil, fault.New(fault.Internal, "INTERNAL", "database schema name %q: want lower-case letters, digits and _", schema)
	}
	open := openSQLite
	if c.Driver == Postgres {
		open = openPostgres
	}
	d := &DB{instance: uuid.NewString(), meters: newMeters()}
	if err := open(ctx, d, c.DSN, migrations, schema); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if c.Driver == SQLite {
		d.writer = newWriter(d.writes, &d.distrust, d.meters.group, c.rehearse)
	}
	return d, nil
}

// Close waits for the transactions that have begun, refuses those that have not, and releases the data file.
func (d *DB) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	if d.writer != nil {
		d.writer.close()
	}
	d.open.close()
	var first error
	keep := func(err error) {
		if first == nil && err != nil {
			first = err
		}
	}
	if d.reads != nil && d.reads != d.writes {
		keep(d.reads.Close())
	}
	if d.writes != nil {
		keep(d.writes.Close())
	}
	if d.lock != nil {
		keep(d.lock.Close())
	}
	return first
}

// Instance identifies this opening of the database: it is new each time a process opens it.
func (d *DB) Instance() string { return d.instance }

// Name is what messages call the database: the data file, or the server.
func (d *DB) Name() string { return d.name }

// Damage lets the database check what it has on disk, which reads all of it, and gives what is wrong. PostgreSQL has no such
// check that a service may run: there it finds nothing.
func (d *DB) Damage(ctx context.Context) ([]string, error) {
	if d.writer == nil {
		return nil, nil
	}
	var found []string
	err := d.Read(ctx, func(ctx context.Context, tx Tx) error {
		rows, err := tx.Query(ctx, `PRAGMA integrity_check`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return err
			}
			if line != "ok" {
				found = append(found, line)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, err
	}
	err = d.Read(ctx, func(ctx context.Context, tx Tx) error {
		rows, err := tx.Query(ctx, `SELECT "table", coalesce(rowid, 0), parent FROM pragma_foreign_key_check`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var table, parent string
			var row int64
			if err := rows.Scan(&table, &row, &parent); err != nil {
				return err
			}
			found = append(found, fmt.Sprintf("row %d of %s refers to a row of %s that is not there", row, table, parent))
		}
		return rows.Err()
	})
	return found, err
}

// Exclusive reports that no other process can have this database open, so whatever another Instance left is a leftover.
func (d *DB) Exclusive() bool { return d.writer != nil }

// inside marks the context of a transaction's function. One transaction inside another would wait for itself: for the one
// writer of SQLite, or for a connection when all are taken.
type inside struct{}

// begin is followed by d.open.leave.
func (d *DB) begin(ctx context.Context) (context.Context, error) {
	if ctx.Value(inside{}) != nil {
		return nil, fault.New(fault.Internal, "INTERNAL", "a transaction was begun inside another: pass the first one on instead")
	}
	if !d.open.enter() {
		return nil, d.classify(ctx, errClosed)
	}
	return context.WithValue(ctx, inside{}, true), nil
}

// gate lets transactions in until it is closed.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) leave() { g.inside.Done() }

// close waits for those that are in.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

// Write runs fn in a transaction and commits it when fn returns nil. fn does SQL and nothing that waits.
//
// SQLite: concurrent calls share one transaction and one fsync; where one fails, those that shared with it run again, once, and
// it takes nothing of theirs with it. Once fn runs, ctx no longer interrupts a statement, only the next one.
// PostgreSQL: one read-committed transaction each, which is enough for UPDATE ... WHERE state IN (...): the second of two
// updates waits for the first and looks again. After a serialization failure or deadlock fn runs again.
// So fn must be repeatable: it sets what it captures, and does not add to it.
//
// A transaction inside a transaction is refused, by the context given to fn. Constraints must not be deferred: a COMMIT that
// fails takes all calls of its transaction with it.
//
// Errors of the storage itself (disk full, I/O error, server away) come back as fault.Transient STORAGE_UNAVAILABLE. A change
// whose sync failed may be there after a restart.
func (d *DB) Write(ctx context.Context, fn func(context.Context, Tx) error) (err error) {
	defer func(begun time.Time) { d.meters.ended(kindWrite, begun, err) }(time.Now())
	ctx, err = d.begin(ctx)
	if err != nil {
		return err
	}
	defer d.open.leave()
	var topics []string
	if d.writer != nil {
		topics, err = d.writer.do(ctx, fn)
	} else {
		topics, err = d.writePostgres(ctx, fn)
	}
	if err != nil {
		return d.classify(ctx, err)
	}
	d.topics.wake(topics)
	return nil
}

// Read runs fn in a read-only transaction that sees one state of the database throughout.
func (d *DB) Read(ctx context.Context, fn func(context.Context, Tx) error) (err error) {
	defer func(begun time.Time) { d.meters.ended(kindRead, begun, err) }(time.Now())
	ctx, err = d.begin(ctx)
	if err != nil {
		return err
	}
	defer d.open.leave()
	opts := &sql.TxOptions{ReadOnly: true}
	if d.writer == nil {
		opts.Isolation = sql.LevelRepeatableRead
	}
	tx, err := d.reads.BeginTx(ctx, opts)
	if err != nil {
		return d.classify(ctx, err)
	}
	defer tx.Rollback()
	return d.classify(ctx, fn(ctx, &plainTx{tx: tx}))
}

// Listen returns a channel that receives after each committed transaction, or several together, that called Notify(topic).
// It is a hint from this process alone: whoever waits on it must also look by itself from time to time.
func (d *DB) Listen(topic string) <-chan struct{} { return d.topics.listen(topic) }

// plainTx is a transaction of database/sql.
type plainTx struct {
	tx     *sql.Tx
	topics []string
}

func (t *plainTx) Exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return t.tx.ExecContext(ctx, query, args...)
}

func (t *plainTx) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.tx.QueryContext(ctx, query, args...)
}

func (t *plainTx) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(ctx, query, args...)
}

func (t *plainTx) Notify(topic string) { t.topics = append(t.topics, topic) }

// Changed reports whether a statement changed any row: the answer to a compare-and-swap.
//
//	won, err := db.Changed(tx.Exec(ctx, `UPDATE request SET state = $1 WHERE id = $2 AND state = $3`, ...))
func Changed(res sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// FromTime is how a time is stored: microseconds since 1970 UTC; the zero time is 0.
func FromTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time is the inverse of FromTime, in UTC.
func Time(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// ServerStarted is when the server was started on which tx runs: that of another, as after a failover, is another. A file has none: zero.
func (d *DB) ServerStarted(ctx context.Context, tx Tx) (time.Time, error) {
	if d.Exclusive() {
		return time.Time{}, nil
	}
	var micros int64
	err := tx.QueryRow(ctx, `SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint`).Scan(&micros)
	return Time(micros), err
}

// In writes the placeholders of an IN list, "($4, $5)", and appends its values to args. The list of no values matches nothing.
func In[T any](args *[]any, values []T) string {
	if len(values) == 0 {
		return "(NULL)"
	}
	var b strings.Builder
	for i, v := range values {
		*args = append(*args, v)
		fmt.Fprintf(&b, "%s$%d", []string{"(", ", "}[min(i, 1)], len(*args))
	}
	return b.String() + ")"
}
