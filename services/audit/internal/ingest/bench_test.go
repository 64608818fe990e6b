package ingest

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// BenchmarkRecord is log and index together, without NATS; compare with package ledger's BenchmarkAppend.
func BenchmarkRecord(b *testing.B) {
	for _, n := range []int{1, 64, 1024, batchEvents} {
		for name, config := range map[string]func(testing.TB) db.Config{db.SQLite: servicetest.SQLite, db.Postgres: servicetest.Postgres} {
			b.Run(name+"/"+strconv.Itoa(n), func(b *testing.B) {
				p, err := openParts(context.Background(), b, b.TempDir(), config(b))
				if err != nil {
					b.Fatal(err)
				}
				defer closeParts(b, p)
				from := 0
				for b.Loop() {
					b.StopTimer()
					batch := facts(from, n)
					b.StartTimer()
					if err := p.recorder.Record(context.Background(), batch); err != nil {
						b.Fatal(err)
					}
					from += n
				}
				b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}

// BenchmarkIngest is the whole way from JetStream messages of 512 events, as relays make them, to log and index.
func BenchmarkIngest(b *testing.B) {
	const perMessage, messages = 512, 100
	for range b.N {
		b.StopTimer()
		p, err := openParts(context.Background(), b, b.TempDir(), servicetest.SQLite(b))
		if err != nil {
			b.Fatal(err)
		}
		js, err := jetstream.New(servicetest.NATS(b))
		if err != nil {
			b.Fatal(err)
		}
		if err := event.EnsureStreams(context.Background(), js, event.StreamLimits{}); err != nil {
			b.Fatal(err)
		}
		for m := range messages {
			var batch eventv1.EventBatch
			for _, one := range facts(m*perMessage, perMessage) {
				r := one.Head
				batch.Events = append(batch.Events, &eventv1.Event{Id: r.ID, Time: timestamppb.New(r.Time), Type: r.Type, Subject: r.Subject, Actor: r.Actor, Facts: map[string]string{"names": "shop.example"}})
			}
			data, err := proto.Marshal(&batch)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := js.Publish(context.Background(), event.FactsOf("issuer"), data); err != nil {
				b.Fatal(err)
			}
		}
		in, err := New(Config{Recorder: p.recorder, DB: p.db, JS: js, Log: servicetest.Log(b)})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		done := make(chan error, 1)
		b.StartTimer()
		go func() { done <- in.Run(ctx) }()
		if _, err := p.ledger.Await(ctx, messages*perMessage-1); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		closeParts(b, p)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*perMessage*messages/b.Elapsed().Seconds(), "records/s")
}
