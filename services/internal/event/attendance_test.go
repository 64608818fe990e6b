package event

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// overtaken is a broker behind which something happens as soon as it has told what it knows of a consumer.
type overtaken struct {
	jetstream.JetStream
	then func()
}

type overtakenStream struct {
	jetstream.Stream
	then func()
}

func (o overtaken) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := o.JetStream.Stream(ctx, name)
	return overtakenStream{s, o.then}, err
}

func (o overtakenStream) Consumer(ctx context.Context, name string) (jetstream.Consumer, error) {
	c, err := o.Stream.Consumer(ctx, name)
	o.then()
	return c, err
}

// TestGapOfTwoReplicas: while one begins, the other tells of a gap. It stays told.
func TestGapOfTwoReplicas(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		if err := setMark(t.Context(), w.db, "consumer/deployer", time.Now().Add(-2*keepStream)); err != nil {
			t.Fatal(err)
		}
		begin := func(js jetstream.JetStream) {
			a := &Attendance{DB: w.db, JS: js, Durable: "deployer", Log: servicetest.Log(t), Now: time.Now}
			if _, err := a.Begin(t.Context(), jetstream.ConsumerConfig{Durable: "deployer", FilterSubject: FactsOf("issuer"), AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
				t.Error(err)
			}
		}
		begin(overtaken{w.js, func() { begin(w.js) }})
		s, err := w.js.Stream(t.Context(), StreamName)
		if err != nil {
			t.Fatal(err)
		}
		consumer, err := s.Consumer(t.Context(), "deployer")
		if err != nil {
			t.Fatal(err)
		}
		if consumer.CachedInfo().Config.Metadata[metaGap] == "" {
			t.Error("the gap is not told of any more")
		}
	})
}
