package ingest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestNothingIsAcknowledgedUnrecorded: while the index cannot be written, the broker keeps what it delivered.
func TestNothingIsAcknowledgedUnrecorded(t *testing.T) {
	dir := t.TempDir()
	js, err := jetstream.New(servicetest.NATS(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := event.EnsureStreams(t.Context(), js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	r := facts(0, 1)[0].Head
	data, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{{Id: r.ID, Time: timestamppb.New(r.Time), Type: r.Type}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), event.FactsOf("issuer"), data); err != nil {
		t.Fatal(err)
	}
	state := func() (pending int, acked uint64) {
		consumer, err := js.Consumer(t.Context(), event.StreamName, Durable)
		if err != nil {
			return 0, 0
		}
		info, err := consumer.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.NumAckPending, info.AckFloor.Stream
	}
	ingest := func(p *parts, until func() bool) {
		t.Helper()
		in, err := New(Config{Recorder: p.recorder, DB: p.db, JS: js, Log: servicetest.Log(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- in.Run(ctx) }()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for !until() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal("never")
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}

	p, err := openParts(t.Context(), t, dir, sqliteIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	mend := p.breakIndex(t, "event_position")
	ingest(p, func() bool { pending, _ := state(); return pending == 1 })
	if _, acked := state(); acked != 0 {
		t.Error("acknowledged though it could not be recorded")
	}
	mend()
	closeParts(t, p)

	if p, err = openParts(t.Context(), t, dir, sqliteIn(dir)); err != nil {
		t.Fatal(err)
	}
	ingest(p, func() bool { _, acked := state(); return acked == 1 })
	checkLog(t, p, 1, "after the index could be written")
	closeParts(t, p)
}

// TestSecondWriterIsNoticed: the same log, copied, must not go on in two places with one index.
func TestSecondWriterIsNoticed(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		p, err := openParts(t.Context(), t, t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer closeParts(t, p)
		if err := p.recorder.Record(t.Context(), facts(0, 10)); err != nil {
			t.Fatal(err)
		}
		// Somebody else's log was longer when it was indexed.
		if err := p.store.Add(t.Context(), 0, facts(1000, store.BlockSize)); err != nil {
			t.Fatal(err)
		}
		if err := p.recorder.Record(t.Context(), facts(20, 1)); fault.Of(err).Reason != "LOG_REFUSED" {
			t.Error(err)
		}
		if p.ledger.Size() != 10 {
			t.Errorf("the log went on to %d", p.ledger.Size())
		}
	})
}

// TestSecondWriterOfAsMany: blocks of another's in the place of those that could not be written are not taken for them.
func TestSecondWriterOfAsMany(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		p, err := openParts(t.Context(), t, t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		mend := p.breakIndex(t, "term")
		if err := p.recorder.Record(t.Context(), facts(0, store.BlockSize+10)); err != nil {
			t.Fatal(err)
		}
		if err := p.recorder.settle(t.Context()); err == nil {
			t.Error("indexed without a table")
		}
		mend()
		if err := p.store.Add(t.Context(), 0, facts(1000, store.BlockSize)); err != nil {
			t.Fatal(err)
		}
		if err := p.recorder.Record(t.Context(), facts(300, 1)); fault.Of(err).Reason != "LOG_REFUSED" {
			t.Error(err)
		}
		if err := p.close(); fault.Of(err).Reason != "LOG_REFUSED" {
			t.Errorf("at the end: %v", err)
		}
	})
}

// TestIndexSetBack: the index is set back under a running recorder, as by a failover to a standby that was behind. It begins again from the
// log, and records nothing twice.
func TestIndexSetBack(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		p, err := openParts(t.Context(), t, t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer closeParts(t, p)
		record := func(from, n int) {
			t.Helper()
			err := p.recorder.Record(t.Context(), facts(from, n))
			for range 3 {
				if errors.Is(err, errAgain) {
					err = p.recorder.Record(t.Context(), facts(from, n))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		indexed := func(want uint64) {
			t.Helper()
			for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				n, err := p.store.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if n == want {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("indexed are %d records, want %d", n, want)
				}
			}
			p.recorder.mu.Lock()
			defer p.recorder.mu.Unlock()
			if err := p.recorder.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		lose := func(blocks int) {
			t.Helper()
			err := p.db.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
				for _, s := range []string{
					`DELETE FROM block WHERE number >= $1`, `DELETE FROM event_position WHERE block >= $1`, `DELETE FROM term WHERE $1 = 0`,
				} {
					if _, err := tx.Exec(ctx, s, blocks); err != nil {
						return err
					}
				}
				tip, id := blocks*store.BlockSize, ""
				if tip > 0 {
					id = facts(tip-1, 1)[0].Head.ID
				}
				_, err := tx.Exec(ctx, `UPDATE log SET tip = $1, tip_event = $2`, tip, id)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		record(0, 10)
		record(10, store.BlockSize)
		indexed(store.BlockSize)
		lose(0)
		record(0, 20) // comes again
		checkLog(t, p, 10+store.BlockSize, "set back to nothing")
		indexed(store.BlockSize)

		record(266, 3*store.BlockSize-266)
		indexed(3 * store.BlockSize)
		f, err := p.recorder.Begin(t.Context(), facts(3*store.BlockSize, 5))
		if err != nil {
			t.Fatal(err)
		}
		lose(0)
		if _, err := p.recorder.Begin(t.Context(), facts(0, 5)); !errors.Is(err, errAgain) {
			t.Errorf("the next begins: %v", err)
		}
		if err := p.recorder.Finish(t.Context(), f); !errors.Is(err, errAgain) {
			t.Errorf("the one before ends: %v", err)
		}
		record(3*store.BlockSize, 5)
		record(0, 5)
		checkLog(t, p, 3*store.BlockSize+5, "set back while records were on their way")
		indexed(3 * store.BlockSize)
	})
}

// TestTailIsBounded: while every write to the index fails, no more is recorded than the tail may hold, however often it is tried.
func TestTailIsBounded(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		p, err := openParts(t.Context(), t, t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		mend := p.breakIndex(t, "term")
		all := facts(0, store.MaxTail+2*batchEvents) // more than fits, at once
		for range 8 {
			if err := p.recorder.Record(t.Context(), all); err == nil {
				t.Fatal("more is recorded than can be indexed")
			}
			if size := p.ledger.Size(); size > store.MaxTail {
				t.Fatalf("%d records are in the log, none in the index", size)
			}
		}
		mend()
		if err := p.recorder.Record(t.Context(), all); err != nil {
			t.Fatal(err)
		}
		checkLog(t, p, uint64(len(all)), "after the index could be written")
		closeParts(t, p)
	})
}

// breakIndex takes a table away until mend is called.
func (p *parts) breakIndex(t *testing.T, table string) (mend func()) {
	t.Helper()
	rename := func(from, to string) {
		t.Helper()
		err := p.db.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `ALTER TABLE `+from+` RENAME TO `+to)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	rename(table, "away")
	return func() { t.Helper(); rename("away", table) }
}

// TestIndexBehindTheLog: while the index does not get on, facts are recorded, each once, until the tail is too long; a process that
// dies then leaves a log that is ahead of its index, and the next one knows what is in it all the same.
func TestIndexBehindTheLog(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		dir := t.TempDir()
		p, err := openParts(t.Context(), t, dir, c)
		if err != nil {
			t.Fatal(err)
		}
		again := func(n int) {
			t.Helper()
			for from := 0; from < n; from += 1000 {
				if err := p.recorder.Record(t.Context(), facts(from, min(1000, n-from))); err != nil {
					t.Fatal(err)
				}
			}
		}
		again(1000)
		release := p.stopIndex(t)
		again(6000)
		again(6000)
		if next, err := p.store.Next(t.Context()); err != nil || next > 1000 {
			t.Errorf("indexed up to %d though nothing could be: %v", next, err)
		}
		checkLog(t, p, 6000, "while the index waits")
		recorded := 6000
		for ; err == nil; recorded += 1000 {
			ctx := t.Context()
			if recorded+1000 > store.MaxTail { // it may have to wait
				short, cancel := context.WithTimeout(ctx, 3*time.Second)
				defer cancel()
				ctx = short
			}
			err = p.recorder.Record(ctx, facts(recorded, 1000))
		}
		if recorded -= 1000; !errors.Is(err, context.DeadlineExceeded) || recorded > store.MaxTail+1000 {
			t.Errorf("stopped at %d: %v", recorded, err)
		}
		if size := p.ledger.Size(); size != uint64(recorded) {
			t.Errorf("the log has %d records, %d were recorded", size, recorded)
		}
		release()
		if err := p.recorder.Record(t.Context(), facts(recorded, batchEvents)); err != nil {
			t.Fatal(err)
		}
		p.recorder.mu.Lock()
		if n := len(p.recorder.tail); n > store.MaxTail {
			t.Errorf("the tail has %d records", n)
		}
		p.recorder.mu.Unlock()
		recorded += batchEvents
		checkLog(t, p, uint64(recorded), "when the index goes on")
		closeParts(t, p)

		if p, err = openParts(t.Context(), t, dir, c); err != nil {
			t.Fatal(err)
		}
		again(recorded + 500)
		checkLog(t, p, uint64(recorded)+500, "after a restart")
		closeParts(t, p)
	})
}

// TestIndexAtRest: what came while the index was written is indexed without another call.
func TestIndexAtRest(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		p, err := openParts(t.Context(), t, t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		release := p.stopIndex(t)
		for from := 0; from < 900; from += 300 {
			if err := p.recorder.Record(t.Context(), facts(from, 300)); err != nil {
				t.Fatal(err)
			}
		}
		release()
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			next, err := p.store.Next(t.Context())
			if err != nil || time.Now().After(end) {
				t.Fatalf("indexed up to %d of 900: %v", next, err)
			}
			if next == 3*store.BlockSize {
				break
			}
		}
		checkLog(t, p, 900, "at rest")
		closeParts(t, p)
	})
}

// stopIndex keeps the index from being written until release is called.
func (p *parts) stopIndex(t *testing.T) (release func()) {
	t.Helper()
	begun, end, done := make(chan error, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- p.db.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
			// PostgreSQL makes those wait who write the same row, as indexing does last.
			_, err := tx.Exec(ctx, `UPDATE log SET published = published WHERE id = 1`)
			begun <- err
			<-end
			return err
		})
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	return func() {
		close(end)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlights: what sets out while something else is on its way is recorded once, whatever becomes of the other.
func TestFlights(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		p, err := openParts(t.Context(), t, t.TempDir(), c)
		if err != nil {
			t.Fatal(err)
		}
		begin := func(from, n int) *Flight {
			t.Helper()
			f, err := p.recorder.Begin(t.Context(), facts(from, n))
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		finish := func(f *Flight, want error) {
			t.Helper()
			if err := p.recorder.Finish(t.Context(), f); !errors.Is(err, want) {
				t.Fatalf("got %v, want %v", err, want)
			}
		}
		first, second := begin(0, 2000), begin(1500, 2000)
		finish(first, nil)
		known := begin(0, 3500)
		finish(second, nil)
		finish(known, nil)
		checkLog(t, p, 3500, "after two that overlap")

		// The first comes to nothing that is known.
		first, second = begin(3500, 500), begin(4000, 500)
		p.recorder.mu.Lock()
		p.recorder.land()
		p.recorder.mu.Unlock()
		finish(first, errAgain)
		if !p.recorder.Landed(second) {
			t.Error("the second goes on, though the first has failed")
		}
		third := begin(4400, 50) // nothing new
		last := begin(4450, 100)
		finish(second, errAgain)
		if err := p.recorder.Record(t.Context(), facts(3500, 1100)); err != nil {
			t.Fatal(err)
		}
		finish(third, nil)
		finish(last, errAgain)
		if err := p.recorder.Record(t.Context(), facts(4450, 150)); err != nil {
			t.Fatal(err)
		}
		checkLog(t, p, 4600, "after a failure")

		// Somebody else adds to the log.
		foreign := p.ledger.Add([][]byte{facts(4600, 1)[0].Data})
		first, second = begin(4601, 10), begin(4611, 10)
		if err := p.recorder.Finish(t.Context(), first); fault.Of(err).Reason != "LOG_INCONSISTENT" {
			t.Errorf("another writer: %v", err)
		}
		finish(second, errAgain)
		if _, err := foreign.Wait(); err != nil {
			t.Fatal(err)
		}
		if err := p.recorder.Record(t.Context(), facts(4601, 20)); err != nil {
			t.Fatal(err)
		}
		checkLog(t, p, 4621, "after another writer")
		closeParts(t, p)
	})
}

// TestCut: what is cut off belongs to the rest, and a message to the part that has its end.
func TestCut(t *testing.T) {
	of := func(ends ...int) batch {
		var b batch
		for _, end := range ends {
			b.messages = append(b.messages, message{end: end})
		}
		b.records = facts(0, ends[len(ends)-1])
		return b
	}
	ends := func(b batch) (all []int) {
		for _, m := range b.messages {
			all = append(all, m.end)
		}
		return all
	}
	for _, c := range []struct {
		b         batch
		end       uint64
		underWay  bool
		now, rest []int
		records   int // now
	}{
		{of(10), 0, false, []int{10}, nil, 10},
		{of(10), 0, true, nil, []int{10}, 0},
		{of(1500), 0, false, []int{1500}, nil, 1500},
		{of(1000, 1500), 0, true, []int{1000}, []int{476}, 1024},
		{of(1000, 1024), 0, true, []int{1000, 1024}, nil, 1024},
		{of(0, 24, 24, 1100), 1000, true, []int{0, 24, 24}, []int{52}, 1048},
		{of(2000, 4096, 4200), 5, false, []int{2000}, []int{5, 109}, 4091},
	} {
		all := ends(c.b)
		now, rest := c.b.cut(c.end, c.underWay)
		if len(now.records) != c.records || !slices.Equal(ends(now), c.now) || !slices.Equal(ends(rest), c.rest) {
			t.Errorf("%v at %d: now %d records, messages end at %v, then at %v", all, c.end, len(now.records), ends(now), ends(rest))
		}
		if whole := join(now, rest); len(whole.records) != all[len(all)-1] || !slices.Equal(ends(whole), all) {
			t.Errorf("%v at %d: joined again it is %v", all, c.end, ends(whole))
		}
	}
}
