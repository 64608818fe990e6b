package event_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// backup gives a function that sets a store back to what it has now.
func (w *world) backup(d *db.DB) (restore func()) {
	w.t.Helper()
	columns := map[string]string{
		"outbox": "id, created, kind, payload, published_at", "inbox": "event_id, received, error", "event_mark": "name, at", "note": "start, subject, times",
	}
	kept := map[string][][]any{}
	for table, names := range columns {
		err := d.Read(context.Background(), func(ctx context.Context, tx db.Tx) error {
			rows, err := tx.Query(ctx, `SELECT `+names+` FROM `+table)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				row := make([]any, strings.Count(names, ",")+1)
				into := make([]any, len(row))
				for i := range row {
					into[i] = &row[i]
				}
				if err := rows.Scan(into...); err != nil {
					return err
				}
				kept[table] = append(kept[table], row)
			}
			return rows.Err()
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return func() {
		w.t.Helper()
		err := d.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
			for table, names := range columns {
				if _, err := tx.Exec(ctx, `DELETE FROM `+table); err != nil {
					return err
				}
				for _, row := range kept[table] {
					var args []any
					if _, err := tx.Exec(ctx, `INSERT INTO `+table+` (`+names+`) VALUES `+db.In(&args, row), args...); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) messagesOf(service string) uint64 {
	w.t.Helper()
	s, err := w.js.Stream(context.Background(), event.StreamName)
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := s.Info(context.Background(), jetstream.WithSubjectFilter(event.FactsOf(service)))
	if err != nil {
		w.t.Fatal(err)
	}
	return info.State.Subjects[event.FactsOf(service)]
}

func (w *world) told(d *db.DB) (n int) {
	w.t.Helper()
	w.query(d, &n, `SELECT count(*) FROM event_mark WHERE name = 'foreign'`)
	return n
}

// TestStreamOfTheLostTime: the stores are set back to a backup, and the broker is not. What a store publishes and the broker says to
// have delivered since comes again to whom it was lost; what the stream has of the lost time is heard, once, also by whom it was heard then.
func TestStreamOfTheLostTime(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w, clock := newWorld(t, c), &wheel{}
		own := func() {
			err := w.to.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
				return event.Emit(ctx, tx, &eventv1.Event{Type: "deployer.agent.enrolled", Subject: "agents/a"})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		own()
		relay, others, heard := w.relay(), w.ownAt(clock), w.consume(note)
		w.emit("before")
		w.arrives("before")
		w.eventually("the other service has published", func() bool { return w.messagesOf("deployer") == 1 })
		older := w.backup(w.to) // the consumer's is the older backup
		w.emit("between")
		w.arrives("before", "between")
		w.published(t)
		others()
		restores := []func(){w.backup(w.from), older}
		w.emit("lost")
		w.arrives("before", "between", "lost")
		w.eventually("the broker has delivered everything", w.idle)
		heard()
		w.emit("lost, and nobody heard it")
		w.published(t)
		relay()

		for _, restore := range restores {
			restore()
		}
		w.consume(note)
		relay = w.relay()
		want := []string{"before", "between", "lost", "lost, and nobody heard it", "stores/issuer"}
		w.arrives(want...)
		w.ownAt(clock)
		w.eventually("the other service has published again", func() bool { return w.messagesOf("deployer") == 2 })
		w.published(t)
		relay()
		// Once is enough.
		w.ensure(event.StreamLimits{}) // as any daemon does that starts
		s, err := w.js.Stream(t.Context(), event.StreamName)
		if err != nil || s.CachedInfo().Config.Metadata["sallyport-set-back"] == "" {
			t.Errorf("a daemon that starts has the stream forget that it began anew: %v", err)
		}
		n := w.messagesOf("issuer")
		w.relay()
		w.emit("after")
		w.arrives(append(want, "after")...)
		if now := w.messagesOf("issuer"); now != n+1 {
			t.Errorf("%d messages for one event", now-n)
		}
	})
}

// TestStreamOlderThanTheRestoration: the consumer's store has lost what the producer's has not, and no event tells of it.
func TestStreamOlderThanTheRestoration(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		relay, heard := w.relay(), w.consume(note)
		restore := w.backup(w.to)
		w.emit("before")
		w.arrives("before")
		w.published(t)
		w.eventually("the broker has delivered everything", w.idle)
		relay()
		heard()
		restore()
		restored := time.Now()
		again := func() (stop func()) {
			r, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "issuer", Log: servicetest.Log(t), Restored: restored})
			if err != nil {
				t.Fatal(err)
			}
			return w.spawn(r.Run)
		}
		w.consume(note)
		relay = again()
		w.arrives("before")
		w.published(t)
		relay()
		if w.told(w.from) != 0 {
			t.Error("events that nobody knows")
		}
		n := w.messagesOf("issuer")
		again()
		w.emit("after")
		w.arrives("before", "after")
		if now := w.messagesOf("issuer"); now != n+1 {
			t.Errorf("%d messages for one event", now-n)
		}
	})
}

