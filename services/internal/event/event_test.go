package event_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/protobuf/proto"
)

var migrations = fstest.MapFS{"00100_note.sql": {Data: []byte("-- +goose Up\nCREATE TABLE note (start TEXT NOT NULL, subject TEXT NOT NULL, times BIGINT NOT NULL);\nCREATE INDEX note_start ON note (start);\n")}}

// world is a service that emits, one that consumes, and the broker between them.
type world struct {
	t      *testing.T
	broker *servicetest.Broker
	js     jetstream.JetStream
	from   *db.DB
	to     *db.DB
	caller identity.Caller
}

func newWorld(t *testing.T, c db.Config) *world {
	t.Helper()
	w := &world{t: t, broker: servicetest.NewBroker(t)}
	js, err := jetstream.New(w.broker.Connect())
	if err != nil {
		t.Fatal(err)
	}
	w.js = js
	w.ensure(event.StreamLimits{})
	w.from = w.open(c, "issuer")
	to := c
	if c.Driver == db.SQLite {
		to = servicetest.SQLite(t)
	}
	w.to = w.open(to, "deployer")
	d := servicetest.TrustDomain(t)
	w.caller = d.Caller(d.Operator("ann"))
	return w
}

func (w *world) ensure(l event.StreamLimits) {
	w.t.Helper()
	if err := event.EnsureStreams(w.t.Context(), w.js, l); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open(c db.Config, service string) *db.DB {
	w.t.Helper()
	d, err := db.Open(w.t.Context(), c, event.WithSchema(migrations), service)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			w.t.Errorf("closing: %v", err)
		}
	})
	return d
}

