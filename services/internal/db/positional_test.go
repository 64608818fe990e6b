package db

import (
	"regexp"
	"slices"
	"strconv"
	"testing"
)

func TestPositional(t *testing.T) {
	for _, c := range []struct {
		query, plain string
		order        []int
	}{
		{`SELECT 1`, `SELECT 1`, nil},
		{`INSERT INTO t VALUES ($1, $2, '', $12, $2)`, `INSERT INTO t VALUES (?, ?, '', ?, ?)`, []int{0, 1, 11, 1}},
		{`SELECT x FROM t WHERE a = 'it''s $1' AND b = $2`, `SELECT x FROM t WHERE a = 'it''s $1' AND b = ?`, []int{1}},
		{`SELECT x FROM t WHERE a = $1 AND b = $name`, `SELECT x FROM t WHERE a = $1 AND b = $name`, nil},
		{`SELECT $0`, `SELECT $0`, nil},
		{`SELECT $1 + ?`, `SELECT $1 + ?`, nil},
		{`SELECT $1 -- it's one`, `SELECT $1 -- it's one`, nil},
		{`SELECT $1, 'open`, `SELECT $1, 'open`, nil},
	} {
		if plain, order := positional(c.query); plain != c.plain || !slices.Equal(order, c.order) {
			t.Errorf("%s: %s, %v", c.query, plain, order)
		}
	}
}

// Numbers put back in give the query again.
func FuzzPositional(f *testing.F) {
	f.Add(`INSERT INTO t VALUES ($1, $2, '$3', $12, $2)`)
	f.Add(`SELECT '?' || $1`)
	f.Fuzz(func(t *testing.T, query string) {
		plain, order := positional(query)
		if order == nil {
			if plain != query {
				t.Fatalf("%q became %q", query, plain)
			}
			return
		}
		n := 0
		back := regexp.MustCompile(`\?`).ReplaceAllStringFunc(plain, func(string) string {
			n++
			return "$" + strconv.Itoa(order[n-1]+1)
		})
		if leading := regexp.MustCompile(`\$0+([1-9])`); n != len(order) || back != leading.ReplaceAllString(query, "$$$1") {
			t.Fatalf("%q became %q with %v", query, plain, order)
		}
	})
}
