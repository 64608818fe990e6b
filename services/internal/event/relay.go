package event

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	maxBatch    = 512                    // events in one message
	maxInFlight = 8                      // messages published but not yet acknowledged
	markAtOnce  = 64                     // events in one statement, whose text is then the same again
	lookEvery   = 5 * time.Second        // for what another process committed
	ackTimeout  = 10 * time.Second       // for one message
	leaseTTL    = 10 * time.Second       // until another replica takes over
	firstPause  = 100 * time.Millisecond // after a failure, doubling
	longPause   = 5 * time.Second
	lastBound   = time.Second // for what waits at a stop
)

var errAway = errors.New("not connected to NATS")

// RelayConfig is what a Relay needs.
type RelayConfig struct {
	DB      *db.DB
	JS      jetstream.JetStream
	Service string // whose outbox it is: the third part of the subject
	Log     *slog.Logger
	// Linger is waited after a commit, unless it is said to Hurry: others share the message, which costs the broker and each consumer
	// a commit, and the work of telling does not delay the calls that follow; 0 is 80 ms.
	Linger time.Duration
	// Restored is when the store was last restored from a backup, as far as that is known. A stream that is older begins anew.
	Restored time.Time
	// Now is the clock by which events grow old, as at the broker; nil is time.Now.
	Now func() time.Time
}

// Relay moves what waits in the outbox to JetStream: what this process commits after Linger, what another did within seconds. Of several
// replicas on one database one works at a time.
type Relay struct {
	c         RelayConfig
	published *prometheus.CounterVec
	hurry     <-chan struct{}
	// salt tells messages from the same ones that the stream has had before it was set back.
	salt string
}

// NewRelay validates c.
func NewRelay(c RelayConfig) (*Relay, error) {
	if c.DB == nil || c.JS == nil || c.Service == "" || c.Log == nil {
		return nil, errors.New("event.NewRelay: DB, JS, Service and Log are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Linger == 0 {
		c.Linger = 80 * time.Millisecond
	}
	return &Relay{c: c, published: newPublished(), hurry: c.DB.Listen(hurryTopic)}, nil
}

// Run relays until stopping ends. While NATS or the database is away it tries again, for ever.
//
// Beside that it looks after outbox and inbox: what the broker has lost is published again, what is old is forgotten.
func (r *Relay) Run(stopping context.Context) error {
	emitted := r.c.DB.Listen(outboxTopic)
	return lease.Run(stopping, r.c.DB, "outbox", leaseTTL, func(ctx context.Context) error {
		keep := &upkeep{Relay: r, answered: map[string]bool{}}
		for keep.begin(ctx); ctx.Err() == nil; {
			again := keep.pass(ctx)
			if more := r.drain(ctx); more {
				continue
			}
			select {
			case <-ctx.Done():
			case <-emitted:
				r.linger(ctx)
			case <-time.After(again):
			}
		}
		if stopping.Err() != nil && keep.compared {
			r.last(ctx)
		}
		return nil
	})
}

// last publishes what waits at an orderly stop, for at most a second: else it would wait for the next start. Should the lease be lost
// meanwhile nothing is marked, and the next relay publishes it again.
func (r *Relay) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastBound)
	defer cancel()
	for n := 1; n > 0; {
		var err error
		if n, err = r.pass(ctx); err != nil {
			r.c.Log.InfoContext(ctx, "events wait in the outbox until the next start", "service", r.c.Service, "error", err)
			return
		}
	}
}

// drain publishes until nothing waits or ctx ends. While there is always something, it comes back now and then, for what else is to
// be done, and says that there is more.
func (r *Relay) drain(ctx context.Context) (more bool) {
	failures := 0
	for begun := time.Now(); ctx.Err() == nil; {
		n, err := r.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case err != nil:
			failures++
			pause := min(firstPause<<min(failures-1, 10), longPause)
			r.c.Log.WarnContext(ctx, "events wait in the outbox", "service", r.c.Service, "attempt", failures, "retry_in", pause, "error", err)
			sleep(ctx, pause/2+rand.N(pause/2))
		case n == 0:
			return false
		default:
			if failures > 0 {
				r.c.Log.InfoContext(ctx, "events are published again", "service", r.c.Service, "attempts", failures)
			}
			failures = 0
			if n < maxBatch { // else more may be waiting
				r.linger(ctx)
			}
			if time.Since(begun) > lookEvery {
				return true
			}
		}
	}
	return false
}

// linger lets events gather.
func (r *Relay) linger(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-r.hurry:
	case <-time.After(r.c.Linger):
	}
}