// spawn runs a loop until the test, or the returned function, ends it.
func (w *world) spawn(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("loop ended with %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) relay() (stop func()) {
	w.t.Helper()
	r, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "issuer", Log: servicetest.Log(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.spawn(r.Run)
}

type handler func(context.Context, db.Tx, *eventv1.Event) error

func (w *world) consume(h handler) (stop func()) {
	w.t.Helper()
	c, err := event.NewConsumer(event.ConsumerConfig{DB: w.to, JS: w.js, Durable: "deployer", Filter: []string{event.FactsOf("issuer")}, Handle: event.Each(h), Log: servicetest.Log(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.spawn(c.Run)
}

// note counts in the database how often an event's subject was handled.
func note(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
	start := e.GetSubject()[:min(len(e.GetSubject()), 40)] // what PostgreSQL can have an index of
	seen, err := db.Changed(tx.Exec(ctx, `UPDATE note SET times = times + 1 WHERE start = $1 AND subject = $2`, start, e.GetSubject()))
	if err != nil || seen {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO note (start, subject, times) VALUES ($1, $2, 1)`, start, e.GetSubject())
	return err
}

func (w *world) noted() map[string]int {
	w.t.Helper()
	all := map[string]int{}
	err := w.to.Read(context.Background(), func(ctx context.Context, tx db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT subject, times FROM note`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var s string
			var n int
			if err := rows.Scan(&s, &n); err != nil {
				return err
			}
			all[s] = n
		}
		return rows.Err()
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *world) query(d *db.DB, into any, query string, args ...any) {
	w.t.Helper()
	err := d.Read(context.Background(), func(ctx context.Context, tx db.Tx) error { return tx.QueryRow(ctx, query, args...).Scan(into) })
	if err != nil {
		w.t.Fatal(err)
	}
}

func issued(subject string) *eventv1.Event {
	return &eventv1.Event{Type: "issuer.request.issued", Subject: subject, Result: eventv1.Result_RESULT_SUCCEEDED}
}

func (w *world) emit(subjects ...string) {
	w.t.Helper()
	err := w.from.Write(identity.WithCaller(context.Background(), w.caller), func(ctx context.Context, tx db.Tx) error {
		for _, s := range subjects {
			if err := event.Emit(ctx, tx, issued(s)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

// arrives waits until exactly the subjects were handled, once each.
func (w *world) arrives(subjects ...string) {
	w.t.Helper()
	want := map[string]int{}
	for _, s := range subjects {
		want[s] = 1
	}
	w.eventually(fmt.Sprintf("%d events handled once each", len(want)), func() bool {
		got := w.noted()
		if len(got) < len(want) {
			return false
		}
		if !maps.Equal(got, want) {
			w.t.Fatalf("handled %v", got)
		}
		return true
	})
}

func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return all
}

func TestChangeAndEventTogether(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		var mu sync.Mutex
		var got []*eventv1.Event
		var continued string
		w.relay()
		w.consume(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
			mu.Lock()
			got = append(got, proto.CloneOf(e))
			continued = trace.ID(ctx)
			mu.Unlock()
			return note(ctx, tx, e)
		})
		no := errors.New("no")
		err := w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			if err := event.Emit(ctx, tx, issued("rolled back")); err != nil {
				return err
			}
			return no
		})
		if !errors.Is(err, no) {
			t.Fatal(err)
		}
		story := trace.New()
		ctx := trace.With(identity.WithCaller(t.Context(), w.caller), story)
		before := time.Now()
		err = w.from.Write(ctx, func(ctx context.Context, tx db.Tx) error { return event.Emit(ctx, tx, issued("kept")) })
		if err != nil {
			t.Fatal(err)
		}
		w.arrives("kept")
		mu.Lock()
		defer mu.Unlock()
		e := got[0]
		if e.GetActor() != "spiffe://test.example/operator/ann" || e.GetTraceId() != story.Trace || continued != story.Trace || len(e.GetId()) != 36 || e.GetTime().AsTime().Sub(before).Abs() > time.Minute {
			t.Errorf("event %v, trace continued as %q", e, continued)
		}
		var waiting int
		w.eventually("published rows are marked", func() bool {
			w.query(w.from, &waiting, `SELECT count(*) FROM outbox WHERE published_at IS NULL`)
			return waiting == 0
		})
	})
}

func TestEmitRefuses(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		for _, e := range []*eventv1.Event{
			{Type: "nonsense"},
			{Type: "issuer.request.issued", Facts: map[string]string{"x": strings.Repeat("x", event.MaxSize)}},
		} {
			err := w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error { return event.Emit(ctx, tx, e) })
			if err == nil {
				t.Errorf("emitted %.50v", e)
			}
		}
	})
}

func TestWanted(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		consumer, err := event.NewConsumer(event.ConsumerConfig{
			DB: w.to, JS: w.js, Durable: "deployer", Filter: []string{event.FactsOf("issuer")}, Handle: event.Each(note), Log: servicetest.Log(t),
			Wanted: func(kind, subject string) bool {
				return kind == "issuer.request.issued" && !strings.HasPrefix(subject, "foreign")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.emit(names("foreign", 3)...)
		w.emit(append(names("mixed", 2), names("foreign", 2)...)...)
		w.emit("last")
		w.relay()
		w.spawn(consumer.Run)
		w.arrives("mixed-0", "mixed-1", "last")
		if n := inbox(w); n != 3 {
			t.Errorf("%d events are remembered", n)
		}
	})
}

func TestManyEventsShareFewMessages(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		all := names("r", 3000)
		w.emit(all...)
		w.relay()
		w.consume(note)
		w.arrives(all...)
		info, err := w.stream().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs > 7 {
			t.Errorf("%d messages for 3000 events", info.State.Msgs)
		}
		big := make([]string, 40)
		for i := range big {
			big[i] = fmt.Sprintf("%d-%s", i, strings.Repeat("x", 100<<10))
		}
		w.emit(big...)
		w.arrives(append(all, big...)...)
		after, err := w.stream().Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := after.State.Msgs - info.State.Msgs; n < 8 || n > 10 {
			t.Errorf("%d messages for 4 MB", n)
		}
	})
}

func (w *world) stream() jetstream.Stream {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), event.StreamName)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// TestHurry has a relay linger for longer than the test.
func TestHurry(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "issuer", Log: servicetest.Log(t), Linger: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w.spawn(r.Run)
	w.consume(note)
	var all []string
	for i := range 3 { // the first after waiting for an event, the others after publishing
		slow, fast := fmt.Sprintf("slow-%d", i), fmt.Sprintf("fast-%d", i)
		w.emit(slow)
		err := w.from.Write(identity.WithCaller(t.Context(), w.caller), func(ctx context.Context, tx db.Tx) error {
			event.Hurry(tx)
			return event.Emit(ctx, tx, issued(fast))
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, slow, fast)
		w.arrives(all...)
	}
	stream, err := w.js.Stream(t.Context(), event.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 3 {
		t.Errorf("%d messages for 6 events in 3 pairs: what does not hurry waits", n)
	}
}

func TestObservationsAreApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	w.relay()
	w.consume(note)
	err := w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
		return errors.Join(event.Observe(ctx, tx, issued("seen")), event.Emit(ctx, tx, issued("done")))
	})
	if err != nil {
		t.Fatal(err)
	}
	w.arrives("done")
	w.eventually("both messages are stored", func() bool {
		info, err := w.stream().Info(t.Context(), jetstream.WithSubjectFilter(">"))
		return err == nil && info.State.Subjects[event.FactsOf("issuer")] == 1 && info.State.Subjects[event.ObservationsOf("issuer")] == 1
	})
}

