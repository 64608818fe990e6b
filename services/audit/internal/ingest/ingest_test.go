package ingest

import (
	"context"
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
		in, err := New(Config{Recorder: p.recorder, JS: js, Log: servicetest.Log(t)})
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
	if err := p.db.Close(); err != nil {
		t.Fatal(err)
	}
	ingest(p, func() bool { pending, _ := state(); return pending == 1 })
	if _, acked := state(); acked != 0 {
		t.Error("acknowledged though it could not be recorded")
	}
	if err := p.ledger.Close(); err != nil {
		t.Fatal(err)
	}

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
		if _, err := p.store.Add(t.Context(), entries(10, 5)); err != nil {
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

func entries(from, n int) []store.Entry {
	var all []store.Entry
	for i, r := range facts(from, n) {
		all = append(all, store.Entry{Position: uint64(from + i), Record: r.Head})
	}
	return all
}
