package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

const (
	// Durable is the consumer's name at JetStream, for ever.
	Durable = "audit"

	ackWait     = 10 * time.Second     // how long after a crash what it had taken comes again; too early costs a look at the index
	prefetch    = 64                   // messages, each of at most event.MaxSize
	batchEvents = 4096                 // events recorded together, give or take a message
	linger      = 2 * time.Millisecond // waited for more messages to share a batch
	firstPause  = 100 * time.Millisecond
	longPause   = 10 * time.Second
)

// Config is what ingest needs; all of it is required.
type Config struct {
	Recorder *Recorder
	DB       *db.DB // of the index
	JS       jetstream.JetStream
	Log      *slog.Logger
}

// Ingest consumes the facts of all services.
type Ingest struct {
	c          Config
	makers     chan *record.Maker // those that are idle
	attendance *event.Attendance
}

// New validates c.
func New(c Config) (*Ingest, error) {
	if c.Recorder == nil || c.DB == nil || c.JS == nil || c.Log == nil {
		return nil, errors.New("ingest.New: Recorder, DB, JS and Log are required")
	}
	i := &Ingest{c: c, makers: make(chan *record.Maker, maxMakers), attendance: &event.Attendance{DB: c.DB, JS: c.JS, Durable: Durable, Log: c.Log, Now: time.Now}}
	for range min(runtime.GOMAXPROCS(0), maxMakers) {
		i.makers <- &record.Maker{}
	}
	return i, nil
}

// Run records facts until ctx ends. It waits for a stream that does not exist yet, and goes on after NATS or the database was
// away or the disk full: nothing is acknowledged meanwhile. A disk that does not work ends it.
func (i *Ingest) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := i.consume(ctx)
		if ctx.Err() != nil {
			break
		}
		if untrusted(err) {
			return err
		}
		i.c.Log.WarnContext(ctx, "facts are not being received", "error", err)
		sleep(ctx, time.Second+rand.N(time.Second))
	}
	return nil
}

