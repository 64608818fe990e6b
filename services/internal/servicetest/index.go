package servicetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Indexes holds the partial indexes of a service's schema to the statements they are for: a statement whose condition no longer
// implies that of the index reads the whole table instead, and nothing else tells. open gives a store and what makes it run all
// those statements; uses has the partial indexes, each with a part of every statement that is to use it. Looked at is what run
// made PostgreSQL prepare, in the plans of PostgreSQL and SQLite. Unique indexes are not meant: they are there for what they forbid.
// Those of outbox and inbox belong to package event.
func Indexes(t *testing.T, open func(*testing.T, db.Config) (d *db.DB, run func()), uses map[string][]string) {
	t.Helper()
	postgres, run := open(t, Postgres(t))
	run()
	sqlite, _ := open(t, SQLite(t))
	err := postgres.Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
		there, err := column(ctx, tx, `SELECT indexname FROM pg_indexes WHERE schemaname = current_schema() AND tablename NOT IN ('outbox', 'inbox') AND indexdef LIKE 'CREATE INDEX % WHERE %'`)
		if err != nil {
			return err
		}
		for _, name := range there {
			if _, known := uses[name]; !known {
				t.Errorf("what uses the partial index %s is not said", name)
			}
		}
		for name := range uses {
			if !slices.Contains(there, name) {
				t.Errorf("there is no partial index %s", name)
			}
		}
		for _, set := range []string{`DISCARD PLANS`, `SET LOCAL enable_seqscan = off`, `SET LOCAL plan_cache_mode = force_generic_plan`} {
			if _, err := tx.Exec(ctx, set); err != nil {
				return err
			}
		}
		prepared, err := statements(ctx, tx)
		if err != nil {
			return err
		}
		for name, parts := range uses {
			for _, part := range parts {
				found := false
				for _, s := range prepared {
					if !strings.Contains(s.text, part) {
						continue
					}
					found = true
					if err := s.uses(ctx, t, tx, sqlite, name); err != nil {
						return fmt.Errorf("%s: %w", s.text, err)
					}
				}
				if !found {
					t.Errorf("no statement has %q", part)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// prepared is a statement of the session on PostgreSQL.
type prepared struct {
	name, text string
	parameters int
}

func statements(ctx context.Context, tx db.Tx) (all []prepared, err error) {
	rows, err := tx.Query(ctx, `SELECT name, statement, cardinality(parameter_types) FROM pg_prepared_statements`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var p prepared
		if err := rows.Scan(&p.name, &p.text, &p.parameters); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, rows.Err()
}

// uses compares the plans of a statement with the index that it should use.
func (p prepared) uses(ctx context.Context, t *testing.T, tx db.Tx, sqlite *db.DB, index string) error {
	t.Helper()
	arguments := ""
	if p.parameters > 0 {
		arguments = "(" + strings.Repeat("NULL, ", p.parameters-1) + "NULL)"
	}
	plan, err := column(ctx, tx, `EXPLAIN (COSTS off) EXECUTE "`+p.name+`"`+arguments)
	if err != nil {
		return err
	}
	if !strings.Contains(strings.Join(plan, "\n"), index) {
		t.Errorf("%s\ndoes not use %s on PostgreSQL:\n%s", p.text, index, strings.Join(plan, "\n"))
	}
	return sqlite.Read(context.WithoutCancel(t.Context()), func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `EXPLAIN QUERY PLAN `+p.text, make([]any, p.parameters)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var line string
			if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
				return err
			}
			plan = append(plan, line)
		}
		if !strings.Contains(strings.Join(plan, "\n"), index) {
			t.Errorf("%s\ndoes not use %s on SQLite:\n%s", p.text, index, strings.Join(plan, "\n"))
		}
		return rows.Err()
	})
}

func column(ctx context.Context, tx db.Tx, query string) (all []string, err error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}
