package db_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

var migrations = fstest.MapFS{
	"00100_thing.sql": {Data: []byte(`-- +goose Up
CREATE TABLE thing (id TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL DEFAULT 'new', n BIGINT NOT NULL DEFAULT 0, data BYTEA, flag BOOLEAN NOT NULL DEFAULT FALSE);
`)},
	"00101_part.sql": {Data: []byte(`-- +goose Up
CREATE TABLE part (id TEXT NOT NULL PRIMARY KEY, thing TEXT NOT NULL REFERENCES thing (id));
`)},
}

// open has no function run twice that would not be in the product.
func open(t testing.TB, c db.Config) *db.DB {
	t.Helper()
	return opened(t, db.Config{Driver: c.Driver, DSN: c.DSN})
}

func opened(t testing.TB, c db.Config) *db.DB {
	t.Helper()
	d, err := db.Open(t.Context(), c, migrations, "issuer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, d) })
	return d
}

func shut(t testing.TB, d *db.DB) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

func insert(id string) func(context.Context, db.Tx) error {
	return func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO thing (id) VALUES ($1)`, id)
		return err
	}
}

func count(t testing.TB, d *db.DB, where string, args ...any) int {
	t.Helper()
	var n int
	err := d.Read(context.Background(), func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*) FROM thing WHERE `+where, args...).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestPortableSQL(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		ctx := t.Context()
		type state string
		err := d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
			// Placeholders out of order and repeated.
			_, err := tx.Exec(ctx, `INSERT INTO thing (n, id, data, flag, state) VALUES ($2, $1, $3, $4, $5 || $1)`, "a", int64(1)<<60, []byte{0, 1, 255}, true, "s-")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = d.Read(ctx, func(ctx context.Context, tx db.Tx) error {
			var n int64
			var data []byte
			var flag bool
			var s state
			if err := tx.QueryRow(ctx, `SELECT n, data, flag, state FROM thing WHERE flag = TRUE AND id = $1`, "a").Scan(&n, &data, &flag, &s); err != nil {
				return err
			}
			if n != 1<<60 || string(data) != "\x00\x01\xff" || !flag || s != "s-a" {
				t.Errorf("read back %d %x %t %s", n, data, flag, s)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		cas := func(to state, from ...state) bool {
			var won bool
			err := d.Write(ctx, func(ctx context.Context, tx db.Tx) (err error) {
				args := []any{to, "a"}
				won, err = db.Changed(tx.Exec(ctx, `UPDATE thing SET state = $1 WHERE id = $2 AND state IN `+db.In(&args, from), args...))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return won
		}
		if cas("x") || cas("x", "other", "another") || !cas("x", "other", "s-a") || cas("x", "s-a") {
			t.Error("compare-and-swap does not go by the state")
		}
		at := time.Date(2026, 11, 21, 10, 0, 0, 123456000, time.UTC)
		if got := db.Time(db.FromTime(at)); !got.Equal(at) || got.Location() != time.UTC {
			t.Errorf("time read back as %v", got)
		}
		if db.FromTime(time.Time{}) != 0 || !db.Time(0).IsZero() {
			t.Error("the zero time is not 0")
		}
	})
}

func TestFailuresStayAlone(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		mine := errors.New("mine")
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				ctx := t.Context()
				id := fmt.Sprintf("%s-%03d", []string{"good", "own", "sql", "panic", "exit"}[i%5], i)
				var err error
				switch i % 5 {
				case 0:
					if err = d.Write(ctx, insert(id)); err != nil {
						t.Errorf("%s: %v", id, err)
					}
				case 1:
					err = d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
						return errors.Join(insert(id)(ctx, tx), mine)
					})
					if !errors.Is(err, mine) {
						t.Errorf("%s: %v", id, err)
					}
				case 2:
					err = d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
						if err := insert(id)(ctx, tx); err != nil {
							return err
						}
						return insert(id)(ctx, tx)
					})
					if !db.Unique(err) {
						t.Errorf("%s: %v", id, err)
					}
				case 3:
					func() {
						defer func() {
							if r := recover(); r != "thrown" {
								t.Errorf("%s: recovered %v", id, r)
							}
						}()
						err = d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
							_ = insert(id)(ctx, tx)
							panic("thrown")
						})
					}()
				case 4:
					var inner sync.WaitGroup
					inner.Go(func() { // runtime.Goexit, as t.FailNow does
						_ = d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
							_ = insert(id)(ctx, tx)
							runtime.Goexit()
							return nil
						})
					})
					inner.Wait()
				}
			})
		}
		wg.Wait()
		if n := count(t, d, `id LIKE 'good-%'`); n != 40 {
			t.Errorf("%d of 40 good writes are there", n)
		}
		if n := count(t, d, `id NOT LIKE 'good-%'`); n != 0 {
			t.Errorf("%d failed writes left something behind", n)
		}
	})
}

