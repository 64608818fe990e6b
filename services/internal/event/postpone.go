package event

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"google.golang.org/protobuf/proto"
)

const (
	// patience is how often JetStream brings an event that fails before it is postponed.
	patience = 4
	// maxPostponed bounds what is postponed for one consumer. What is beyond that stays at JetStream, which delivers no more at all when
	// it has maxUnanswered such messages.
	maxPostponed  = 100_000
	maxUnanswered = 1024
	retryAtOnce   = 16
)

// failure is an event that could not be handled, and why.
type failure struct {
	event *eventv1.Event
	err   error
}

func (f failure) String() string {
	return fmt.Sprintf("%s %s: %v", f.event.GetType(), f.event.GetId(), f.err)
}

// retryIn is how long to wait after so many failures.
func retryIn(failures int64) time.Duration {
	delay := min(firstRetry<<max(0, min(failures-1, 6)), lastRetry)
	return delay/2 + rand.N(delay/2)
}

// postpone keeps events in the store, so that their message can be acknowledged and others go on. Kept is with them when the broker
// had the message.
func (c *Consumer) postpone(ctx context.Context, all []failure, since time.Time) error {
	err := c.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		var n int
		err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM postponed WHERE consumer = $1 LIMIT $2) AS held`, c.c.Durable, c.mostPostponed).Scan(&n)
		if err != nil {
			return err
		}
		if n+len(all) > c.mostPostponed {
			return fmt.Errorf("%d events are postponed already: no more are", n)
		}
		for _, f := range all {
			payload, err := proto.Marshal(f.event)
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `INSERT INTO postponed (event_id, consumer, payload, since, tries, due, error) VALUES ($1, $2, $3, $4, 0, $5, $6) ON CONFLICT DO NOTHING`,
				f.event.GetId(), c.c.Durable, payload, db.FromTime(since), db.FromTime(c.c.Now().Add(firstRetry)), reason(f.err))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("postponing events after %s: %w", all[0], err)
	}
	c.c.Log.WarnContext(ctx, "events fail again and again: they are postponed, and others go on", "consumer", c.c.Durable, "events", len(all), "first", all[0].String())
	select {
	case c.postponed <- struct{}{}:
	default:
	}
	return nil
}

func reason(err error) string { return strings.ToValidUTF8(err.Error(), "?") }

// retrying tries what is postponed, at most half of the time, until the returned function is called.
func (c *Consumer) retrying(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			begun := time.Now()
			wait, err := c.retry(ctx)
			busy := time.Since(begun)
			if err != nil && ctx.Err() == nil {
				c.c.Log.WarnContext(ctx, "trying events that are postponed", "consumer", c.c.Durable, "error", err)
				wait = longPause
			}
			select {
			case <-ctx.Done():
			case <-c.postponed:
				sleep(ctx, busy)
			case <-time.After(max(wait, busy)):
			}
		}
	})
	return func() { cancel(); running.Wait() }
}

// postponedSince is when the broker had the first of what is postponed; zero if nothing is.
func postponedSince(ctx context.Context, d *db.DB, consumer string) (time.Time, error) {
	var since sql.NullInt64
	err := d.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT min(since) FROM postponed WHERE consumer = $1`, consumer).Scan(&since)
	})
	return db.Time(since.Int64), err
}

// postponed is an event to be tried.
type postponed struct {
	id      string
	payload []byte
	tries   int64
}

// retry tries some of what is due, and says when there may be more. Another replica may do the same: who is first removes it.
func (c *Consumer) retry(ctx context.Context) (time.Duration, error) {
	var all []postponed
	var next sql.NullInt64
	now := c.c.Now()
	err := c.c.DB.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		all = nil
		// What is due later than it can be was noted while the clock was ahead.
		rows, err := tx.Query(ctx, `SELECT event_id, payload, tries FROM postponed WHERE consumer = $1 AND (due <= $2 OR due > $3) ORDER BY due LIMIT $4`,
			c.c.Durable, db.FromTime(now), db.FromTime(now.Add(lastRetry)), retryAtOnce)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var p postponed
			if err := rows.Scan(&p.id, &p.payload, &p.tries); err != nil {
				return err
			}
			all = append(all, p)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT min(due) FROM postponed WHERE consumer = $1 AND due > $2`, c.c.Durable, db.FromTime(now)).Scan(&next)
	})
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if err := c.try(ctx, p); err != nil {
			return 0, err
		}
	}
	switch {
	case len(all) == retryAtOnce:
		return 0, nil
	case len(all) > 0:
		return firstRetry, nil
	case next.Valid:
		return min(db.Time(next.Int64).Sub(now), lastRetry), nil
	}
	return lastRetry, nil
}

// try handles one event that is postponed, in the transaction that removes it from there.
func (c *Consumer) try(ctx context.Context, p postponed) error {
	remove := func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM postponed WHERE event_id = $1`, p.id)
		return err
	}
	var e eventv1.Event
	err := proto.Unmarshal(p.payload, &e)
	if err != nil {
		err = fault.New(fault.Permanent, "INTERNAL", "what was postponed cannot be read: %w", err)
	} else {
		err = c.handle(ctx, []*eventv1.Event{&e}, remove)
	}
	switch {
	case err == nil || ctx.Err() != nil:
		return ctx.Err()
	case fault.KindOf(err) == fault.Permanent:
		if err := c.skip(ctx, p.id, err); err != nil {
			return err
		}
		return c.c.DB.Write(ctx, remove)
	}
	c.c.Log.WarnContext(ctx, "event not handled yet", "consumer", c.c.Durable, "postponed", p.tries+1, "error", failure{&e, err})
	return c.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE postponed SET tries = $1, due = $2, error = $3 WHERE event_id = $4`,
			p.tries+1, db.FromTime(c.c.Now().Add(retryIn(p.tries+1))), reason(err), p.id)
		return err
	})
}
