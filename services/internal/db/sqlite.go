package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver
)

// applicationID stands in the header of our data files (https://www.sqlite.org/fileformat.html, offset 68): "SALY".
const applicationID = 0x53414c59

const readers = 8

func openSQLite(ctx context.Context, d *DB, path string, migrations fs.FS, service string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("data file %s: %w", path, err)
	}
	d.name = "data file " + abs
	if d.lock, err = lockFile(abs); err != nil {
		return err
	}
	if err := checkFile(abs); err != nil {
		return err
	}
	// Temporary data stays in memory: a service may have no folder to write to but its own. So do up to 32 MiB of changes until
	// they are committed: what is written before is often written again, and all that follows in the log is then summed anew.
	pragmas := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "journal_size_limit(67108864)", "wal_autocheckpoint(4000)", "cache_spill(8000)", "temp_store(memory)"}, "_dqs": {"0"}}
	if d.writes, err = sql.Open("sqlite", dsn(abs, pragmas)); err != nil {
		return err
	}
	d.writes.SetMaxOpenConns(1)
	if err := claimSQLite(ctx, d.writes, d.name, service); err != nil {
		return d.classify(ctx, err)
	}
	// A process before this one may have ended because a sync failed, so nothing is taken for synced that is still in the log
	// of changes: it is all written into the data file anew.
	var busy, log, moved int
	if err := d.writes.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &log, &moved); err != nil {
		return d.classify(ctx, fmt.Errorf("opening %s: %w", d.name, err))
	}
	if err := migrate(ctx, d.writes, goose.DialectSQLite3, migrations, d.name); err != nil {
		return d.classify(ctx, err)
	}
	pragmas = url.Values{"_pragma": {"busy_timeout(10000)", "query_only(1)", "temp_store(memory)"}, "_dqs": {"0"}}
	if d.reads, err = sql.Open("sqlite", dsn(abs, pragmas)); err != nil {
		return err
	}
	d.reads.SetMaxOpenConns(readers)
	d.reads.SetMaxIdleConns(readers)
	return nil
}

// dsn is a file: URI, so that no character of the path is taken for a parameter.
func dsn(abs string, params url.Values) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: abs, RawQuery: params.Encode()}
	return u.String()
}

// lockFile takes the lock beside the data file that keeps a second process out. The file stays when the lock is released.
func lockFile(abs string) (*os.File, error) {
	dir := filepath.Dir(abs)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse("the directory %s does not exist: create it, owned by the user the service runs as", dir)
	}
	if err == nil && !info.IsDir() {
		return nil, refuse("%s is not a directory: give the data file another path", dir)
	}
	f, err := os.OpenFile(abs+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return nil, unavailable("disk full: free space on the file system of %s: %w", dir, err)
	case errors.Is(err, syscall.EROFS):
		return nil, refuse("the file system of %s is read-only: remount it writable or give the data file another path", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, refuse("no permission to write in %s: make it owned by the user the service runs as", dir)
	case err != nil:
		return nil, fmt.Errorf("locking data file %s: %w", abs, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 20))
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, refuse("data file %s is in use by process %s: stop that one first", abs, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("locking data file %s: %w", abs, err)
	}
	pid := fmt.Sprintf("%d\n", os.Getpid())
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(pid), 0)
		if errors.Is(err, syscall.ENOSPC) {
			f.Close()
			return nil, unavailable("disk full: free space on the file system of %s: %w", dir, err)
		}
	}
	return f, nil
}

// checkFile creates the data file, readable by its owner alone, or refuses one that is not SQLite's.
func checkFile(abs string) error {
	created, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return created.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("creating data file %s: %w", abs, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return fmt.Errorf("data file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return refuse("%s is not a file: give the data file another path", abs)
	}
	f, err := os.OpenFile(abs, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return refuse("no permission to write data file %s: make it owned by the user the service runs as", abs)
	}
	if err != nil {
		return fmt.Errorf("data file: %w", err)
	}
	defer f.Close()
	header := make([]byte, 16)
	n, err := io.ReadFull(f, header)
	if errors.Is(err, io.EOF) { // empty: SQLite fills it
		return nil
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading data file: %w", err)
	}
	if string(header[:n]) != "SQLite format 3\x00" {
		return refuse("%s is not an SQLite data file: give another path, or restore it from a backup if it should be one", abs)
	}
	return nil
}

func claimSQLite(ctx context.Context, pool *sql.DB, name, service string) error {
	var mode string
	if err := pool.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	if mode != "wal" {
		return refuse("%s is on a file system without shared memory for WAL (a network share?): put it on a local disk", name)
	}
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var id int64
	if err := tx.QueryRowContext(ctx, `PRAGMA application_id`).Scan(&id); err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	var tables int
	if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&tables); err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	if id != 0 && id != applicationID {
		tables = max(tables, 1)
	}
	if err := claim(ctx, tx, name, service, id == applicationID, tables); err != nil {
		return err
	}
	if id != applicationID {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID)); err != nil {
			return err
		}
	}
	return tx.Commit()
}