func TestGivenUpBeforeItsTurn(t *testing.T) {
	d := open(t, servicetest.SQLite(t))
	inside, release := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(inside) })
	var wg sync.WaitGroup
	wg.Go(func() {
		err := d.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
			enter()
			<-release
			return insert("first")(ctx, tx)
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	ctx, cancel := context.WithCancel(context.Background())
	ran := false
	wg.Go(func() {
		err := d.Write(ctx, func(context.Context, db.Tx) error { ran = true; return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("gave %v", err)
		}
	})
	cancel()
	// A ctx that ends inside fn stops this call and only this call.
	inner, cancelInner := context.WithCancel(context.Background())
	wg.Go(func() {
		err := d.Write(inner, func(ctx context.Context, tx db.Tx) error {
			if err := insert("half")(ctx, tx); err != nil {
				return err
			}
			cancelInner()
			return insert("other half")(ctx, tx)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("gave %v", err)
		}
	})
	close(release)
	wg.Wait()
	if ran {
		t.Error("the function of a caller that had given up ran")
	}
	if n := count(t, d, `id = 'first'`); n != 1 {
		t.Errorf("the bystander's row: %d", n)
	}
	if n := count(t, d, `id LIKE '%half'`); n != 0 {
		t.Errorf("%d rows of the cancelled call", n)
	}
}

func TestTransactionIsOverWhenFnReturns(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		var kept db.Tx
		err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			kept = tx
			if _, err := tx.Query(ctx, `SELECT 1`); err != nil { //nolint:rowserrcheck,sqlclosecheck // left open: that is the test
				return err
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kept.Exec(t.Context(), `INSERT INTO thing (id) VALUES ('late')`); err == nil {
			t.Error("Exec after the end succeeded")
		}
		if _, err := kept.Query(t.Context(), `SELECT 1`); err == nil { //nolint:rowserrcheck,sqlclosecheck // there must be no rows
			t.Error("Query after the end succeeded")
		}
		var n int
		if err := kept.QueryRow(t.Context(), `SELECT 1`).Scan(&n); err == nil {
			t.Error("QueryRow after the end succeeded")
		}
		if err := d.Write(t.Context(), insert("next")); err != nil {
			t.Error(err)
		}
	})
}

func TestReadSeesOneState(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		ctx := t.Context()
		err := d.Read(ctx, func(ctx context.Context, tx db.Tx) error {
			one, two := -1, -1
			if err := tx.QueryRow(ctx, `SELECT count(*) FROM thing`).Scan(&one); err != nil {
				return err
			}
			if err := d.Write(t.Context(), insert("meanwhile")); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, `SELECT count(*) FROM thing`).Scan(&two); err != nil {
				return err
			}
			if one != 0 || two != 0 {
				t.Errorf("saw %d, then %d rows", one, two)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = d.Read(ctx, insert("never"))
		if err == nil {
			t.Error("Read could write")
		}
		if n := count(t, d, `TRUE`); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
}

func TestNestingIsRefused(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		type do = func(context.Context, func(context.Context, db.Tx) error) error
		for _, outer := range []do{d.Read, d.Write} {
			for _, inner := range []do{d.Read, d.Write} {
				err := outer(t.Context(), func(ctx context.Context, _ db.Tx) error {
					return inner(ctx, func(context.Context, db.Tx) error { t.Error("ran"); return nil })
				})
				if fault.KindOf(err) != fault.Internal || err == nil {
					t.Errorf("gave %v", err)
				}
			}
		}
	})
}

// A transaction of more pages than the cache has writes each of them once, when it is committed.
func TestLargeTransactionIsWrittenOnce(t *testing.T) {
	c := servicetest.SQLite(t)
	d := open(t, c)
	size := func() int64 {
		info, err := os.Stat(c.DSN + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
		before := size()
		for n := range 2000 {
			if _, err := tx.Exec(ctx, `INSERT INTO thing (id, data) VALUES ($1, $2)`, fmt.Sprint(n), make([]byte, 4000)); err != nil {
				return err
			}
		}
		if now := size(); now != before {
			t.Errorf("%d bytes were written before the commit", now-before)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := size(); n < 2000*4000 {
		t.Errorf("%d bytes were written by the commit", n)
	}
}

func TestNotifyAfterCommit(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		woken := d.Listen("work")
		other := d.Listen("other")
		fail := errors.New("no")
		_ = d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error { tx.Notify("work"); return fail })
		select {
		case <-woken:
			t.Error("woken by a transaction that failed")
		default:
		}
		for range 3 {
			err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
				tx.Notify("work")
				return insert(time.Now().String())(ctx, tx)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-woken:
		default:
			t.Error("not woken")
		}
		select {
		case <-other:
			t.Error("the wrong topic was woken")
		default:
		}
	})
}

func TestCompareAndSwapHasOneWinner(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		if err := d.Write(t.Context(), insert("a")); err != nil {
			t.Fatal(err)
		}
		var wins atomic.Int32
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				var won bool
				err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) (err error) {
					won, err = db.Changed(tx.Exec(ctx, `UPDATE thing SET state = 'taken' WHERE id = 'a' AND state = 'new'`))
					return err
				})
				if err != nil {
					t.Error(err)
				}
				if won {
					wins.Add(1)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Errorf("%d winners", wins.Load())
		}
	})
}

