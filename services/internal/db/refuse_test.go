package db_test

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"golang.org/x/sys/unix"
)

func refused(t *testing.T, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("was not refused")
	}
	if fault.KindOf(err) != kind {
		t.Errorf("kind %s of %v", fault.KindOf(err), err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q is more than a line", err)
	}
}

func tryOpen(t *testing.T, c db.Config) error {
	t.Helper()
	d, err := db.Open(t.Context(), c, migrations, "issuer")
	if err == nil {
		shut(t, d)
	}
	return err
}

func TestConfig(t *testing.T) {
	for _, c := range []db.Config{{}, {Driver: "mysql", DSN: "x"}, {Driver: db.SQLite}, {Driver: db.Postgres}} {
		if fault.KindOf(c.Validate()) != fault.InvalidArgument {
			t.Errorf("%+v: %v", c, c.Validate())
		}
	}
}

func TestRefusedFiles(t *testing.T) {
	write := func(content string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	statements := func(all ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			raw, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range all {
				if _, err := raw.Exec(s); err != nil {
					t.Fatal(err)
				}
			}
			if err := raw.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		prepare func(*testing.T, string)
		kind    fault.Kind
		words   []string
	}{
		"text":           {write("hello, this is not a database at all\n"), fault.Precondition, []string{"not an SQLite data file"}},
		"short":          {write("SQLite"), fault.Precondition, []string{"not an SQLite data file"}},
		"only a header":  {write("SQLite format 3\x00" + strings.Repeat("\xff", 5000)), fault.Internal, []string{"damaged", "backup"}},
		"other program":  {statements(`CREATE TABLE bookmarks (url TEXT)`), fault.Precondition, []string{"another program"}},
		"other app id":   {statements(`PRAGMA application_id = 77`), fault.Precondition, []string{"another program"}},
		"a directory":    {func(t *testing.T, path string) { _ = os.Mkdir(path, 0o700) }, fault.Precondition, []string{"not a file"}},
		"a fifo":         {func(t *testing.T, path string) { _ = unix.Mkfifo(path, 0o600) }, fault.Precondition, []string{"not a file"}},
		"no directory":   {func(t *testing.T, path string) { _ = os.Remove(filepath.Dir(path)) }, fault.Precondition, []string{"does not exist", "create it"}},
		"file for a dir": {func(t *testing.T, path string) { _ = os.Remove(filepath.Dir(path)); write("")(t, filepath.Dir(path)) }, fault.Precondition, []string{"not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "issuer.db")
			c.prepare(t, path)
			refused(t, tryOpen(t, db.Config{Driver: db.SQLite, DSN: path}), c.kind, append(c.words, filepath.Dir(path))...)
		})
	}
}

// unprivileged runs fn without the superuser's right to pass over file modes.
func unprivileged(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Setfsuid(65534); err != nil {
				panic(err)
			}
		}
		fn()
	}()
	<-done
}

func TestRefusedByMode(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "issuer.db")
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	unprivileged(func() {
		refused(t, tryOpen(t, db.Config{Driver: db.SQLite, DSN: path}), fault.Precondition, "no permission", dir)
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	unprivileged(func() {
		refused(t, tryOpen(t, db.Config{Driver: db.SQLite, DSN: path}), fault.Precondition, "no permission", path)
	})
}

func TestOneProcessPerDataFile(t *testing.T) {
	c := servicetest.SQLite(t)
	first := open(t, c)
	refused(t, tryOpen(t, c), fault.Precondition, "in use", fmt.Sprint(os.Getpid()))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(t, c); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(c.DSN)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("data file: %v %v", info.Mode(), err)
	}
}

