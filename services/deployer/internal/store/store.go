// Package store keeps what the deployer knows: deployments, assignments, agents, join tokens, challenges, and what the issuer
// is still to be told.
//
// It guarantees that every change of an assignment goes through the table of package rollout, by compare-and-swap, in one
// transaction with its event and with what the agent is told of it; that a host's revision grows with every change the agent
// must see, so that whoever has read up to a revision has missed nothing; and that of two replicas which do the same thing
// one does it and the other finds it done. When to do what is left to the loops.
//
// It is larger than a package should be because its transactions cross all of it: an agent's report moves an assignment, its
// host's revision, its deployment and the outbox in one commit.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

//go:embed migrations/*.sql
var migrations embed.FS

// TopicChanged is notified after changes that were made in somebody else's transaction, such as an event's.
const TopicChanged = "deployer"

// Change is what a committed transaction touched. It is a hint: whoever acts on it reads the store.
type Change struct {
	Hosts       []string      // what these agents are told changed
	Deployments []string      // or any of their assignments
	Agents      []fleet.Agent // whose standing or keys changed, as they are now
	Requests    []string      // assignments that wait for the issuer to be spoken to
	Intents     bool          // there is something to tell the issuer
}

// Config is what a Store needs; all of it but Lost is required.
type Config struct {
	Database db.Config
	// Pause gives the back-off after so many failures in a row.
	Pause func(failures int) time.Duration
	// Away is how long after an agent was last heard it still counts as there.
	Away time.Duration
	// Claim is how long who speaks to the issuer about a request has, until another may.
	Claim time.Duration
	// Lost is the time that the database has lost by being restored from a backup; zero if it never was.
	Lost fleet.Lost
	// OnChange is called after each commit of this process; it must not wait.
	OnChange func(Change)
	Now      func() time.Time
	Log      *slog.Logger
}

// Store keeps it all in one database.
type Store struct {
	c     Config
	db    *db.DB
	epoch string
}

// Open opens the database and brings its schema up to date.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Pause == nil || c.Away <= 0 || c.Claim <= 0 || c.OnChange == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("store.Open: Pause, Away, Claim, OnChange, Now and Log are required")
	}
	own, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, c.Database, event.WithSchema(own), "deployer")
	if err != nil {
		return nil, err
	}
	s := &Store{c: c, db: d}
	if err := errors.Join(s.takeRestoration(ctx), s.readEpoch(ctx), s.releaseLeftovers(ctx)); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return s, nil
}

// Close waits for writes that have begun.
func (s *Store) Close() error { return s.db.Close() }

// DB is the database, for the outbox relay, consumers and leases.
func (s *Store) DB() *db.DB { return s.db }

// Epoch names this store; a stream's handle carries it.
func (s *Store) Epoch() string { return s.epoch }

func (s *Store) readEpoch(ctx context.Context) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO epoch (id) SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM epoch)`, uuid.NewString())
		return err
	})
	if err != nil {
		return fmt.Errorf("naming the store: %w", err)
	}
	err = s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT id FROM epoch ORDER BY id LIMIT 1`).Scan(&s.epoch)
	})
	if err != nil {
		return fmt.Errorf("reading the store's name: %w", err)
	}
	return nil
}

// releaseLeftovers makes due at once what a process had claimed that is certainly gone.
func (s *Store) releaseLeftovers(ctx context.Context) error {
	if !s.db.Exclusive() {
		return nil
	}
	now := db.FromTime(s.c.Now())
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, requests := tx.Exec(ctx, `UPDATE assignment SET request_next = $1 WHERE state = 'requested' AND request_next > $1`, now)
		_, intents := tx.Exec(ctx, `UPDATE intent SET due = $1 WHERE due > $1`, now)
		_, replicas := tx.Exec(ctx, `DELETE FROM replica`)
		return errors.Join(requests, intents, replicas)
	})
	if err != nil {
		return fmt.Errorf("taking over what was left: %w", err)
	}
	return nil
}