// pass publishes some of what waits and marks what JetStream has stored. It gives the number of events marked.
func (r *Relay) pass(ctx context.Context) (int, error) {
	var all []batch
	for _, kind := range []string{facts, observations} {
		waiting, err := r.waiting(ctx, kind)
		if err != nil {
			return 0, fmt.Errorf("reading the outbox: %w", err)
		}
		all = append(all, waiting...)
	}
	at := r.c.Now() // before, so that it is not after the making of a stream that does not have it
	stored := make([]bool, len(all))
	var g errgroup.Group
	g.SetLimit(maxInFlight)
	for i, b := range all {
		g.Go(func() error {
			if err := r.publish(ctx, b); err != nil {
				return err
			}
			stored[i] = true
			return nil
		})
	}
	failure := g.Wait()
	if failure != nil {
		failure = fmt.Errorf("publishing: %w", failure)
	}
	n, err := r.mark(ctx, all, stored, at)
	if err != nil {
		err = fmt.Errorf("marking events as published: %w", err)
	} else {
		r.count(all, stored)
	}
	return n, errors.Join(failure, err)
}

// batch is one message: events of one kind.
type batch struct {
	kind string
	ids  []string
	data []byte // an EventBatch
	// types says how many events of each type it has.
	types map[string]int
}

// waiting packs what is not published, about the oldest first. Whether an event is published is asked of its row alone, so
// one that was committed late, with an early id, is not passed over.
func (r *Relay) waiting(ctx context.Context, kind string) ([]batch, error) {
	var all []batch
	err := r.c.DB.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT id, payload FROM outbox WHERE kind = $1 AND published_at IS NULL ORDER BY id LIMIT $2`, kind, maxBatch*maxInFlight)
		if err != nil {
			return err
		}
		defer rows.Close()
		b := batch{types: map[string]int{}}
		for rows.Next() {
			var id string
			var payload sql.RawBytes // good until the next row
			if err := rows.Scan(&id, &payload); err != nil {
				return err
			}
			if len(b.ids) == maxBatch || len(b.ids) > 0 && len(b.data)+len(payload) > MaxSize {
				all = append(all, b)
				b = batch{types: map[string]int{}}
				if len(all) == maxInFlight {
					return nil
				}
			}
			b.kind = kind
			b.ids = append(b.ids, id)
			b.types[textOf(payload, typeField)]++
			b.data = protowire.AppendTag(b.data, batchEvents, protowire.BytesType)
			b.data = protowire.AppendBytes(b.data, payload)
		}
		if len(b.ids) > 0 {
			all = append(all, b)
		}
		return rows.Err()
	})
	return all, err
}

func (r *Relay) publish(ctx context.Context, b batch) error {
	if !r.c.JS.Conn().IsConnected() {
		return errAway
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	msg := &nats.Msg{Subject: "sallyport.v1." + r.c.Service + "." + b.kind, Data: b.data}
	_, err := r.c.JS.PublishMsg(ctx, msg, jetstream.WithMsgID(b.msgID()+r.salt), jetstream.WithExpectStream(StreamName))
	return err
}

// msgID is the same for the same events in one message, and the event's own id for one alone.
func (b batch) msgID() string {
	if len(b.ids) == 1 {
		return b.ids[0]
	}
	h := sha256.New()
	for _, id := range b.ids {
		fmt.Fprintf(h, "%s\n", id)
	}
	return b.ids[0] + "+" + hex.EncodeToString(h.Sum(nil)[:16])
}

// mark notes what JetStream has stored, and that it was published at that time or later. Observations are over with that: the next
// one of the same host says more. Who has lost the lease may not: another has perhaps found meanwhile that the stream is a new one.
func (r *Relay) mark(ctx context.Context, all []batch, stored []bool, at time.Time) (int, error) {
	if !slices.Contains(stored, true) {
		return 0, nil
	}
	crash.At(crash.EventsPassed)
	n := 0
	err := r.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		n = 0
		if err := lease.Guard(ctx, tx); err != nil {
			return err
		}
		for i, b := range all {
			if !stored[i] {
				continue
			}
			for ids := range slices.Chunk(b.ids, markAtOnce) {
				args := []any{}
				query := `DELETE FROM outbox WHERE id IN `
				if b.kind == Facts {
					args, query = []any{db.FromTime(at)}, `UPDATE outbox SET published_at = $1 WHERE id IN `
				}
				query += db.In(&args, ids)
				if _, err := tx.Exec(ctx, query, args...); err != nil {
					return err
				}
			}
			n += len(b.ids)
		}
		return nil
	})
	crash.At(crash.EventsMarked)
	return n, err
}

func (r *Relay) count(all []batch, stored []bool) {
	for i, b := range all {
		if !stored[i] {
			continue
		}
		for name, n := range b.types {
			r.published.WithLabelValues(name).Add(float64(n))
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
