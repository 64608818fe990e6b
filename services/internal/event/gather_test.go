package event_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/protobuf/proto"
)

// publish sends one message that holds these events.
func (w *world) publish(subjects ...string) {
	w.t.Helper()
	batch := &eventv1.EventBatch{}
	for _, s := range subjects {
		e := issued(s)
		e.Id = uuid.Must(uuid.NewV7()).String()
		batch.Events = append(batch.Events, e)
	}
	data, err := proto.Marshal(batch)
	if err != nil {
		w.t.Fatal(err)
	}
	w.send(data)
}

func (w *world) send(data []byte) {
	w.t.Helper()
	if _, err := w.js.Publish(w.t.Context(), event.FactsOf("issuer"), data); err != nil {
		w.t.Fatal(err)
	}
}

// gathering consumes, and gives how many events each transaction was for that was tried.
func (w *world) gathering(h handler) (sizes func() []int) {
	w.t.Helper()
	var mu sync.Mutex
	var all []int
	c, err := event.NewConsumer(event.ConsumerConfig{
		DB: w.to, JS: w.js, Durable: "deployer", Filter: []string{event.FactsOf("issuer")}, Log: servicetest.Log(w.t),
		Gather: time.Hour, // what waits for it does not arrive
		Handle: func(ctx context.Context, tx db.Tx, events []*eventv1.Event) error {
			mu.Lock()
			all = append(all, len(events))
			mu.Unlock()
			return event.Each(h)(ctx, tx, events)
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.spawn(c.Run)
	return func() []int { mu.Lock(); defer mu.Unlock(); return slices.Clone(all) }
}

func TestMessagesOfManyAreGathered(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		all := names("r", 9*40)
		for part := range slices.Chunk(all, 40) {
			w.publish(part...)
		}
		sizes := w.gathering(note)
		w.arrives(all...)
		w.eventually("every message is acknowledged", w.idle)
		want := []int{40, 8 * 40}
		if c.Driver == db.SQLite { // each is rehearsed
			want = []int{40, 40, 8 * 40, 8 * 40}
		}
		if got := sizes(); !slices.Equal(got, want) {
			t.Errorf("transactions of %v events", got)
		}
	})
}

func TestFewEventsDoNotWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	w.gathering(note)
	for n := range 3 {
		w.publish(names("r", 31)[n*10 : n*10+10]...)
		w.arrives(names("r", n*10+10)...)
	}
}

func TestGatheredMessagesDoNotHoldUpEachOther(t *testing.T) {
	t.Parallel()
	for what, bad := range map[string]func(*world){
		"never to be handled": func(w *world) { w.publish("poison") },
		"not a batch":         func(w *world) { w.send([]byte("not a batch")) },
	} {
		t.Run(what, func(t *testing.T) {
			servicetest.EachStore(t, func(t *testing.T, c db.Config) {
				w := newWorld(t, c)
				all := names("r", 7*40)
				for part := range slices.Chunk(all, 40) {
					w.publish(part...)
				}
				bad(w)
				w.publish("last")
				w.gathering(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
					if e.GetSubject() == "poison" {
						return fault.New(fault.Permanent, "NEVER", "this will never do")
					}
					return note(ctx, tx, e)
				})
				w.arrives(append(all, "last")...)
				w.eventually("every message is answered", w.idle)
				var skipped int
				w.query(w.to, &skipped, `SELECT count(*) FROM inbox WHERE error <> ''`)
				if skipped != 1 {
					t.Errorf("%d skipped events recorded", skipped)
				}
			})
		})
	}
}
