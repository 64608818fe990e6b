package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"

	_ "modernc.org/sqlite" // the driver
)

// open opens an SQLite file that a running service may have open as well.
func open(path string, pragmas ...string) (*sql.DB, error) {
	query := url.Values{"_pragma": append([]string{"busy_timeout(10000)", "temp_store(memory)"}, pragmas...), "_dqs": {"0"}, "mode": {"rw"}}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}
	pool, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(1)
	return pool, nil
}

// snapshotDatabase copies one state of the database into a new file, whoever writes to it meanwhile: VACUUM INTO is one read
// transaction (https://www.sqlite.org/lang_vacuum.html), which holds nobody up.
func snapshotDatabase(ctx context.Context, from, to string) error {
	// SQLite would make what is not there with the mode it likes.
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	pool, err := open(from)
	if err != nil {
		return err
	}
	_, err = pool.ExecContext(ctx, `VACUUM INTO $1`, to)
	return errors.Join(err, pool.Close())
}

// checkDatabase says whether a copy is sound.
func checkDatabase(ctx context.Context, path string) error {
	pool, err := open(path, "query_only(1)")
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }() // nothing was written
	var said string
	if err := pool.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&said); err != nil {
		return err
	}
	if said != "ok" {
		return fmt.Errorf("SQLite finds it damaged: %s", said)
	}
	return nil
}
