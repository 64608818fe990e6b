package db

import (
	"context"
	"database/sql"
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
	rows *sql.Rows
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
	prepared, err := s.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil
	}
	s.all[query] = &statement{Stmt: prepared}
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
