package ingest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
)

// maxMakers is how many messages at most have their records made at once: more than the log could keep up with.
const maxMakers = 4

// intake takes messages, has the records of some made at once, and gives them in the order in which they came.
type intake struct {
	arrivals chan *arrival // in that order; closed when there are no more
	end      error         // why there are no more
	usual    int           // how many records a batch has
}

// arrival is a message whose records are made.
type arrival struct {
	jetstream.Msg
	begun   time.Time // when it was taken
	records []record.Encoded
	events  []*eventv1.Event
	err     error
	made    chan struct{} // closed when all that is known
}

// receive takes messages until ctx ends.
func (i *Ingest) receive(ctx context.Context, messages jetstream.MessagesContext) *intake {
	in := &intake{arrivals: make(chan *arrival, maxMakers)}
	go func() {
		var making sync.WaitGroup
		defer func() {
			making.Wait()
			close(in.arrivals)
		}()
		for {
			m, err := messages.Next(jetstream.NextContext(ctx))
			if err != nil {
				in.end = err
				return
			}
			a := &arrival{Msg: m, begun: time.Now(), made: make(chan struct{})}
			in.arrivals <- a
			maker := <-i.makers
			making.Go(func() {
				defer close(a.made)
				a.err = i.read(ctx, a, maker)
				i.makers <- maker
			})
		}
	}()
	return in
}

// gather waits for a message and takes those that come with it. After an error there are no more.
func (in *intake) gather() (b batch, err error) {
	defer func() { in.usual = len(b.records) + len(b.records)/8 }()
	a, more := <-in.arrivals
	if !more {
		return b, in.end
	}
	b = batch{begun: a.begun, records: make([]record.Encoded, 0, in.usual)}
	for more {
		if err := b.add(a); err != nil {
			return b, err
		}
		if len(b.records) >= batchEvents || len(b.messages) >= prefetch {
			break
		}
		select {
		case a, more = <-in.arrivals:
		case <-time.After(linger):
			more = false
		}
	}
	return b, nil
}

// rest are the messages that were not gathered. No more must be coming.
func (in *intake) rest() (all []jetstream.Msg) {
	for a := range in.arrivals {
		all = append(all, a.Msg)
	}
	return all
}

// add adds a message when its records have been made.
func (b *batch) add(a *arrival) error {
	<-a.made
	b.records, b.events = append(b.records, a.records...), append(b.events, a.events...)
	b.messages = append(b.messages, message{a.Msg, len(b.records)})
	return a.err
}

// read makes the records of a message. Whatever is in it gives records.
func (i *Ingest) read(ctx context.Context, a *arrival, maker *record.Maker) error {
	meta, err := a.Metadata()
	if err != nil {
		return fmt.Errorf("message without JetStream metadata: %w", err)
	}
	from := record.Message{Stream: meta.Stream, Sequence: meta.Sequence.Stream, Subject: a.Subject(), Time: meta.Timestamp, Data: a.Data()}
	publisher := publisherOf(a.Subject())
	unreadable := func(index int, why error) error {
		i.c.Log.ErrorContext(ctx, "what was published is not an event: recorded as unreadable", "publisher", publisher, "stream_seq", from.Sequence, "event_index", index, "error", why)
		r, err := maker.Unreadable(publisher, from, index, why)
		a.records = append(a.records, r)
		return err
	}
	if trace.RecorderOf(ctx) == nil {
		var ok bool
		if a.records, ok = maker.Batch(a.records, publisher, string(a.Data())); ok {
			return nil
		}
	}
	var events eventv1.EventBatch
	if err := proto.Unmarshal(a.Data(), &events); err != nil {
		return unreadable(-1, fmt.Errorf("not an EventBatch: %w", err))
	}
	for n, e := range events.GetEvents() {
		r, err := maker.Of(publisher, e)
		if err == nil {
			a.records = append(a.records, r)
			if trace.RecorderOf(ctx) != nil {
				a.events = append(a.events, e)
			}
		} else if err := unreadable(n, err); err != nil {
			return err
		}
	}
	return nil
}

// publisherOf is the service in the subject: who published, by the broker's rules, whatever the event says.
func publisherOf(subject string) string {
	parts := strings.Split(subject, ".")
	if len(parts) < 3 {
		return subject
	}
	return parts[2]
}