// TestStreamThatGoesWithItsStores has nothing come again.
func TestStreamThatGoesWithItsStores(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		stop := w.relay()
		w.emit(names("r", 1200)...)
		w.published(t)
		stop()
		n := w.messagesOf("issuer")
		w.relay()
		w.emit("after")
		w.published(t)
		if now := w.messagesOf("issuer"); now != n+1 || w.told(w.from) != 0 {
			t.Errorf("%d messages for one event, %d told", now-n, w.told(w.from))
		}
	})
}

// TestUnreadableInTheStream: a message that nobody can read keeps a relay from nothing.
func TestUnreadableInTheStream(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		if _, err := w.js.Publish(t.Context(), event.FactsOf("issuer"), []byte{0xff}); err != nil {
			t.Fatal(err)
		}
		w.relay()
		w.eventually("the stream is looked at", func() bool {
			var n int
			w.query(w.from, &n, `SELECT count(*) FROM event_mark WHERE name = 'stream'`)
			return n == 1
		})
		if w.told(w.from) != 0 {
			t.Error("it is taken for an event of the service")
		}
	})
}

// TestStoreThatHasOnlyHeard since its backup: it has published nothing, and nobody says that it was restored.
func TestStoreThatHasOnlyHeard(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		told := func() string {
			cons, err := w.js.Consumer(t.Context(), event.StreamName, "deployer")
			if err != nil {
				return ""
			}
			return cons.CachedInfo().Config.Metadata["sallyport-noted"]
		}
		consume := func() (stop func()) {
			t.Helper()
			before := told()
			stop = w.consume(note)
			w.eventually("it tells how far it is", func() bool { return told() != before })
			return stop
		}
		relay, heard := w.relay(), consume()
		w.emit("before")
		w.arrives("before")
		heard()
		restore := w.backup(w.to)
		heard = consume()
		w.emit("heard")
		w.arrives("before", "heard")
		w.eventually("the broker has delivered everything", w.idle)
		w.published(t)
		heard()
		relay()
		restore()
		for range 2 { // once is enough
			heard = w.consume(note)
			w.eventually("it is noticed", func() bool {
				var n int
				w.query(w.to, &n, `SELECT count(*) FROM outbox`)
				return n == 1
			})
			relay = w.relay()
			w.arrives("before", "heard")
			w.eventually("all is published again", func() bool { return w.messagesOf("issuer") >= 3 })
			w.published(t)
			heard()
			relay()
		}
		if n := w.messagesOf("issuer"); n != 3 {
			t.Errorf("%d messages for two events, of which both came again, together", n)
		}
	})
}

