package db

import (
	"context"
	"database/sql"
	"strconv"
	"strings"
	"sync"
)

const (
	maxStatements   = 256  // prepared on one connection
	maxStatementLen = 2048 // bytes of SQL: a longer one is a list of values that does not come again
)

// statements are what is prepared on one connection: SQLite takes longer to compile a short statement than to run it.
type statements struct {
	conn *sql.Conn
	mu   sync.Mutex
	all  map[string]*statement
}

// statement is in use as long as its last rows are open.
type statement struct {
	*sql.Stmt
	order []int // which argument each of its parameters stands for
	rows  *sql.Rows
}

// args are the arguments in the order of the parameters.
func (s *statement) args(given []any) []any {
	if s.order == nil {
		return given
	}
	ordered := make([]any, len(s.order))
	for i, n := range s.order {
		if n >= len(given) {
			return given // too few, which the driver says
		}
		ordered[i] = given[n]
	}
	return ordered
}

// positional gives a query with plain parameters instead of numbered ones, and which argument each stands for: to SQLite $1 is a
// name, which the driver fetches and compares for each argument of each call. A query that has none, or others too, stays as it is.
func positional(query string) (plain string, order []int) {
	if strings.ContainsAny(query, "?@:") || strings.Contains(query, "--") || strings.Contains(query, "/*") || strings.Count(query, "'")%2 != 0 {
		return query, nil
	}
	var b strings.Builder
	for i, part := range strings.SplitAfter(query, "'") { // each second one is a literal
		if i%2 == 1 {
			b.WriteString(part)
			continue
		}
		for {
			before, after, more := strings.Cut(part, "$")
			b.WriteString(before)
			if !more {
				break
			}
			digits := len(after) - len(strings.TrimLeft(after, "0123456789"))
			n, err := strconv.Atoi(after[:digits])
			if err != nil || n < 1 {
				return query, nil
			}
			b.WriteByte('?')
			order = append(order, n-1)
			part = after[digits:]
		}
	}
	return b.String(), order
}

func newStatements(conn *sql.Conn) *statements {
	return &statements{conn: conn, all: map[string]*statement{}}
}

// of gives the statement, or nil where it has to be run by its text: too long, in use, or not to be compiled, which is then
// said by running it. ctx must not end before the connection does.
func (s *statements) of(ctx context.Context, query string) *statement {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.all[query]; known != nil {
		if known.rows != nil {
			if _, err := known.rows.Columns(); err == nil { // still open
				return nil
			}
			known.rows = nil
		}
		return known
	}
	if len(query) > maxStatementLen {
		return nil
	}
	if len(s.all) == maxStatements {
		s.forget()
	}
	plain, order := positional(query)
	prepared, err := s.conn.PrepareContext(ctx, plain)
	if err != nil {
		return nil
	}
	s.all[query] = &statement{Stmt: prepared, order: order}
	return s.all[query]
}

// hold notes the rows by which a statement is in use.
func (s *statements) hold(known *statement, rows *sql.Rows) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known.rows = rows
}

func (s *statements) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
}

// forget closes all of them; rows that are open keep theirs until they are closed.
func (s *statements) forget() {
	for _, one := range s.all {
		_ = one.Close() // it is not used again
	}
	clear(s.all)
}
