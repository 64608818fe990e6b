package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/sallyport-pki/sallyport/internal/rpc"
)

const (
	postgresConns = 16
	nextServer    = 5 * time.Second // for a server to let us in, where the connection string names others and no connect_timeout
	maxRepeats    = 20              // of a transaction that met a serialization failure or deadlock
)

func openPostgres(ctx context.Context, d *DB, dsn string, migrations fs.FS, service string) error {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return refuse("database.dsn is not a PostgreSQL connection string: %s", whatIsWrong(err))
	}
	d.name = fmt.Sprintf("PostgreSQL database %s on %s", c.Database, c.Host)
	c.RuntimeParams["search_path"] = pgx.Identifier{service}.Sanitize()
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "sallyport-" + service
	}
	c.DialFunc = noticing(c.DialFunc)
	if c.ConnectTimeout == 0 && slices.ContainsFunc(c.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != c.Host }) {
		c.ConnectTimeout = nextServer
	}
	d.writes = stdlib.OpenDB(*c, stdlib.OptionAfterConnect(awaitDisk))
	d.reads = d.writes
	d.writes.SetMaxOpenConns(postgresConns)
	d.writes.SetMaxIdleConns(postgresConns)
	d.writes.SetConnMaxIdleTime(5 * time.Minute)
	return d.classify(ctx, setUpPostgres(ctx, d.writes, migrations, d.name, service))
}

// noticing dials so that a server which falls silent, as one does whose machine has lost its power, is given up within seconds: by
// themselves its idle connections stay for minutes, and what waits for an answer for a quarter of an hour.
func noticing(socket pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "tcp" {
			return socket(ctx, network, address)
		}
		return rpc.Direct(ctx, address)
	}
}

// quoted is a part of the connection string in what is wrong with it: with a password that is not encoded, a part of that.
var quoted = regexp.MustCompile(`"[^"]*"`)

// whatIsWrong is pgx's error about a connection string without the string. pgx hides passwords, but not in each form that it takes.
func whatIsWrong(err error) string {
	text := err.Error()
	return quoted.ReplaceAllString(strings.TrimPrefix(text[strings.LastIndex(text, "`")+1:], ": "), `"..."`)
}

// awaitDisk keeps the promise of Write where the server, the database or the user is set to have commits answered before they are on disk.
func awaitDisk(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`)
	return err
}

// setUpPostgres holds an advisory lock, so that of several replicas starting together one migrates and the others wait.
func setUpPostgres(ctx context.Context, pool *sql.DB, migrations fs.FS, name, service string) error {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer discard(conn) // the lock goes with the session
	h := fnv.New64a()
	fmt.Fprintf(h, "sallyport migrations of %s", service)
	key := int64(h.Sum64())
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, key); err != nil {
		return fmt.Errorf("waiting for other replicas to migrate: %w", err)
	}
	if err := claimPostgres(ctx, conn, name, service); err != nil {
		return err
	}
	return migrate(ctx, pool, goose.DialectPostgres, migrations, name)
}

func claimPostgres(ctx context.Context, conn *sql.Conn, name, service string) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var exists, marked bool
	var tables int
	err = tx.QueryRowContext(ctx, `SELECT
		EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1),
		EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = $2),
		(SELECT count(*) FROM pg_tables WHERE schemaname = $1)`, service, metaTable).Scan(&exists, &marked, &tables)
	if err != nil {
		return fmt.Errorf("reading the schema: %w", err)
	}
	if !exists {
		if _, err := tx.ExecContext(ctx, `CREATE SCHEMA `+pgx.Identifier{service}.Sanitize()); err != nil {
			return fmt.Errorf("creating schema %s in %s (grant CREATE on the database, or create the schema owned by this user): %w", service, name, err)
		}
	}
	if err := claim(ctx, tx, "schema "+service+" of "+name, service, marked, tables); err != nil {
		return err
	}
	return tx.Commit()
}

func (d *DB) writePostgres(ctx context.Context, fn func(context.Context, Tx) error) ([]string, error) {
	for n := 0; ; n++ {
		topics, err := d.writeOnce(ctx, fn)
		var pg *pgconn.PgError
		if err == nil || n == maxRepeats || !errors.As(err, &pg) || !repeatable(pg) {
			return topics, err
		}
		pause := time.Duration(1+rand.IntN(10*(n+1))) * time.Millisecond
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (d *DB) writeOnce(ctx context.Context, fn func(context.Context, Tx) error) ([]string, error) {
	tx, err := d.writes.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	t := &plainTx{tx: tx}
	if err := fn(ctx, t); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		if errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil { // rolled back because ctx has ended
			err = ctx.Err()
		}
		return nil, fmt.Errorf("committing: %w", err)
	}
	return t.topics, nil
}