// crashing is a consumer that ends as a process does that is killed: it tells nobody.
func (w *world) crashing(h handler) (crash func()) {
	w.t.Helper()
	conn := w.broker.Connect()
	js, err := jetstream.New(conn)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := event.NewConsumer(event.ConsumerConfig{DB: w.to, JS: js, Durable: "deployer", Filter: []string{event.FactsOf("issuer")}, Handle: event.Each(h), Log: servicetest.Log(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	stop := w.spawn(c.Run)
	return sync.OnceFunc(func() { conn.Close(); stop() })
}

// delivered is how many messages the broker has delivered to the consumer since it was made or taken back.
func (w *world) delivered() uint64 {
	w.t.Helper()
	w.eventually("the broker has delivered everything", w.idle)
	cons, err := w.js.Consumer(w.t.Context(), event.StreamName, "deployer")
	if err != nil {
		w.t.Fatal(err)
	}
	return cons.CachedInfo().Delivered.Consumer
}

// TestStoreSetBackByAMoment has only heard since, and for less time than passes until it tells the broker. It hears again, and nobody else
// is troubled.
func TestStoreSetBackByAMoment(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.relay()
		heard := w.consume(note)
		w.emit("before")
		w.arrives("before")
		w.eventually("it tells the broker what it has noted", func() bool {
			cons, err := w.js.Consumer(t.Context(), event.StreamName, "deployer")
			return err == nil && cons.CachedInfo().Config.Metadata["sallyport-noted"] != ""
		})
		restore := w.backup(w.to)
		w.emit("lost")
		w.arrives("before", "lost")
		w.published(t)
		n := w.messagesOf("issuer")
		heard()
		restore()
		w.consume(note)
		w.arrives("before", "lost")
		w.delivered()
		var tells int
		w.query(w.to, &tells, `SELECT count(*) FROM outbox`)
		if now := w.messagesOf("issuer"); now != n || tells != 0 {
			t.Errorf("%d messages were published again, and %d events tell of it", now-n, tells)
		}
	})
}

// TestHeardAgainAfterACrash: what was heard since the place was last noted comes again and is not handled again. After a stop in order
// nothing comes again.
func TestHeardAgainAfterACrash(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.relay()
		begun, crash, all := time.Now(), w.crashing(note), names("m", 5)
		w.emitApart(all)
		w.arrives(all...)
		w.delivered()
		crash()
		stop := w.consume(note)
		w.emitApart([]string{"n"})
		all = append(all, "n")
		w.arrives(all...)
		before := w.delivered()
		if before != 6 && time.Since(begun) < 20*time.Second { // or the place was noted meanwhile
			t.Errorf("after a crash %d messages are delivered, want 6", before)
		}
		for _, name := range names("o", 5) { // a machine that is busy may take too long for the note at the stop
			stop()
			var place int
			w.query(w.to, &place, `SELECT at FROM event_mark WHERE name LIKE 'place/deployer/%'`)
			stop = w.consume(note)
			w.emitApart([]string{name})
			noted := place == len(all)+1
			all = append(all, name)
			w.arrives(all...)
			if after := w.delivered(); noted {
				if after != before+1 {
					t.Errorf("after a stop %d messages are delivered, want %d", after, before+1)
				}
				return
			}
		}
		t.Error("no stop notes the place")
	})
}

// TestReplicaBeginsWhileAnotherHandles takes the consumer back which they share. Nothing is handled twice, nothing is missed, and the other goes on.
func TestReplicaBeginsWhileAnotherHandles(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.relay()
		w.consume(note)
		all := names("m", 300)
		var emitting sync.WaitGroup
		emitting.Go(func() {
			for _, s := range all {
				w.emit(s)
				if len(w.noted()) < 20 {
					w.published(t)
				}
			}
		})
		defer emitting.Wait()
		for range 3 {
			before := len(w.noted())
			w.eventually("events are handled meanwhile", func() bool { n := len(w.noted()); return n > before || n == len(all) })
			w.crashing(note)()
		}
		w.arrives(all...)
		w.delivered()
	})
}
