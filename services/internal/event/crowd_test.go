package event

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/protobuf/proto"
)

// consumer of the issuer's facts that bears few that fail.
func (w outboxOf) consumer(durable string, handle func(context.Context, db.Tx, *eventv1.Event) error) *Consumer {
	w.t.Helper()
	c, err := NewConsumer(ConsumerConfig{DB: w.db, JS: w.js, Durable: durable, Filter: []string{FactsOf("issuer")}, Log: servicetest.Log(w.t), Handle: Each(handle)})
	if err != nil {
		w.t.Fatal(err)
	}
	c.mostUnanswered, c.mostPostponed = 16, 100
	return c
}

// TestManyFailingDoNotHoldUpOthers: more messages fail than the broker has under way at once.
func TestManyFailingDoNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	w := newOutbox(t, servicetest.SQLite(t))
	for n := range 20 {
		subject := fmt.Sprint("bad-", n)
		if n == 19 {
			subject = "good"
		}
		data, err := proto.Marshal(&eventv1.EventBatch{Events: []*eventv1.Event{{Id: uuid.Must(uuid.NewV7()).String(), Type: "issuer.request.issued", Subject: subject}}})
		if err == nil {
			_, err = w.js.Publish(t.Context(), FactsOf("issuer"), data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var mended atomic.Bool
	consumer := w.consumer("deployer", func(_ context.Context, _ db.Tx, e *eventv1.Event) error {
		if strings.HasPrefix(e.GetSubject(), "bad") && !mended.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := consumer.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	w.eventually("the good one is handled", func() bool { return w.count(`SELECT count(*) FROM inbox`) == 1 })
	mended.Store(true)
	w.eventually("all are", func() bool {
		return w.count(`SELECT count(*) FROM inbox`) == 20 && w.count(`SELECT count(*) FROM postponed`) == 0
	})
}

// TestNoMoreIsPostponed than the bound for one consumer; another has its own.
func TestNoMoreIsPostponed(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		handle := func(context.Context, db.Tx, *eventv1.Event) error { return nil }
		for _, durable := range []string{"one", "other"} {
			consumer := w.consumer(durable, handle)
			for n := range 60 {
				err := consumer.postpone(t.Context(), []failure{
					{&eventv1.Event{Id: fmt.Sprint(durable, n, "a")}, errors.New("no")}, {&eventv1.Event{Id: fmt.Sprint(durable, n, "b")}, errors.New("no")},
				}, time.Now())
				if (err == nil) != (n < 50) {
					t.Errorf("%s, events %d: %v", durable, n, err)
				}
			}
		}
	})
}
