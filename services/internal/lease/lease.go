// Package lease lets one of several replicas do a piece of work at a time.
//
// It guarantees that of all who Run the same name on one database at most one believes to hold it, as long as their clocks
// run at about the same speed: nobody compares the time of two machines. A holder that is slow to notice its loss is kept
// from writing by the fencing number, if its writes call Guard.
package lease

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Schema is the migration that makes the table. event.WithSchema includes it.
//
//go:embed *.sql
var Schema embed.FS

type held struct {
	name   string
	holder string
	fence  int64
}

type heldKey struct{}

// Fence is the fencing number of the lease under which ctx runs: a later holder's is greater. It is 0 outside Run.
func Fence(ctx context.Context) int64 {
	h, _ := ctx.Value(heldKey{}).(held)
	return h.fence
}

// Guard fails the transaction with fault.Conflict LEASE_LOST unless the lease under which ctx runs is still held, and keeps
// it from changing hands until the transaction ends.
func Guard(ctx context.Context, tx db.Tx) error {
	h, ok := ctx.Value(heldKey{}).(held)
	if !ok {
		return fault.New(fault.Internal, "INTERNAL", "lease.Guard called outside lease.Run")
	}
	ok, err := h.beat(ctx, tx)
	if err != nil {
		return fmt.Errorf("guarding by lease %s: %w", h.name, err)
	}
	if !ok {
		return fault.New(fault.Conflict, "LEASE_LOST", "another process has taken over %q", h.name)
	}
	return nil
}

func (h held) beat(ctx context.Context, tx db.Tx) (bool, error) {
	return db.Changed(tx.Exec(ctx, `UPDATE lease SET beat = beat + 1 WHERE name = $1 AND holder = $2 AND fence = $3`, h.name, h.holder, h.fence))
}

var errLost = errors.New("lease lost")

// Run waits for the lease called name, then runs fn while renewing it, and releases it when fn returns. When the lease is
// lost, fn's ctx is cancelled and, once fn has returned, Run competes again. It returns when fn has returned by itself,
// with fn's error, or when ctx ends, with nil: that is how a loop is stopped.
// ttl is how long others wait for a holder that has gone silent; a renewal is made every third of it.
func Run(ctx context.Context, d *db.DB, name string, ttl time.Duration, fn func(context.Context) error) error {
	if ttl < 10*time.Millisecond {
		return fault.New(fault.Internal, "INTERNAL", "lease %s: ttl %s is too short", name, ttl)
	}
	r := &run{d: d, name: name, ttl: ttl, fn: fn, holder: d.Instance() + "/" + uuid.NewString()}
	for {
		h, err := r.acquire(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		lost, err := r.hold(ctx, h)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return nil
		}
		if !lost {
			return err
		}
	}
}

type run struct {
	d      *db.DB
	name   string
	holder string
	ttl    time.Duration
	fn     func(context.Context) error

	seen      row // what the table said when it last changed
	seenSince time.Time
}

type row struct {
	holder      string
	fence, beat int64
	ttl         time.Duration
}

// acquire returns when the lease is held or ctx has ended. While the storage is unavailable it keeps trying.
func (r *run) acquire(ctx context.Context) (held, error) {
	r.seenSince = time.Now()
	r.seen = row{}
	for {
		fence, err := r.try(ctx)
		if err != nil && fault.KindOf(err) != fault.Transient {
			return held{}, fmt.Errorf("acquiring lease %s: %w", r.name, err)
		}
		if err == nil && fence > 0 {
			return held{name: r.name, holder: r.holder, fence: fence}, nil
		}
		pause := r.ttl/6 + rand.N(r.ttl/6)
		select {
		case <-ctx.Done():
			return held{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// try gives the new fencing number, or 0 when another holds the lease.
func (r *run) try(ctx context.Context) (int64, error) {
	var fence int64
	err := r.d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		fence = 0
		var now row
		var micros int64
		err := tx.QueryRow(ctx, `SELECT holder, fence, beat, ttl FROM lease WHERE name = $1`, r.name).Scan(&now.holder, &now.fence, &now.beat, &micros)
		if errors.Is(err, sql.ErrNoRows) {
			won, err := db.Changed(tx.Exec(ctx, `INSERT INTO lease (name, holder, fence, beat, ttl) VALUES ($1, $2, 1, 0, $3) ON CONFLICT DO NOTHING`,
				r.name, r.holder, r.ttl.Microseconds()))
			if won {
				fence = 1
			}
			return err
		}
		if err != nil {
			return err
		}
		now.ttl = time.Duration(micros) * time.Microsecond
		if !r.free(now) {
			return nil
		}
		won, err := db.Changed(tx.Exec(ctx, `UPDATE lease SET holder = $1, fence = fence + 1, beat = 0, ttl = $2 WHERE name = $3 AND fence = $4 AND beat = $5 AND holder = $6`,
			r.holder, r.ttl.Microseconds(), r.name, now.fence, now.beat, now.holder))
		if won {
			fence = now.fence + 1
		}
		return err
	})
	return fence, err
}

// free judges whether the lease may be taken: released, or left by a process that is certainly gone, or without a beat for
// the holder's ttl by our own clock, counted from when we first saw the last beat.
func (r *run) free(now row) bool {
	if now != r.seen {
		r.seen, r.seenSince = now, time.Now()
	}
	instance, _, _ := strings.Cut(now.holder, "/")
	return now.holder == "" ||
		r.d.Exclusive() && instance != r.d.Instance() ||
		time.Since(r.seenSince) >= now.ttl
}

// hold runs fn and renews the lease beside it. lost means that fn was cancelled because the lease could not be renewed.
func (r *run) hold(ctx context.Context, h held) (lost bool, err error) {
	work, cancel := context.WithCancelCause(context.WithValue(ctx, heldKey{}, h))
	defer cancel(nil)
	renewals := make(chan struct{})
	go func() {
		defer close(renewals)
		r.renew(work, h, cancel)
	}()
	defer func() {
		cancel(nil)
		<-renewals
		if !lost {
			r.release(context.WithoutCancel(ctx), h)
		}
	}()
	err = r.fn(work)
	lost = errors.Is(context.Cause(work), errLost)
	return lost, err
}

// renew gives up at three quarters of the ttl, which leaves fn the last quarter to stop in before another may begin.
func (r *run) renew(ctx context.Context, h held, cancel context.CancelCauseFunc) {
	last := time.Now()
	for pause := r.ttl / 3; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		begun := time.Now()
		attempt, stop := context.WithDeadline(ctx, last.Add(r.ttl*3/4))
		var ok bool
		err := r.d.Write(attempt, func(ctx context.Context, tx db.Tx) (err error) {
			ok, err = h.beat(ctx, tx)
			return err
		})
		stop()
		switch {
		case err == nil && !ok, err != nil && time.Since(last) >= r.ttl*3/4:
			cancel(errLost)
			return
		case err == nil:
			last, pause = begun, r.ttl/3
		default:
			pause = r.ttl / 20
		}
	}
}

func (r *run) release(ctx context.Context, h held) {
	ctx, cancel := context.WithTimeout(ctx, r.ttl)
	defer cancel()
	// Not released, it runs out.
	_ = r.d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE lease SET holder = '', beat = beat + 1 WHERE name = $1 AND holder = $2 AND fence = $3`, h.name, h.holder, h.fence)
		return err
	})
}