func TestNATSComesAndGoes(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.relay()
		w.consume(note)
		var all []string
		for round := range 3 {
			w.broker.Stop()
			away := names(fmt.Sprintf("away-%d", round), 20)
			w.emit(away...)
			time.Sleep(150 * time.Millisecond)
			w.broker.Start()
			here := names(fmt.Sprintf("here-%d", round), 20)
			w.emit(here...)
			all = append(append(all, away...), here...)
		}
		w.arrives(all...)
	})
}

// A transaction that began early and commits late has an id below those already published.
func TestLateCommitIsNotPassedOver(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.relay()
		w.consume(note)
		w.emit("early")
		w.arrives("early")
		late := issued("late")
		late.Id = "00000000-0000-7000-8000-000000000000"
		err := w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error { return event.Emit(ctx, tx, late) })
		if err != nil {
			t.Fatal(err)
		}
		w.arrives("early", "late")
	})
}

// After a crash between storing in JetStream and marking as published the same events go out again, in other messages.
func TestPublishedTwiceHandledOnce(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.consume(note)
		all := names("r", 10)
		stop := w.relay()
		w.emit(all[:7]...)
		w.arrives(all[:7]...)
		stop()
		err := w.from.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE outbox SET published_at = NULL`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		w.emit(all[7:]...)
		w.relay()
		w.arrives(all...)
		w.emit("last")
		w.arrives(append(all, "last")...)
	})
}

func TestOneMessageHoldsAnEventTwice(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.consume(note)
		double := issued("double")
		double.Id = "01890a5d-ac96-774b-bcce-b302099a8057"
		one := issued("one")
		one.Id = "01890a5d-ac96-774b-bcce-b302099a8058"
		for _, events := range [][]*eventv1.Event{{double, one, double}, {double}} {
			data, err := proto.Marshal(&eventv1.EventBatch{Events: events})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.js.Publish(t.Context(), event.FactsOf("issuer"), data); err != nil {
				t.Fatal(err)
			}
		}
		w.arrives("double", "one")
		w.eventually("every message is answered", w.idle)
		w.arrives("double", "one")
	})
}

func TestConsumerGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		w.relay()
		stop := w.consume(note)
		w.emit("one")
		w.arrives("one")
		stop()
		w.emit("two")
		w.consume(note)
		w.arrives("one", "two")
	})
}

func TestFailingHandlers(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		var mu sync.Mutex
		var ahead atomic.Bool // the good ones were seen to be handled before the slow ones
		tries := map[string]int{}
		w.consume(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
			if err := note(ctx, tx, e); err != nil {
				return err
			}
			mu.Lock()
			tries[e.GetSubject()]++
			n := tries[e.GetSubject()]
			mu.Unlock()
			switch kind, _, _ := strings.Cut(e.GetSubject(), "-"); {
			case kind == "poison":
				return fault.New(fault.Permanent, "NEVER", "this will never do")
			case kind == "slow" && (n < 4 || !ahead.Load()):
				return errors.New("not yet")
			case kind == "panic" && n < 3:
				panic("oops")
			}
			return nil
		})
		good := append(names("good", 5), names("slow", 2)...)
		good = append(good, names("panic", 1)...)
		w.emit(append(good, "poison-1", "poison-2")...)
		w.relay()
		// The good ones are not held up by the others, which came in the same message.
		w.eventually("good events are handled first", func() bool {
			got := w.noted()
			return got["good-4"] == 1 && got["slow-0"] == 0
		})
		ahead.Store(true)
		w.arrives(good...)
		var errorText string
		w.query(w.to, &errorText, `SELECT max(error) FROM inbox WHERE error <> ''`)
		if !strings.Contains(errorText, "this will never do") {
			t.Errorf("recorded %q", errorText)
		}
		var skipped int
		w.query(w.to, &skipped, `SELECT count(*) FROM inbox WHERE error <> ''`)
		if skipped != 2 {
			t.Errorf("%d skipped events recorded", skipped)
		}
		w.eventually("the message is acknowledged", w.idle)
	})
}

// idle says that the consumer has nothing left to do.
func (w *world) idle() bool {
	cons, err := w.js.Consumer(context.Background(), event.StreamName, "deployer")
	if err != nil {
		return false
	}
	info, err := cons.Info(context.Background())
	return err == nil && info.NumAckPending == 0 && info.NumPending == 0
}

func TestForeignBytes(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		noID, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{issued("no id"), {Id: "x\x00y", Type: "a.b.c"}, {Id: "01890a5d-ac96-774b-bcce-b302099a8057", Subject: "good"}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{[]byte("not a batch"), {}, noID, {0x0a, 0xff, 0xff, 0xff}} {
			if _, err := w.js.Publish(t.Context(), event.FactsOf("issuer"), data); err != nil {
				t.Fatal(err)
			}
		}
		w.consume(note)
		w.arrives("good")
		w.eventually("every message is answered", w.idle)
		var skipped int
		w.query(w.to, &skipped, `SELECT count(*) FROM inbox WHERE error <> ''`)
		if skipped != 4 {
			t.Errorf("%d recorded", skipped)
		}
	})
}

func TestFullStreamHoldsTheOutbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	w.ensure(event.StreamLimits{MaxBytes: 2000})
	w.relay()
	w.consume(note)
	all := names("r", 20)
	for _, s := range all { // one message each: all in one would be more than the stream takes
		w.emit(s)
		w.eventually("it is published, or the stream is full", func() bool {
			info, err := w.stream().Info(t.Context())
			return waits(w) == 0 || err == nil && info.State.Bytes > 1500
		})
	}
	w.eventually("the stream is full", func() bool {
		info, err := w.stream().Info(t.Context())
		return err == nil && info.State.Bytes > 1500
	})
	if waits(w) == 0 {
		t.Fatal("nothing waits: the test shows nothing")
	}
	w.ensure(event.StreamLimits{})
	w.arrives(all...)
}

func TestReplicasShareTheOutbox(t *testing.T) {
	t.Parallel()
	c := servicetest.Postgres(t)
	w := newWorld(t, c)
	second := *w
	second.from = w.open(c, "issuer")
	stop := w.relay()
	second.relay()
	w.consume(note)
	var all []string
	for i := range 20 {
		from := []*world{w, &second}[i%2]
		s := fmt.Sprint("r-", i)
		from.emit(s)
		all = append(all, s)
	}
	w.arrives(all...)
	stop()
	second.emit("after")
	w.arrives(append(all, "after")...)
}

func TestStreamsAsDocumented(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	w.ensure(event.StreamLimits{MaxAge: time.Hour}) // a second time, changed
	for name, subjects := range map[string]int{event.StreamName: 2, event.AuditStream: 1} {
		s, err := w.js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		c := s.CachedInfo().Config
		if c.Discard != jetstream.DiscardNew || c.Storage != jetstream.FileStorage || c.MaxAge != time.Hour || len(c.Subjects) != subjects || c.MaxMsgs != -1 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestStreamsThatCannotBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	if err := event.EnsureStreams(t.Context(), w.js, event.StreamLimits{Replicas: 3}); err == nil {
		t.Error("three replicas on one server")
	}
	w.broker.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := event.EnsureStreams(ctx, w.js, event.StreamLimits{}); err == nil {
		t.Error("streams without a server")
	}
	w.broker.Start()
	w.ensure(event.StreamLimits{})
}

func TestConstructorsRefuse(t *testing.T) {
	t.Parallel()
	if _, err := event.NewRelay(event.RelayConfig{}); err == nil {
		t.Error("a relay of nothing")
	}
	w := newWorld(t, servicetest.SQLite(t))
	good := event.ConsumerConfig{DB: w.to, JS: w.js, Durable: "x", Filter: []string{"y"}, Handle: event.Each(note), Log: servicetest.Log(t)}
	for _, spoil := range []func(*event.ConsumerConfig){
		func(c *event.ConsumerConfig) { c.DB = nil }, func(c *event.ConsumerConfig) { c.JS = nil }, func(c *event.ConsumerConfig) { c.Handle = nil },
		func(c *event.ConsumerConfig) { c.Filter = nil }, func(c *event.ConsumerConfig) { c.Log = nil }, func(c *event.ConsumerConfig) { c.Durable = "a.b" },
	} {
		c := good
		spoil(&c)
		if _, err := event.NewConsumer(c); err == nil {
			t.Errorf("accepted %+v", c)
		}
	}
}