func TestOddPaths(t *testing.T) {
	for _, name := range []string{"a b.db", "a?mode=memory", "a#b", "a%20b", "ä;b&c=d"} {
		path := filepath.Join(t.TempDir(), name)
		c := db.Config{Driver: db.SQLite, DSN: path}
		d := open(t, c)
		if err := d.Write(t.Context(), insert("x")); err != nil {
			t.Fatal(err)
		}
		shut(t, d)
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		if n := count(t, open(t, c), `TRUE`); n != 1 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
}

func TestVersions(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		if err := d.Write(t.Context(), insert("old")); err != nil {
			t.Fatal(err)
		}
		shut(t, d)

		t.Run("again", func(t *testing.T) {
			if n := count(t, open(t, c), `TRUE`); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
		newer := db.Merge(migrations, fstest.MapFS{"00102_more.sql": {Data: []byte("-- +goose Up\nALTER TABLE thing ADD COLUMN more TEXT NOT NULL DEFAULT '';\n")}})
		t.Run("broken migration", func(t *testing.T) {
			broken := db.Merge(migrations, fstest.MapFS{"00102_more.sql": {Data: []byte("-- +goose Up\nCREATE TABLE x (id TEXT);\nNONSENSE;\n")}})
			_, err := db.Open(t.Context(), c, broken, "issuer")
			if err == nil || !strings.Contains(err.Error(), "00102_more.sql") {
				t.Errorf("gave %v", err)
			}
		})
		t.Run("newer program", func(t *testing.T) {
			d, err := db.Open(t.Context(), c, newer, "issuer")
			if err != nil {
				t.Fatal(err)
			}
			if n := count(t, d, `more = ''`); n != 1 {
				t.Errorf("%d rows", n)
			}
			shut(t, d)
		})
		t.Run("older program", func(t *testing.T) {
			d := open(t, c)
			if err := d.Write(t.Context(), insert("older")); err != nil {
				t.Fatal(err)
			}
			if n := count(t, d, `TRUE`); n != 2 {
				t.Errorf("%d rows", n)
			}
			shut(t, d)
		})
		t.Run("older program that would misread", func(t *testing.T) {
			apart := db.Merge(newer, fstest.MapFS{"00103_apart.sql": {Data: []byte("-- +goose Up\nCREATE TABLE sallyport_oldest (schema BIGINT NOT NULL);\nINSERT INTO sallyport_oldest VALUES (102);\n")}})
			d, err := db.Open(t.Context(), c, apart, "issuer")
			if err != nil {
				t.Fatal(err)
			}
			shut(t, d)
			if d, err = db.Open(t.Context(), c, newer, "issuer"); err != nil {
				t.Fatalf("a program that knows enough: %v", err)
			}
			shut(t, d)
			refused(t, tryOpen(t, c), fault.Precondition, "newer program", "103", "102", "101")
		})
	})
}

func TestOtherServicesDatabase(t *testing.T) {
	c := servicetest.SQLite(t)
	shut(t, open(t, c))
	_, err := db.Open(t.Context(), c, migrations, "deployer")
	refused(t, err, fault.Precondition, "belongs to the issuer service", "deployer")
}

func TestPostgresSchemas(t *testing.T) {
	c := servicetest.Postgres(t)
	issuer := open(t, c)
	deployer, err := db.Open(t.Context(), c, migrations, "deployer")
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, deployer)
	if err := issuer.Write(t.Context(), insert("mine")); err != nil {
		t.Fatal(err)
	}
	if n := count(t, deployer, `TRUE`); n != 0 {
		t.Error("one service sees another's rows")
	}
	err = issuer.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
		for _, s := range []string{`CREATE SCHEMA audit`, `CREATE TABLE audit.bookmarks (url TEXT)`, `CREATE ROLE guest LOGIN`} {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Open(t.Context(), c, migrations, "audit")
	refused(t, err, fault.Precondition, "another program", "audit")
	_, err = db.Open(t.Context(), db.Config{Driver: db.Postgres, DSN: strings.Replace(c.DSN, "user=postgres", "user=guest", 1)}, migrations, "inventory")
	if err == nil || !strings.Contains(err.Error(), "grant CREATE") {
		t.Errorf("without the right to create a schema: %v", err)
	}
}

// silent is the port of a server that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestPostgresUnreachable(t *testing.T) {
	c := servicetest.Postgres(t)
	port := silent(t)
	for name, want := range map[string]struct {
		dsn   string
		kind  fault.Kind
		words []string
	}{
		"no server":   {"host=" + t.TempDir() + " user=postgres dbname=x", fault.Transient, []string{"cannot be reached"}},
		"no answer":   {"host=127.0.0.1 port=" + port + " user=postgres dbname=x sslmode=disable connect_timeout=1", fault.Transient, []string{"cannot be reached"}},
		"no database": {strings.Replace(c.DSN, "dbname=", "dbname=no_", 1), fault.Precondition, []string{"does not exist", "create the database"}},
		"no user":     {strings.Replace(c.DSN, "user=postgres", "user=nobody_here", 1), fault.Precondition, []string{"does not let the user in"}},
		"no dsn":      {"postgres://%zz", fault.Precondition, []string{"not a PostgreSQL connection string"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := tryOpen(t, db.Config{Driver: db.Postgres, DSN: want.dsn})
			refused(t, err, want.kind, want.words...)
		})
	}
}

// Where two servers are named and the first says nothing, the second is asked before a caller has lost his patience.
func TestPostgresFirstIsSilent(t *testing.T) {
	t.Parallel() // it waits
	c := servicetest.Postgres(t)
	port := silent(t)
	c.DSN = strings.Replace(c.DSN, "host=", "host=127.0.0.1,", 1) + " port=" + port + ",5432"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := db.Open(ctx, c, migrations, "inventory")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// What is wrong with a connection string is told without the password in it, in whatever form pgx takes one.
func TestPostgresPasswordIsNotTold(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:hunter2@h:port/x", "postgres://u:hunter/hunter2@h/x", "postgres://h/x?password=hunter2&port=no",
		"user=u password=hunter2 port=no", "user=u password = hunter2 port=no", `user=u password=hunt\ hunter2 port=no`, "user=u password='a hunter2' port=no",
	} {
		err := tryOpen(t, db.Config{Driver: db.Postgres, DSN: dsn})
		refused(t, err, fault.Precondition, "not a PostgreSQL connection string: ")
		if strings.Contains(fmt.Sprint(err), "hunt") {
			t.Errorf("%s: %v", dsn, err)
		}
		for _, driver := range []string{db.Postgres, db.SQLite} { // a wrong driver is found only after that
			if logged := (db.Config{Driver: driver, DSN: dsn}).LogValue().String(); strings.Contains(logged, "hunt") {
				t.Errorf("%s: logged as %s", dsn, logged)
			}
		}
	}
	if path := "/var/lib/sallyport/issuer.db"; !strings.Contains((db.Config{Driver: db.SQLite, DSN: path}).LogValue().String(), path) {
		t.Error("the path of a SQLite database is not logged")
	}
}

// Two replicas that start together must not both migrate.
func TestReplicasMigrateOnce(t *testing.T) {
	c := servicetest.Postgres(t)
	errs := make(chan error)
	for range 6 {
		go func() { errs <- tryOpen(t, c) }()
	}
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
