package event

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/protobuf/proto"
)

var heardTable = fstest.MapFS{"00100_heard.sql": {Data: []byte("-- +goose Up\nCREATE TABLE heard (id TEXT NOT NULL, subject TEXT NOT NULL);\n")}}

// site is services with stores here and there, and a broker.
type site struct {
	t  *testing.T
	js jetstream.JetStream
}

func (s site) open(c db.Config, service string) outboxOf {
	s.t.Helper()
	d, err := db.Open(s.t.Context(), c, WithSchema(heardTable), service)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = d.Close() })
	return outboxOf{s.t, d, s.js}
}

func (s site) spawn(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() { cancel(); running.Wait() })
}

func (s site) relay(w outboxOf, service string, js jetstream.JetStream) {
	s.t.Helper()
	r, err := NewRelay(RelayConfig{DB: w.db, JS: js, Service: service, Log: servicetest.Log(s.t)})
	if err != nil {
		s.t.Fatal(err)
	}
	s.spawn(r.Run)
}

// hears has a service hear the facts of the others.
func (s site) hears(w outboxOf, service string, from ...string) {
	s.t.Helper()
	c, err := NewConsumer(ConsumerConfig{DB: w.db, JS: s.js, Durable: service, Filter: from, Log: servicetest.Log(s.t), Handle: Each(
		func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
			_, err := tx.Exec(ctx, `INSERT INTO heard (id, subject) VALUES ($1, $2)`, e.GetId(), e.GetSubject())
			return err
		})})
	if err != nil {
		s.t.Fatal(err)
	}
	c.attendance.each = 50 * time.Millisecond
	s.spawn(c.Run)
}

