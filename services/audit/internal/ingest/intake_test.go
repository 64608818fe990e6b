package ingest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger/tiles"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func broker(t *testing.T) jetstream.JetStream {
	js, err := jetstream.New(servicetest.NATS(t))
	if err == nil {
		err = event.EnsureStreams(t.Context(), js, event.StreamLimits{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// eventsOf is what a relay would send of the events of these records.
func eventsOf(t *testing.T, of []record.Encoded) []byte {
	var batch eventv1.EventBatch
	for _, one := range of {
		batch.Events = append(batch.Events, &eventv1.Event{Id: one.Head.ID, Time: timestamppb.New(one.Head.Time), Type: one.Head.Type})
	}
	data, err := proto.Marshal(&batch)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestInOrder: the records of several messages are made at once, and stand in the log as the stream had them. Every other message takes
// long, so that the one after it is ready first; some are no events.
func TestInOrder(t *testing.T) {
	const messages = 60
	js := broker(t)
	var want []string // the ids, or the type where it is not an event
	for m := range messages {
		data := []byte("no event")
		if m%7 == 3 {
			want = append(want, record.TypeUnreadable)
		} else {
			events := facts(1000*m, []int{400, 1}[m%2])
			for _, one := range events {
				want = append(want, one.Head.ID)
			}
			data = eventsOf(t, events)
		}
		if _, err := js.Publish(t.Context(), event.FactsOf("issuer"), data); err != nil {
			t.Fatal(err)
		}
	}

	dir := t.TempDir()
	p, err := openParts(t.Context(), t, dir, sqliteIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer closeParts(t, p)
	in, err := New(Config{Recorder: p.recorder, DB: p.db, JS: js, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	in.makers <- &record.Maker{} // two at least, however few processors there are
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	size, err := p.ledger.Await(ctx, uint64(len(want))-1)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err != nil || size != uint64(len(want)) {
		t.Fatalf("%d records instead of %d: %v", size, len(want), err)
	}
	err = p.ledger.Read(t.Context(), 0, size, func(position uint64, data []byte) error {
		one, err := record.Parse(data)
		if got := one.Head.ID; got != want[position] && one.Head.Type != want[position] {
			t.Fatalf("position %d has event %s, not %s", position, got, want[position])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRestIsHandedBack: when the disk fails, what was taken is there for the next start at once, and not when the broker has waited for
// its acknowledgement: what was recorded last, what was gathered, and what has just arrived.
func TestRestIsHandedBack(t *testing.T) {
	const messages = 20
	js := broker(t)
	data := eventsOf(t, facts(0, batchEvents)) // each is a batch of its own
	for range messages {
		if _, err := js.Publish(t.Context(), event.FactsOf("issuer"), data); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	p, err := openParts(t.Context(), t, dir, sqliteIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.ledger.Dir(), tiles.StatePath)); err != nil {
		t.Fatal(err)
	}
	in, err := New(Config{Recorder: p.recorder, DB: p.db, JS: js, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Run(t.Context()); !errors.Is(err, ledger.ErrDisk) {
		t.Fatalf("with a log that is gone: %v", err)
	}
	_ = p.close() // as far as it goes
	// A message that was handed back can be fetched; one that was not is pending still and would come after ackWait.
	consumer, err := js.Consumer(t.Context(), event.StreamName, Durable)
	if err != nil {
		t.Fatal(err)
	}
	got, err := consumer.Fetch(messages, jetstream.FetchMaxWait(ackWait/2))
	if err != nil {
		t.Fatal(err)
	}
	again := map[uint64]bool{}
	for m := range got.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		again[meta.Sequence.Stream] = true
	}
	if len(again) != messages {
		t.Errorf("%d of %d messages were handed back", len(again), messages)
	}
}
