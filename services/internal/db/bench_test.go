package db_test

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver, for the bare side
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// postgres must be a server that syncs, which those of servicetest do not.
var postgres = flag.String("postgres", "", "connection string of an empty PostgreSQL database to run benchmarks on")

const (
	bareTable  = `CREATE TABLE bare (id TEXT NOT NULL PRIMARY KEY, data BYTEA)`
	bareInsert = `INSERT INTO bare (id, data) VALUES ($1, $2)`
)

// BenchmarkWrite is one row of 512 B and its commit for each of so many concurrent callers, beside database/sql with the same
// driver and a transaction for each.
func BenchmarkWrite(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("sqlite, %d callers", callers), func(b *testing.B) { writes(b, open(b, servicetest.SQLite(b)), callers) })
		b.Run(fmt.Sprintf("sqlite bare, %d callers", callers), func(b *testing.B) {
			query := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)"}, "_txlock": {"immediate"}}
			pool, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "bare.db")+"?"+query.Encode())
			if err != nil {
				b.Fatal(err)
			}
			pool.SetMaxOpenConns(1)
			bare(b, pool, callers)
		})
		if *postgres == "" {
			continue
		}
		b.Run(fmt.Sprintf("postgres, %d callers", callers), func(b *testing.B) {
			writes(b, open(b, db.Config{Driver: db.Postgres, DSN: *postgres}), callers)
		})
		b.Run(fmt.Sprintf("postgres bare, %d callers", callers), func(b *testing.B) {
			pool, err := sql.Open("pgx", *postgres)
			if err != nil {
				b.Fatal(err)
			}
			pool.SetMaxOpenConns(16)
			pool.SetMaxIdleConns(16)
			bare(b, pool, callers)
		})
	}
}

var rows atomic.Int64

func writes(b *testing.B, d *db.DB, callers int) {
	data := make([]byte, 512)
	each(b, callers, func(ctx context.Context) error {
		return d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO thing (id, data) VALUES ($1, $2)`, fmt.Sprint(rows.Add(1)), data)
			return err
		})
	})
}

func bare(b *testing.B, pool *sql.DB, callers int) {
	defer func() { _ = pool.Close() }()
	for _, statement := range []string{`DROP TABLE IF EXISTS bare`, bareTable} {
		if _, err := pool.ExecContext(b.Context(), statement); err != nil {
			b.Fatal(err)
		}
	}
	data := make([]byte, 512)
	each(b, callers, func(ctx context.Context) error {
		tx, err := pool.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, bareInsert, fmt.Sprint(rows.Add(1)), data); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// each has callers do b.N calls in all.
func each(b *testing.B, callers int, call func(context.Context) error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := call(b.Context()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
}
