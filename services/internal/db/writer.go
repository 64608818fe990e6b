package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxGroup bounds how many calls share one COMMIT, and so how many one failed COMMIT hits.
const maxGroup = 128

var (
	errClosed = errors.New("database is closed")
	errOver   = errors.New("transaction is over")
	errUnwind = errors.New("transaction function did not return")
)

// writer owns the one connection that writes. A call is received only when its turn has come, so one whose ctx ends while it
// waits has not begun; its function runs in the caller's own goroutine, so panics stay where they belong.
type writer struct {
	pool    *sql.DB
	conn    *sql.Conn
	known   *statements // of conn
	size    prometheus.Observer
	disk    *distrust
	calls   chan *call
	closing chan struct{}
	once    sync.Once
	stopped chan struct{}

	rehearse bool
}

type call struct {
	turn    chan *groupTx // closed instead when the transaction could not begin
	outcome chan error    // what the function returned
	result  chan error    // what became of it
	probe   bool          // it only looks whether it gets its turn
	again   bool          // it ran once, and was rolled back with another's failure, or failed by what was rolled back
	refusal error         // it failed, which counts if what it saw is committed
}

// errAgain is the result of a call whose transaction was rolled back because of another, or that failed by what another had written
// in a transaction that was then rolled back.
var errAgain = errors.New("rolled back with the failure of another")

// rolledBack is the result of a call that ran to its end in a transaction that was lost with another call.
func (c *call) rolledBack() error {
	if c.again || c.probe {
		return unavailable("a write that shared the transaction found no room, or a disk that does not work, and all of it was rolled back")
	}
	return errAgain
}

// newWriter tells size how many calls each COMMIT was for.
func newWriter(pool *sql.DB, disk *distrust, size prometheus.Observer, rehearse bool) *writer {
	w := &writer{pool: pool, disk: disk, size: size, calls: make(chan *call), closing: make(chan struct{}), stopped: make(chan struct{}), rehearse: rehearse}
	go w.run()
	return w
}

func (w *writer) close() {
	w.once.Do(func() { close(w.closing) })
	<-w.stopped
}

func (w *writer) do(ctx context.Context, fn func(context.Context, Tx) error) ([]string, error) {
	first := fn
	if w.rehearse {
		first = rehearsal(fn)
	}
	topics, err := w.call(ctx, &call{}, first)
	if errors.Is(err, errAgain) {
		topics, err = w.call(ctx, &call{again: true}, fn)
	}
	return topics, err
}

// rehearsal is fn failing as another's failure makes it fail: after all of its work, and whatever came of it.
func rehearsal(fn func(context.Context, Tx) error) func(context.Context, Tx) error {
	return func(ctx context.Context, tx Tx) error {
		_ = fn(ctx, tx)
		return errAgain
	}
}

// probe makes a transaction of nothing, which is not counted.
func (w *writer) probe(ctx context.Context) error {
	_, err := w.call(ctx, &call{probe: true}, func(context.Context, Tx) error { return nil })
	if errors.Is(err, errAgain) { // it had its turn
		return nil
	}
	return err
}

func (w *writer) call(ctx context.Context, c *call, fn func(context.Context, Tx) error) ([]string, error) {
	c.turn, c.outcome, c.result = make(chan *groupTx, 1), make(chan error, 1), make(chan error, 1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case w.calls <- c:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-w.closing:
		return nil, errClosed
	}
	tx, ok := <-c.turn
	if !ok {
		return nil, <-c.result
	}
	c.perform(ctx, tx, fn)
	return tx.topics, <-c.result
}

func (c *call) perform(ctx context.Context, tx *groupTx, fn func(context.Context, Tx) error) {
	err := errUnwind
	defer func() {
		tx.end()
		c.outcome <- err
	}()
	err = fn(ctx, tx)
}

func (w *writer) run() {
	defer close(w.stopped)
	defer w.drop()
	for {
		select {
		case <-w.closing:
			return
		case c := <-w.calls:
			w.group(c)
		}
	}
}

// group runs c and the calls that arrive meanwhile in one transaction. Failures are rare and savepoints are not cheap, so one that
// fails begins again, with those before it; once one of these has come back, all that follow are behind savepoints, so that no
// call begins more than twice. A call that fails may do so for what those before it have written, so its failure counts, as their
// success does, once that is committed.
func (w *writer) group(c *call) {
	if err := w.begin(); err != nil {
		w.drop()
		close(c.turn)
		c.result <- err
		return
	}
	var ran []*call // to their end, waiting for the COMMIT
	careful := false
	for n := 1; ; n++ {
		careful = careful || c.again
		err, broken := w.member(c, careful && n > 1)
		if broken != nil {
			w.drop()
			c.result <- broken
			for _, c := range ran {
				c.result <- c.rolledBack()
			}
			return
		}
		if err != nil && n == 1 { // all is rolled back, and nobody else was there
			c.result <- err
			return
		}
		c.refusal = err
		ran = append(ran, c)
		if err != nil && !careful { // all is rolled back
			for _, c := range ran {
				c.result <- errAgain
			}
			return
		}
		if n == maxGroup {
			break
		}
		if c = w.waiting(); c == nil {
			break
		}
	}
	if err := w.exec("COMMIT"); err != nil {
		if unsynced(err) {
			w.disk.begin(err)
		}
		w.drop()
		err = fmt.Errorf("committing: %w", err)
		for _, c := range ran {
			c.result <- err
		}
		return
	}
	counted := 0
	for _, c := range ran {
		if c.refusal == nil && !c.probe {
			counted++
		}
		c.result <- c.refusal
	}
	if counted > 0 {
		w.size.Observe(float64(counted))
	}
}

