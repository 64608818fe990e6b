package servicetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Pair is a PostgreSQL server and a streaming standby that follows it, asynchronously, until it is cut off.
type Pair struct {
	t                testing.TB
	primary, standby string // directories with the sockets
}

// NewPair starts both. They end with the test.
func NewPair(t testing.TB) *Pair {
	t.Helper()
	bin, err := postgresBin()
	if err != nil {
		t.Fatal(err)
	}
	p := &Pair{t: t}
	p.primary = p.serve(bin, "initdb", initdbArgs...)
	p.standby = p.serve(bin, "pg_basebackup", "-h", p.primary, "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync")
	return p
}

// serve starts a server of what that program makes.
func (p *Pair) serve(bin, program string, args ...string) (dir string) {
	p.t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sppg")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	attr, err := asPostgres(dir)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := runAs(attr, dir, filepath.Join(bin, program), append(args, "-D", filepath.Join(dir, "data"))...); err != nil {
		p.t.Fatal(err)
	}
	stop, err := servePostgres(bin, dir, attr, "-c", "max_connections=60", "-c", "shared_buffers=16MB")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(stop)
	if err := awaitPostgres(dir); err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// Store makes an empty database, and names both servers: connections go to the one that takes writes.
func (p *Pair) Store(name string) db.Config {
	p.t.Helper()
	administer(p.t, p.primary, "CREATE DATABASE "+name)
	return db.Config{Driver: db.Postgres, DSN: postgresDSN(p.primary+","+p.standby, name) + " target_session_attrs=read-write"}
}

// Cut waits until the standby has all that was committed, and lets it have no more.
func (p *Pair) Cut() {
	p.t.Helper()
	var end string
	p.ask(p.primary, "postgres", &end, `SELECT pg_current_wal_flush_lsn()::text`)
	p.await("the standby has everything", `SELECT pg_last_wal_replay_lsn() >= '`+end+`'`)
	administer(p.t, p.standby, `ALTER SYSTEM SET primary_conninfo = ''`)
	administer(p.t, p.standby, `SELECT pg_reload_conf()`)
	p.await("the standby is cut off", `SELECT NOT EXISTS (SELECT 1 FROM pg_stat_wal_receiver)`)
}

// Fail kills the server without a word, and has the standby take its place.
func (p *Pair) Fail() {
	p.t.Helper()
	pidFile, err := os.ReadFile(filepath.Join(p.primary, "data", "postmaster.pid"))
	if err != nil {
		p.t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(pidFile), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	administer(p.t, p.standby, `SELECT pg_promote()`)
	p.await("the standby takes writes", `SELECT NOT pg_is_in_recovery()`)
}

// OfStandby asks the standby for one value.
func (p *Pair) OfStandby(database string, into any, query string) {
	p.t.Helper()
	p.ask(p.standby, database, into, query)
}

func (p *Pair) await(what, query string) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var so bool
		if p.ask(p.standby, "postgres", &so, query); so {
			return
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(p.standby, "log"))
			p.t.Fatalf("never: %s\n%s", what, log)
		}
	}
}

func (p *Pair) ask(dir, database string, into any, query string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, postgresDSN(dir, database))
	if err != nil {
		p.t.Fatalf("connecting to PostgreSQL: %v", err)
	}
	err = conn.QueryRow(ctx, query).Scan(into)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		p.t.Fatalf("%s: %v", query, err)
	}
}
