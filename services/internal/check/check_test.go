package check_test

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestStuck: what nobody publishes is told, on both databases, and so is a consumer that cannot be asked.
func TestStuck(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d, err := db.Open(t.Context(), c, event.WithSchema(fstest.MapFS{}), "issuer")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		old, young := fact(time.Now().Add(-2*time.Minute)), fact(time.Now())
		err = d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			return errors.Join(event.Emit(ctx, tx, old), event.Emit(ctx, tx, young), event.Observe(ctx, tx, fact(time.Now())))
		})
		if err != nil {
			t.Fatal(err)
		}
		checker, err := check.New(check.Config{DB: d, Now: time.Now, Consumers: []check.Consumer{
			{Name: "deaf", Progress: func(context.Context) (uint64, uint64, error) { return 0, 0, errors.New("away") }},
			{Name: "busy", Progress: func(context.Context) (uint64, uint64, error) { return 3, 7, nil }},
		}})
		if err != nil {
			t.Fatal(err)
		}
		broken, events, consumers := map[string]string{}, map[string]bool{}, 0
		err = checker.Run(t.Context(), true, func(r *typev1.StoreReport) error {
			for _, v := range r.GetViolations() {
				broken[v.GetRule()] += v.GetSubject()
			}
			for _, e := range r.GetEvents() {
				events[e.GetId()] = e.GetPublished()
			}
			consumers += len(r.GetConsumers())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(broken) != 2 || broken["outbox-stuck"] != "events/"+old.GetId() || broken["consumer-lag"] != "consumers/deaf" {
			t.Errorf("broken: %v", broken)
		}
		if published, held := events[young.GetId()]; len(events) != 2 || published || !held || consumers != 1 {
			t.Errorf("events: %v, consumers: %d", events, consumers)
		}
	})
}

func fact(at time.Time) *eventv1.Event {
	return &eventv1.Event{Type: "issuer.test.made", Subject: "tests/1", Time: timestamppb.New(at)}
}