func TestCloseDuringWrites(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		var wg sync.WaitGroup
		var kept atomic.Int32
		for i := range 50 {
			wg.Go(func() {
				for j := 0; ; j++ {
					err := d.Write(context.Background(), insert(fmt.Sprintf("%d-%d", i, j)))
					if err != nil {
						return
					}
					kept.Add(1)
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := d.Write(context.Background(), insert("late")); fault.KindOf(err) != fault.Transient {
			t.Errorf("write on a closed database gave %v", err)
		}
		again := open(t, c)
		if n := count(t, again, `TRUE`); n < int(kept.Load()) {
			t.Errorf("%d rows of %d confirmed writes", n, kept.Load())
		}
	})
}

// TestCloseWaits for what has begun, and lets nothing begin meanwhile.
func TestCloseWaits(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		inside, leave := make(chan struct{}), make(chan struct{})
		late := func(fn func(context.Context, db.Tx) error) func(context.Context, db.Tx) error {
			return func(ctx context.Context, tx db.Tx) error {
				inside <- struct{}{}
				<-leave
				return fn(ctx, tx)
			}
		}
		rows := -1
		var written, read error
		var wg sync.WaitGroup
		wg.Go(func() { written = d.Write(context.Background(), late(insert("a"))) })
		<-inside
		wg.Go(func() {
			read = d.Read(context.Background(), late(func(ctx context.Context, tx db.Tx) error {
				return tx.QueryRow(ctx, `SELECT count(*) FROM thing`).Scan(&rows)
			}))
		})
		<-inside
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}()
		for { // until it has begun
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			err := d.Read(ctx, func(context.Context, db.Tx) error { return nil })
			cancel()
			if fault.KindOf(err) == fault.Transient {
				break
			}
		}
		select {
		case <-closed:
			t.Error("closed while transactions were open")
		case <-time.After(50 * time.Millisecond):
		}
		close(leave)
		wg.Wait()
		if written != nil || read != nil || rows < 0 {
			t.Errorf("what had begun: %v; %v, %d rows", written, read, rows)
		}
		<-closed
		if n := count(t, open(t, c), `TRUE`); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
}

// TestServerStarted tells one run of a server from another: it says the same as long as it is one, to all who use it. A file has none.
func TestServerStarted(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		ask := func(d *db.DB) (at time.Time) {
			err := d.Read(t.Context(), func(ctx context.Context, tx db.Tx) (err error) {
				at, err = d.ServerStarted(ctx, tx)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		first := open(t, c)
		at := ask(first)
		if at.IsZero() != (c.Driver == db.SQLite) || at.After(time.Now().Add(time.Second)) {
			t.Fatalf("the server was started at %s", at)
		}
		shut(t, first)
		if now := ask(open(t, c)); !now.Equal(at) {
			t.Errorf("it was started at %s, and now at %s", at, now)
		}
	})
}
