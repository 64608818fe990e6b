package lease_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

const (
	ttl = time.Second
	// ample is of leases that must not be lost, where the disk may take its time.
	ample = 12 * time.Second
)

func open(t *testing.T, c db.Config) *db.DB {
	t.Helper()
	d, err := db.Open(t.Context(), c, lease.Schema, "issuer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return d
}

func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func guarded(ctx context.Context, d *db.DB) error {
	return d.Write(context.WithoutCancel(ctx), func(ctx context.Context, tx db.Tx) error { return lease.Guard(ctx, tx) })
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		all := []*db.DB{open(t, c)}
		for range 3 {
			if c.Driver == db.Postgres {
				all = append(all, open(t, c))
			} else {
				all = append(all, all[0])
			}
		}
		var inside, turns atomic.Int32
		var lastFence atomic.Int64
		var wg sync.WaitGroup
		for _, d := range all {
			wg.Go(func() {
				for range 3 {
					err := lease.Run(t.Context(), d, "work", ample, func(ctx context.Context) error {
						if inside.Add(1) != 1 {
							t.Error("two hold the lease")
						}
						if f := lease.Fence(ctx); f <= lastFence.Swap(f) {
							t.Error("the fencing number did not grow")
						}
						time.Sleep(10 * time.Millisecond)
						if err := guarded(ctx, d); err != nil {
							t.Error(err)
						}
						turns.Add(1)
						inside.Add(-1)
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if turns.Load() != 12 {
			t.Errorf("%d turns", turns.Load())
		}
	})
}

func TestHeldLongerThanItsTTL(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		inside := make(chan struct{})
		wg.Go(func() {
			err := lease.Run(ctx, d, "work", ample, func(ctx context.Context) error {
				close(inside)
				<-ctx.Done()
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		<-inside
		other, stop := context.WithTimeout(t.Context(), ample*3/2) // for longer than another waits before it takes over
		defer stop()
		if err := lease.Run(other, d, "work", ample, func(context.Context) error { t.Error("taken from a living holder"); return nil }); err != nil {
			t.Error(err)
		}
		ran := false
		if err := lease.Run(t.Context(), d, "other work", ttl, func(context.Context) error { ran = true; return nil }); err != nil || !ran {
			t.Errorf("another lease: %t %v", ran, err)
		}
		cancel()
		wg.Wait()
	})
}

func TestSilentHolder(t *testing.T) {
	t.Parallel()
	const abandoned = `INSERT INTO lease (name, holder, fence, beat, ttl) VALUES ('work', $1, 7, 3, $2)`
	take := func(t *testing.T, d *db.DB) (time.Duration, int64) {
		t.Helper()
		var fence int64
		begun := time.Now()
		err := lease.Run(t.Context(), d, "work", ttl, func(ctx context.Context) error { fence = lease.Fence(ctx); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return time.Since(begun), fence
	}
	t.Run("same process waits", func(t *testing.T) {
		servicetest.EachStore(t, func(t *testing.T, c db.Config) {
			d := open(t, c)
			exec(t, d, abandoned, d.Instance()+"/somebody", ttl.Microseconds())
			if took, fence := take(t, d); took < ttl || fence != 8 {
				t.Errorf("taken after %s with fence %d", took, fence)
			}
		})
	})
	t.Run("another process on PostgreSQL waits", func(t *testing.T) {
		d := open(t, servicetest.Postgres(t))
		exec(t, d, abandoned, "gone/somebody", ttl.Microseconds())
		if took, _ := take(t, d); took < ttl {
			t.Errorf("taken after %s", took)
		}
	})
	t.Run("a data file has no other process", func(t *testing.T) {
		d := open(t, servicetest.SQLite(t))
		exec(t, d, abandoned, "gone/somebody", time.Hour.Microseconds())
		if took, fence := take(t, d); took > time.Minute || fence != 8 {
			t.Errorf("taken after %s with fence %d", took, fence)
		}
	})
}

func TestLostLease(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		var fences []int64
		err := lease.Run(t.Context(), d, "work", ttl, func(ctx context.Context) error {
			fences = append(fences, lease.Fence(ctx))
			if len(fences) == 2 {
				return errors.New("my own")
			}
			exec(t, d, `UPDATE lease SET holder = $1, fence = fence + 1, beat = 0`, d.Instance()+"/thief")
			if err := guarded(ctx, d); fault.KindOf(err) != fault.Conflict || fault.Of(err).Reason != "LEASE_LOST" {
				t.Errorf("guard gave %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
				t.Error("not told of the loss")
			}
			return ctx.Err()
		})
		if err == nil || err.Error() != "my own" {
			t.Errorf("gave %v", err)
		}
		if len(fences) != 2 || fences[1] != fences[0]+2 {
			t.Errorf("fences %v", fences)
		}
	})
}

func TestStorageGoesAway(t *testing.T) {
	t.Parallel()
	d := open(t, servicetest.SQLite(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	runs := 0
	err := lease.Run(ctx, d, "work", ample, func(work context.Context) error {
		runs++
		begun := time.Now()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		<-work.Done()
		if took := time.Since(begun); took >= ample {
			t.Errorf("told of the loss after %s", took)
		}
		time.AfterFunc(ample, cancel)
		return nil
	})
	if err != nil || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

func TestMisuse(t *testing.T) {
	t.Parallel()
	d := open(t, servicetest.SQLite(t))
	if err := guarded(t.Context(), d); fault.KindOf(err) != fault.Internal {
		t.Errorf("guard outside a lease: %v", err)
	}
	if lease.Fence(t.Context()) != 0 {
		t.Error("a fence outside a lease")
	}
	if err := lease.Run(t.Context(), d, "work", 0, nil); err == nil {
		t.Error("a lease of no time")
	}
	func() {
		defer func() { _ = recover() }()
		_ = lease.Run(t.Context(), d, "work", time.Hour, func(context.Context) error { panic("oops") })
	}()
	ran := false
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := lease.Run(ctx, d, "work", ttl, func(context.Context) error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("a panic did not release the lease: %v", err)
	}
}