// waiting gives a call that has come, or comes when all others that could run at once have had their turn: on a busy machine it
// is better to share a commit, on an idle one that takes no time.
func (w *writer) waiting() *call {
	for yielded := false; ; yielded = true {
		select {
		case c := <-w.calls:
			return c
		default:
		}
		if yielded {
			return nil
		}
		runtime.Gosched()
	}
}

// member runs one call. Its failure is the end of the transaction, unless a savepoint spares the others that. broken, which is for
// this call alone, means that the transaction is lost whatever is done: SQLite itself rolls back after a full disk or an I/O error.
func (w *writer) member(c *call, savepoint bool) (err, broken error) {
	if savepoint {
		if err := w.exec("SAVEPOINT call"); err != nil {
			close(c.turn)
			return nil, err
		}
	}
	c.turn <- &groupTx{conn: w.conn, known: w.known}
	err = <-c.outcome
	switch {
	case err == nil && !savepoint:
		return nil, nil
	case err == nil:
		return nil, w.exec("RELEASE call")
	case !savepoint:
		if back := w.exec("ROLLBACK"); back != nil {
			return nil, fmt.Errorf("%w (rolling back: %w)", err, back)
		}
		return err, nil
	}
	if back := w.exec("ROLLBACK TO call"); back != nil {
		return nil, fmt.Errorf("%w (the transaction shared with it is rolled back: %w)", err, back)
	}
	return err, w.exec("RELEASE call")
}

func (w *writer) begin() error {
	if err := w.disk.reason(); err != nil {
		return err
	}
	if w.conn == nil {
		conn, err := w.pool.Conn(context.Background())
		if err != nil {
			return err
		}
		w.conn, w.known = conn, newStatements(conn)
	}
	return w.exec("BEGIN IMMEDIATE")
}

func (w *writer) exec(query string) error {
	ctx := context.Background()
	if known := w.known.of(ctx, query); known != nil {
		_, err := known.ExecContext(ctx)
		return err
	}
	_, err := w.conn.ExecContext(ctx, query)
	return err
}

// drop closes the connection, which rolls back whatever is open on it; the next transaction gets a new one.
func (w *writer) drop() {
	if w.conn == nil {
		return
	}
	w.known.close()
	discard(w.conn)
	w.conn, w.known = nil, nil
}

// discard ends the session instead of giving the connection back to the pool.
func discard(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // which it gives back
	_ = conn.Close()                                           // closed already
}

// groupTx is one call's part of a shared transaction. Statements run without the caller's cancellation: an interrupted
// write would make SQLite roll back the whole transaction, the other callers' parts included.
type groupTx struct {
	conn   *sql.Conn
	known  *statements
	topics []string

	mu   sync.Mutex
	over bool
	rows []*sql.Rows
}

func (t *groupTx) check(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return errOver
	}
	return ctx.Err()
}

func (t *groupTx) Exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := t.check(ctx); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	if known := t.known.of(ctx, query); known != nil {
		return known.ExecContext(ctx, known.args(args)...)
	}
	return t.conn.ExecContext(ctx, query, args...)
}

func (t *groupTx) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := t.check(ctx); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	known := t.known.of(ctx, query)
	var rows *sql.Rows
	var err error
	if known != nil {
		rows, err = known.QueryContext(ctx, known.args(args)...)
	} else {
		rows, err = t.conn.QueryContext(ctx, query, args...)
	}
	if err == nil {
		t.mu.Lock()
		t.rows = append(t.rows, rows)
		t.mu.Unlock()
		if known != nil {
			t.known.hold(known, rows)
		}
	}
	return rows, err
}

func (t *groupTx) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	if t.check(ctx) == nil {
		ctx = context.WithoutCancel(ctx)
		if known := t.known.of(ctx, query); known != nil {
			return known.QueryRowContext(ctx, known.args(args)...)
		}
	} else if ctx.Err() == nil { // over: a *sql.Row with an error can only be had through a dead ctx
		dead, cancel := context.WithCancel(ctx)
		cancel()
		ctx = dead
	}
	return t.conn.QueryRowContext(ctx, query, args...)
}

func (t *groupTx) Notify(topic string) { t.topics = append(t.topics, topic) }

// end makes sure that nothing of this call, such as an unclosed Rows, reaches into the next one.
func (t *groupTx) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	for _, r := range t.rows {
		r.Close()
	}
}