// emits does so as soon as the store takes it.
func (w outboxOf) emits(kind string, subjects ...string) {
	w.t.Helper()
	w.eventually("the store takes "+subjects[0], func() bool {
		return nil == w.db.Write(w.t.Context(), func(ctx context.Context, tx db.Tx) error {
			for _, s := range subjects {
				if err := Emit(ctx, tx, &eventv1.Event{Type: kind, Subject: s}); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// finds waits until a store that may be away says so many.
func (w outboxOf) finds(what string, want int, query string) {
	w.t.Helper()
	w.eventually(what, func() bool {
		var n int
		err := w.db.Read(w.t.Context(), func(ctx context.Context, tx db.Tx) error { return tx.QueryRow(ctx, query).Scan(&n) })
		return err == nil && n == want
	})
}

// heard waits until each of the subjects was handled once, and nothing else.
func (w outboxOf) heard(subjects ...string) {
	w.t.Helper()
	want := map[string]int{}
	for _, s := range subjects {
		want[s] = 1
	}
	var got map[string]int
	for end := time.Now().Add(time.Minute); !maps.Equal(got, want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("handled were %v, want %v", got, want)
		}
		now := map[string]int{}
		err := w.db.Read(w.t.Context(), func(ctx context.Context, tx db.Tx) error {
			return eachText(ctx, tx, func(s string) { now[s]++ }, `SELECT subject FROM heard WHERE subject NOT LIKE 'stores/%'`)
		})
		if err == nil {
			got = now
		}
	}
}

// contents checks that the stream has no event under two ids and no id with two contents. It gives how many there are.
func (s site) contents() int {
	s.t.Helper()
	stream, err := s.js.Stream(s.t.Context(), StreamName)
	if err != nil {
		s.t.Fatal(err)
	}
	byID, bySubject := map[string]*eventv1.Event{}, map[string]string{}
	state := stream.CachedInfo().State
	for n := state.FirstSeq; n <= state.LastSeq; n++ {
		m, err := stream.GetMsg(s.t.Context(), n)
		if err != nil {
			s.t.Fatal(err)
		}
		var b eventv1.EventBatch
		if err := proto.Unmarshal(m.Data, &b); err != nil {
			s.t.Fatal(err)
		}
		for _, e := range b.GetEvents() {
			if before := byID[e.GetId()]; before != nil && !proto.Equal(before, e) {
				s.t.Errorf("published were %v and %v", before, e)
			}
			if id := bySubject[e.GetSubject()]; id != "" && id != e.GetId() && !strings.HasPrefix(e.GetSubject(), "stores/") {
				s.t.Errorf("%s was published as %s and %s", e.GetSubject(), id, e.GetId())
			}
			byID[e.GetId()], bySubject[e.GetSubject()] = e, e.GetId()
		}
	}
	return len(byID)
}

// doored is a broker that takes publications when its door is open.
type doored struct {
	jetstream.JetStream
	open chan struct{}
}

func (d doored) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	select {
	case <-d.open:
		return d.JetStream.PublishMsg(ctx, m, opts...)
	case <-ctx.Done():
		return nil, errors.Join(errAway, ctx.Err())
	}
}

// TestFailover: the server of PostgreSQL dies, and a standby that lacks the last commits takes its place. Of two services with stores there
// one has published what its store does not know, or takes for unpublished; the other has heard what its store does not know. Both go on
// and notice by themselves: what was heard is heard again, and who has it, at a store elsewhere too, has it once.
func TestFailover(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(servicetest.NATS(t))
	if err != nil {
		t.Fatal(err)
	}
	s, pair := site{t, js}, servicetest.NewPair(t)
	if err := EnsureStreams(t.Context(), js, StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	store := pair.Store("services")
	issuer, deployer, inventory := s.open(store, "issuer"), s.open(store, "deployer"), s.open(servicetest.SQLite(t), "inventory")
	door := doored{js, make(chan struct{})}
	issuer.emits("issuer.request.issued", "waiting")
	s.relay(issuer, "issuer", door)
	s.relay(inventory, "inventory", js)
	s.hears(deployer, "deployer", FactsOf("issuer"), FactsOf("inventory"))
	s.hears(inventory, "inventory", FactsOf("issuer"))
	inventory.emits("inventory.host.seen", "before")
	deployer.heard("before")
	deployer.finds("its place", 1, `SELECT count(*) FROM event_mark WHERE name LIKE 'place/deployer/%' AND at = 2`)

	pair.Cut()
	close(door.open)
	deployer.heard("before", "waiting")
	inventory.emits("inventory.host.seen", "of a store elsewhere")
	issuer.emits("issuer.request.issued", "of a store that loses it")
	all := []string{"before", "waiting", "of a store elsewhere", "of a store that loses it"}
	deployer.heard(all...)
	inventory.heard("waiting", "of a store that loses it")
	deployer.finds("its place", 1, `SELECT count(*) FROM event_mark WHERE name LIKE 'place/deployer/%' AND at = 5`)
	issuer.finds("what was published", 2, `SELECT count(*) FROM outbox WHERE published_at IS NOT NULL`)
	for query, want := range map[string]int{
		`SELECT count(*) FROM deployer.heard`: 1, `SELECT count(*) FROM issuer.outbox`: 1, `SELECT count(*) FROM issuer.outbox WHERE published_at IS NULL`: 1,
	} {
		var n int
		if pair.OfStandby("services", &n, query); n != want {
			t.Fatalf("the standby is not behind: %s: %d", query, n)
		}
	}

	pair.Fail()
	deployer.heard(all...)
	issuer.emits("issuer.request.issued", "after")
	deployer.heard(append(all, "after")...)
	inventory.heard("waiting", "of a store that loses it", "after")
	issuer.finds("what waits", 0, `SELECT count(*) FROM outbox WHERE published_at IS NULL`)
	if n := s.contents(); n < len(all)+1 {
		t.Errorf("the stream has %d events", n)
	}
}

// TestRestoredWhileItRuns: the database of a service is restored and its server runs on, as does the service. It notices by itself.
func TestRestoredWhileItRuns(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		js, err := jetstream.New(servicetest.NATS(t))
		if err != nil {
			t.Fatal(err)
		}
		s := site{t, js}
		if err := EnsureStreams(t.Context(), js, StreamLimits{}); err != nil {
			t.Fatal(err)
		}
		deployer, inventory := s.open(c, "deployer"), s.open(servicetest.SQLite(t), "inventory")
		s.relay(inventory, "inventory", js)
		s.hears(deployer, "deployer", FactsOf("inventory"))
		inventory.emits("inventory.host.seen", "before")
		deployer.heard("before")
		deployer.finds("its place", 1, `SELECT count(*) FROM event_mark WHERE name LIKE 'place/%' AND at = 2`)
		inventory.emits("inventory.host.seen", "lost")
		deployer.heard("before", "lost")
		deployer.finds("its place", 1, `SELECT count(*) FROM event_mark WHERE name LIKE 'place/%' AND at = 3`)
		deployer.write(func(ctx context.Context, tx db.Tx) error {
			for _, table := range []string{`DELETE FROM heard WHERE subject = 'lost'`, `DELETE FROM inbox WHERE event_id NOT IN (SELECT id FROM heard)`, `UPDATE event_mark SET at = 2 WHERE name LIKE 'place/%'`} {
				if _, err := tx.Exec(ctx, table); err != nil {
					return err
				}
			}
			return nil
		})
		deployer.heard("before", "lost")
	})
}
