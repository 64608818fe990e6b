package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// Unique reports whether err says that a row with the same primary or unique key exists.
func Unique(err error) bool {
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return lite.Code() == lib.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == lib.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505"
}

// classify turns an error of the storage itself into a fault; others pass unchanged, as does that ctx has ended. A deadline that is not
// the caller's is the server's, which did not answer within what the connection string allows.
func (d *DB) classify(ctx context.Context, err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		return d.classifySQLite(err, lite.Code())
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return d.classifyPostgres(err, pg)
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err) {
		return unavailable("%s cannot be reached: %w", d.name, err)
	}
	if d.closed.Load() {
		return unavailable("%s is closed: the service is stopping: %w", d.name, err)
	}
	return err
}

// The reasons of errors of the storage itself.
const (
	reasonUnavailable = "STORAGE_UNAVAILABLE"
	reasonCorrupt     = "STORAGE_CORRUPT"
)

func unavailable(format string, args ...any) error {
	return fault.New(fault.Transient, reasonUnavailable, format, args...)
}

func (d *DB) classifySQLite(err error, code int) error {
	if unsynced(err) {
		return unavailable("the disk under %s does not sync (see the kernel log): nothing more is written until the service is started again: %w", d.name, err)
	}
	switch code & 0xff {
	case lib.SQLITE_FULL:
		return unavailable("disk full: free space on the file system of %s: %w", d.name, err)
	case lib.SQLITE_IOERR, lib.SQLITE_CANTOPEN:
		return unavailable("the disk under %s does not work (see the kernel log), or is full: %w", d.name, err)
	case lib.SQLITE_READONLY:
		return unavailable("%s is read-only: make the file and its directory writable: %w", d.name, err)
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return unavailable("%s is locked by another program: %w", d.name, err)
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return fault.New(fault.Internal, reasonCorrupt, "%s is damaged: stop the service and restore the file from a backup: %w", d.name, err)
	}
	return err
}

func (d *DB) classifyPostgres(err error, pg *pgconn.PgError) error {
	switch {
	case pg.Code == "3D000": // invalid_catalog_name
		return refuse("%s does not exist: create the database: %w", d.name, err)
	case strings.HasPrefix(pg.Code, "28"): // invalid authorization
		return refuse("%s does not let the user in: correct database.dsn, the password or pg_hba.conf: %w", d.name, err)
	case pg.Code == "53100": // disk_full
		return unavailable("disk full: free space on the server of %s: %w", d.name, err)
	case strings.HasPrefix(pg.Code, "08"), strings.HasPrefix(pg.Code, "53"), strings.HasPrefix(pg.Code, "57P"),
		strings.HasPrefix(pg.Code, "58"), pg.Code == "25006": // connection, resources, shutdown, I/O; read-only: a standby
		return unavailable("%s does not take the request now: %w", d.name, err)
	case repeatable(pg):
		return unavailable("%s is too busy: concurrent transactions were in each other's way: %w", d.name, err)
	}
	return err
}

// repeatable is a serialization failure or a deadlock: the same transaction may succeed when run again.
func repeatable(pg *pgconn.PgError) bool { return pg.Code == "40001" || pg.Code == "40P01" }