func (i *Ingest) consume(ctx context.Context) error {
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	consumer, err := i.attendance.Begin(attempt, jetstream.ConsumerConfig{
		Durable:       Durable,
		Description:   "everything that is audited",
		FilterSubject: event.FactsOf("*"),
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: 4 * prefetch,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(prefetch), jetstream.PullHeartbeat(event.Heartbeat))
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	work, cancel := event.Finishing(ctx, i.c.JS.Conn(), messages)
	defer cancel()
	defer i.attendance.Leave(ctx, consumer)
	g, reading := errgroup.WithContext(work)
	in := i.receive(reading, messages)
	var left, unrecorded []jetstream.Msg // when this ends: of what was not handed over, and of what was
	defer func() {
		left = append(left, in.rest()...)
		if n := event.HandBack(ctx, i.c.JS.Conn(), messages, append(left, unrecorded...)...); n > 0 {
			i.c.Log.InfoContext(ctx, "facts that were fetched and not recorded are handed back", "messages", n)
		}
	}()
	// One batch is gathered while the one before it is recorded, which mostly waits for the disk.
	ready := make(chan batch)
	g.Go(func() error { return i.attendance.Run(reading, consumer) })
	g.Go(func() error {
		defer close(ready)
		for {
			b, err := in.gather()
			if err == nil {
				select {
				case ready <- b:
					continue
				case <-reading.Done():
					err = reading.Err()
				}
			}
			left = b.unanswered()
			return err
		}
	})
	g.Go(func() (err error) {
		unrecorded, err = i.recordAll(work, ready)
		return err
	})
	return g.Wait()
}

// recordAll records batches until there are no more. While one is on its way to the disk, the next sets out. It gives the messages
// of what was not recorded.
func (i *Ingest) recordAll(ctx context.Context, ready <-chan batch) (left []jetstream.Msg, err error) {
	var under, rest batch // on its way; what waits for company
	defer func() {
		if under.flight != nil { // none may be on its way when this returns
			_ = i.c.Recorder.Finish(ctx, under.flight)
		}
		left = append(append(left, under.unanswered()...), rest.unanswered()...)
	}()
	for ready != nil || under.flight != nil {
		var now batch
		select {
		case b, more := <-ready:
			if more {
				now, rest = join(rest, b).cut(i.c.Recorder.End(), under.flight != nil)
			} else {
				ready, now, rest = nil, rest, batch{}
			}
		case <-under.done():
			if now, rest = rest, (batch{}); now.empty() {
				if err := i.finish(ctx, &under); err != nil {
					return left, err
				}
			}
		}
		if now.empty() {
			continue
		}
		before := under
		under = now
		if before.flight != nil && i.c.Recorder.Landed(before.flight) {
			if err := i.finish(ctx, &before); err != nil {
				return before.unanswered(), err
			}
		}
		var failed error
		under.flight, failed = i.c.Recorder.Begin(ctx, under.records)
		if err := i.finish(ctx, &before); err != nil {
			return before.unanswered(), err
		}
		if failed != nil {
			if err := i.record(ctx, &under, failed); err != nil {
				return left, err
			}
		}
	}
	return left, nil
}

// batch is what is recorded together.
type batch struct {
	messages []message
	records  []record.Encoded
	events   []*eventv1.Event // for their traces; none where no spans are recorded
	begun    time.Time
	flight   *Flight // of the records, once it has begun
}

// message is one that was taken.
type message struct {
	jetstream.Msg
	end int // how many records of its batch come before its own end
}

func (b *batch) empty() bool { return len(b.messages) == 0 && len(b.records) == 0 }

func (b *batch) unanswered() []jetstream.Msg {
	var all []jetstream.Msg
	for _, m := range b.messages {
		all = append(all, m.Msg)
	}
	return all
}

func (b *batch) done() <-chan struct{} {
	if b.flight == nil {
		return nil
	}
	return b.flight.Done()
}

// join puts two batches together.
func join(a, b batch) batch {
	if a.empty() {
		return b
	}
	for _, m := range b.messages {
		m.end += len(a.records)
		a.messages = append(a.messages, m)
	}
	a.records, a.events = append(a.records, b.records...), append(a.events, b.events...)
	return a
}

// cut cuts a batch whose records are to stand from position end on, so that what is recorded now ends with a whole batch of the
// log's. The rest waits until more has come or nothing is under way any more, whichever is first.
func (b batch) cut(end uint64, underWay bool) (now, rest batch) {
	if !underWay && len(b.records) < 2*ledger.BatchSize {
		return b, batch{}
	}
	whole := len(b.records) - int((end+uint64(len(b.records)))%ledger.BatchSize)
	if whole <= 0 {
		return batch{}, b
	}
	if whole == len(b.records) {
		return b, batch{}
	}
	n := 0
	for n < len(b.messages) && b.messages[n].end <= whole {
		n++
	}
	rest = batch{messages: slices.Clone(b.messages[n:]), records: b.records[whole:], events: b.events, begun: b.begun}
	for k := range rest.messages {
		rest.messages[k].end -= whole
	}
	return batch{messages: b.messages[:n], records: b.records[:whole:whole], begun: b.begun}, rest
}

// finish waits until a batch is recorded, if one is on its way, and acknowledges it.
func (i *Ingest) finish(ctx context.Context, b *batch) error {
	if b.flight == nil {
		return nil
	}
	err := i.c.Recorder.Finish(ctx, b.flight)
	b.flight = nil
	if err != nil {
		return i.record(ctx, b, err)
	}
	i.acknowledge(ctx, b)
	return nil
}

// record records a batch after a first attempt, of which err says what became, as often as it takes, and acknowledges it.
func (i *Ingest) record(ctx context.Context, b *batch, err error) error {
	for failures := 0; err != nil; failures++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if untrusted(err) {
			return err
		}
		if !errors.Is(err, errAgain) {
			pause := min(firstPause<<min(failures, 10), longPause)
			i.c.Log.ErrorContext(ctx, "facts cannot be recorded: they wait at JetStream", "events", len(b.records), "attempt", failures+1, "retry_in", pause, "error", err)
			sleep(ctx, pause/2+rand.N(pause/2))
		}
		err = i.c.Recorder.Record(ctx, b.records)
	}
	i.acknowledge(ctx, b)
	return nil
}

// acknowledge acknowledges the messages of a batch that was recorded, after which it is empty.
func (i *Ingest) acknowledge(ctx context.Context, b *batch) {
	crash.At(crash.Indexed)
	event.Consumed(ctx, "record ", b.begun, b.events)
	for _, m := range b.messages {
		// An acknowledgement that gets lost brings the message again, and the index knows its events.
		if err := m.Ack(); err != nil {
			i.c.Log.WarnContext(ctx, "acknowledging facts", "error", err)
		}
	}
	crash.At(crash.Acked)
	*b = batch{}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