// txn is one transaction and what it touches. Rows are locked in one order, so that PostgreSQL finds no deadlock: a deployment
// or token, then hosts by name, each guarding the assignments on it, then agents, then what finish stamps.
type txn struct {
	db.Tx
	s   *Store
	now time.Time

	locked      map[string]bool  // hosts
	hosts       map[string]int64 // those whose agents are told something, and their new revision
	deployments map[string]bool
	agents      []fleet.Agent
	requests    []string
	intents     bool
	spans       []trace.Span
}

func (s *Store) txn(tx db.Tx) *txn {
	return &txn{Tx: tx, s: s, now: s.c.Now().UTC().Truncate(time.Microsecond), locked: map[string]bool{}, hosts: map[string]int64{}, deployments: map[string]bool{}}
}

// write runs fn in a transaction and tells what it touched once that is committed.
func (s *Store) write(ctx context.Context, fn func(context.Context, *txn) error) error {
	var t *txn
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		t = s.txn(tx)
		if err := fn(ctx, t); err != nil {
			return err
		}
		return t.finish(ctx)
	})
	if err != nil {
		return err
	}
	t.record(ctx)
	if c := t.change(); len(c.Hosts)+len(c.Deployments)+len(c.Agents)+len(c.Requests) > 0 || c.Intents {
		s.c.OnChange(c)
	}
	return nil
}

// within is write inside somebody else's transaction, such as an event's.
func (s *Store) within(ctx context.Context, tx db.Tx, fn func(context.Context, *txn) error) error {
	t := s.txn(tx)
	if err := fn(ctx, t); err != nil {
		return err
	}
	if err := t.finish(ctx); err != nil {
		return err
	}
	t.record(ctx) // were the event to come again, the same would be told twice: a trace decides nothing
	tx.Notify(TopicChanged)
	return nil
}

// record hands over the spans that have ended with this transaction.
func (t *txn) record(ctx context.Context) {
	recorder := trace.RecorderOf(ctx)
	for _, s := range t.spans {
		recorder.Record(s)
	}
}

func (s *Store) read(ctx context.Context, fn func(context.Context, *txn) error) error {
	return s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error { return fn(ctx, s.txn(tx)) })
}

// finish stamps the deployments that were touched, so that other replicas and watchers see it.
func (t *txn) finish(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(t.deployments)) {
		if _, err := t.Exec(ctx, `INSERT INTO deployment_change (name, changed) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET changed = excluded.changed`, name, db.FromTime(t.now)); err != nil {
			return fmt.Errorf("stamping deployment %s: %w", name, err)
		}
	}
	return nil
}

func (t *txn) change() Change {
	return Change{
		Hosts:       slices.Collect(maps.Keys(t.hosts)),
		Deployments: slices.Collect(maps.Keys(t.deployments)),
		Agents:      t.agents,
		Requests:    t.requests,
		Intents:     t.intents,
	}
}

// lockHost keeps the host's assignments and revision to this transaction.
func (t *txn) lockHost(ctx context.Context, host string) error {
	if t.locked[host] {
		return nil
	}
	_, err := t.Exec(ctx, `INSERT INTO host (name, revision, changed) VALUES ($1, 0, $2)
		ON CONFLICT (name) DO UPDATE SET revision = host.revision`, host, db.FromTime(t.now))
	if err != nil {
		return fmt.Errorf("locking host %s: %w", host, err)
	}
	t.locked[host] = true
	return nil
}

// bump gives the host's new revision, once per transaction.
func (t *txn) bump(ctx context.Context, host string) (int64, error) {
	if r, ok := t.hosts[host]; ok {
		return r, nil
	}
	var r int64
	err := t.QueryRow(ctx, `INSERT INTO host (name, revision, changed) VALUES ($1, 1, $2)
		ON CONFLICT (name) DO UPDATE SET revision = host.revision + 1, changed = excluded.changed RETURNING revision`,
		host, db.FromTime(t.now)).Scan(&r)
	if err != nil {
		return 0, fmt.Errorf("counting a change of %s: %w", host, err)
	}
	t.hosts[host], t.locked[host] = r, true
	return r, nil
}

// pause is the back-off, for rollout.Step.
func (t *txn) pause(failures int) time.Duration { return t.s.c.Pause(failures) }

// step is a rollout.Step without fields but the event.
func step(e rollout.Event) rollout.Step { return rollout.Step{Event: e} }
