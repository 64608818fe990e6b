package servicetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// EachStore runs fn as two subtests: with an empty SQLite file and with an empty database on a real PostgreSQL.
func EachStore(t *testing.T, fn func(*testing.T, db.Config)) {
	t.Helper()
	t.Run(db.SQLite, func(t *testing.T) { fn(t, SQLite(t)) })
	t.Run(db.Postgres, func(t *testing.T) { fn(t, Postgres(t)) })
}

// SQLite names a data file that does not exist yet, in a directory of its own. In a test, every function given to Write is run
// twice, and what its first run changed in the database is undone.
func SQLite(t testing.TB) db.Config {
	c := db.Config{Driver: db.SQLite, DSN: filepath.Join(t.TempDir(), "test.db")}
	if _, measured := t.(*testing.B); measured {
		return c
	}
	return c.Rehearsed()
}

// Postgres makes an empty database. The server is started once for the test process and ends with it.
func Postgres(t testing.TB) db.Config {
	t.Helper()
	dir, err := startPostgres()
	if err != nil {
		t.Fatalf("starting PostgreSQL: %v\n(what is missing comes with `make tools`)", err)
	}
	name := fmt.Sprintf("t%d", databases.Add(1))
	administer(t, dir, "CREATE DATABASE "+name)
	t.Cleanup(func() { administer(t, dir, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") })
	return db.Config{Driver: db.Postgres, DSN: postgresDSN(dir, name)}
}

var databases atomic.Int64

func postgresDSN(dir, database string) string {
	return "host=" + dir + " user=postgres sslmode=disable dbname=" + database
}

func administer(t testing.TB, dir, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, postgresDSN(dir, "postgres"))
	if err != nil {
		t.Fatalf("connecting to PostgreSQL: %v", err)
	}
	_, err = conn.Exec(ctx, statement)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// startPostgres gives the directory with the server's socket.
var startPostgres = sync.OnceValues(func() (string, error) {
	bin, err := postgresBin()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("/tmp", "sppg") // short: a socket's path has at most 107 bytes
	if err != nil {
		return "", err
	}
	attr, err := asPostgres(dir)
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	if err := runAs(attr, dir, filepath.Join(bin, "initdb"), append(initdbArgs, "-D", filepath.Join(dir, "data"))...); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	if _, err := servePostgres(bin, dir, attr, "-c", "max_connections=200", "-c", "shared_buffers=32MB"); err != nil {
		return "", err
	}
	return dir, awaitPostgres(dir)
})

var initdbArgs = []string{"-A", "trust", "-U", "postgres", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"}

func runAs(attr *syscall.SysProcAttr, dir, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// servePostgres starts a server of what is in dir/data. stop stops it, and returns when its files are removed too.
func servePostgres(bin, dir string, attr *syscall.SysProcAttr, args ...string) (stop func(), err error) {
	// The shell outlives the test process by the moment it takes to stop the server and remove its files.
	const script = `bin=$1; shift; "$bin/postgres" -D "$0/data" -k "$0" -c listen_addresses= -c fsync=off "$@" >"$0/log" 2>&1 & p=$!
		trap 'kill -QUIT $p' TERM INT; wait $p; wait $p; rm -rf "$0"`
	server := exec.Command("/bin/sh", append([]string{"-c", script, dir, bin}, args...)...)
	server.Dir = "/"
	server.SysProcAttr = attr
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the death signal is sent when this thread ends, so it must be there until the process ends
		err := server.Start()
		started <- err
		if err == nil {
			_ = server.Wait()
		}
		close(ended)
		select {}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return func() { _ = server.Process.Signal(syscall.SIGTERM); <-ended }, nil
}

func awaitPostgres(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, postgresDSN(dir, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if ctx.Err() != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			return fmt.Errorf("not ready after a minute: %w\n%s", err, log)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// postgresBin finds the server programs, which Debian does not put into PATH.
func postgresBin() (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return "", errors.New("no PostgreSQL server is installed")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	sort.Slice(found, func(i, j int) bool { return version(found[i]) > version(found[j]) })
	return filepath.Dir(found[0]), nil
}

// asPostgres lets a child run as the user postgres when we are root, which PostgreSQL refuses to run as.
func asPostgres(dir string) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("running as root, PostgreSQL needs its own user: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr, os.Chown(dir, int(uid), int(gid))
}
