package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"sort"

	"github.com/pressly/goose/v3"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// metaTable names the service a database belongs to; it exists before the first migration.
const metaTable = `sallyport_meta`

func refuse(format string, args ...any) error {
	return fault.New(fault.Precondition, "DATABASE_REFUSED", format, args...)
}

// claim marks an empty database as the service's own, or checks the mark. tables is how many tables it has now.
func claim(ctx context.Context, tx *sql.Tx, name, service string, marked bool, tables int) error {
	if !marked {
		if tables > 0 {
			return refuse("%s holds tables of another program: give the %s service an empty database of its own", name, service)
		}
		if _, err := tx.ExecContext(ctx, `CREATE TABLE `+metaTable+` (service TEXT NOT NULL PRIMARY KEY)`); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO `+metaTable+` (service) VALUES ($1)`, service)
		return err
	}
	var owner string
	if err := tx.QueryRowContext(ctx, `SELECT service FROM `+metaTable).Scan(&owner); err != nil {
		return fmt.Errorf("reading whose database it is: %w", err)
	}
	if owner != service {
		return refuse("%s belongs to the %s service: give the %s service a database of its own", name, owner, service)
	}
	return nil
}

// oldestTable says, in its column schema, which migration a program must know at least. Only a migration that programs before
// it cannot live with makes it; one that just adds does not, so that a program and its predecessor run on one schema.
const oldestTable = `sallyport_oldest`

// migrate brings the schema up to the newest migration. One that is newer than the program is taken as it is, unless it says
// that programs as old as this one would misread it.
func migrate(ctx context.Context, pool *sql.DB, dialect goose.Dialect, migrations fs.FS, name string) error {
	// Packages number their migrations apart, so a new one may come below those that are applied already.
	p, err := goose.NewProvider(dialect, pool, migrations, goose.WithDisableGlobalRegistry(true), goose.WithAllowOutofOrder(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	current, known, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema version of %s: %w", name, err)
	}
	if current > known {
		oldest, err := oldestKnown(ctx, pool, dialect)
		if err != nil {
			return fmt.Errorf("reading which programs may use %s: %w", name, err)
		}
		if oldest > known {
			return refuse("%s was written by a newer program (schema %d, to be used by programs that know %d; this one knows %d): run that version, or restore the backup made before the upgrade", name, current, oldest, known)
		}
		return nil
	}
	if _, err := p.Up(ctx); err != nil {
		var partial *goose.PartialError
		if errors.As(err, &partial) {
			return fmt.Errorf("migration %s of %s: %w", partial.Failed.Source.Path, name, partial.Err)
		}
		return fmt.Errorf("migrating %s: %w", name, err)
	}
	return nil
}

func oldestKnown(ctx context.Context, pool *sql.DB, dialect goose.Dialect) (int64, error) {
	exists := `SELECT count(*) FROM sqlite_schema WHERE name = $1`
	if dialect == goose.DialectPostgres {
		exists = `SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = $1`
	}
	var n int
	if err := pool.QueryRowContext(ctx, exists, oldestTable).Scan(&n); err != nil || n == 0 {
		return 0, err
	}
	var oldest int64
	err := pool.QueryRowContext(ctx, `SELECT coalesce(max(schema), 0) FROM `+oldestTable).Scan(&oldest)
	return oldest, err
}

// Merge shows the *.sql files of several directories as one, for Open.
func Merge(all ...fs.FS) fs.FS { return union(all) }

type union []fs.FS

func (u union) Open(name string) (fs.File, error) {
	for _, f := range u {
		file, err := f.Open(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (u union) ReadDir(name string) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	for _, f := range u {
		entries, err := fs.ReadDir(f, name)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name() < all[j].Name() })
	return all, nil
}
