package db_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// What is prepared once is used by many, also while its rows are open, and more of it than is kept.
func TestStatementsAgain(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		for _, id := range []string{"a", "b", "c"} {
			if err := d.Write(t.Context(), insert(id)); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Write(t.Context(), insert("a")); !db.Unique(err) {
			t.Fatalf("the same again gave %v", err)
		}
		if err := d.Write(t.Context(), insert("d")); err != nil {
			t.Fatalf("after the failure: %v", err)
		}
		for range 3 {
			if err := d.Write(t.Context(), many(t, c.Driver)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// many runs one statement inside itself, others by the hundred meanwhile, and a very long one.
func many(t *testing.T, driver string) func(context.Context, db.Tx) error {
	return func(ctx context.Context, tx db.Tx) error {
		ids := func(each func(string) error) error {
			rows, err := tx.Query(ctx, `SELECT id FROM thing ORDER BY id`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id string
				if err := rows.Scan(&id); err != nil {
					return err
				}
				if err := each(id); err != nil {
					return err
				}
			}
			return rows.Err()
		}
		var seen []string
		err := ids(func(outer string) error {
			if driver == db.Postgres { // one result at a time, whatever is prepared
				seen = append(seen, outer+"abcd")
				return nil
			}
			inner := ""
			for n := range 100 {
				var one int
				if err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT n + %d FROM thing WHERE id = $1`, n), outer).Scan(&one); err != nil || one != n {
					return fmt.Errorf("%d instead of %d: %w", one, n, err)
				}
			}
			err := ids(func(id string) error { inner += id; return nil })
			seen = append(seen, outer+inner)
			return err
		})
		if got := strings.Join(seen, " "); got != "aabcd babcd cabcd dabcd" {
			t.Errorf("saw %s", got)
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE thing SET n = 0 WHERE id = $1 OR id = '`+strings.Repeat("x", 5000)+`'`, "a")
		return err
	}
}
