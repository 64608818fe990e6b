package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	ackWait    = 10 * time.Second // after which JetStream takes a silent consumer for dead
	stillBusy  = 3 * time.Second  // how often a slow one says that it is not
	prefetch   = 16               // messages
	firstRetry = time.Second      // of an event whose handler failed, doubling
	lastRetry  = time.Minute

	receiveAtOnce = 64 // events in one statement

	crowded    = 32   // events a message, when messages are let gather
	gatherMost = 1024 // events that are let gather
)

// Heartbeat is how often JetStream says that a consumer is still served. Without two of them the consumer asks anew: its leader
// in a cluster may have died, and by itself a request would wait half a minute.
const Heartbeat = 2 * time.Second

// ConsumerConfig is what a Consumer needs.
type ConsumerConfig struct {
	DB *db.DB
	JS jetstream.JetStream
	// Durable names the consumer at JetStream for ever: a new name begins at the first message the stream holds.
	// Letters, digits, - and _. Replicas share one.
	Durable string
	// Filter lists the subjects: FactsOf, ObservationsOf. Two consumers of one service share its inbox, so their filters
	// must not overlap: an event goes to one of them. Monitor refuses it.
	Filter []string
	// Wanted, if set, says by type and subject whether an event is for this consumer at all. One that is not is neither handled
	// nor remembered.
	Wanted func(kind, subject string) bool
	// Handle does what the new events of one message ask for, in the transaction that notes them as received: both or neither. They
	// come without their facts, which are for the audit log: nothing is decided by them, and to read them takes longest.
	// After an error each of them is handled alone: one of kind fault.Permanent skips the event, for ever; any other brings it
	// again, later, and does not hold up others however often.
	Handle func(context.Context, db.Tx, []*eventv1.Event) error
	// Repeatable says that Handle bears an event that was handled before, however long ago: its id is then not remembered.
	Repeatable bool
	// Gather is how long messages are let gather to be handled in one transaction while each has many events; 0 is not at all.
	// What is alone never waits.
	Gather time.Duration
	Log    *slog.Logger
	// Now is the clock by which events grow old, as at the broker; nil is time.Now.
	Now func() time.Time
}

// Each makes a Handle of what is done for one event. What that emits continues the event's trace.
func Each(handle func(context.Context, db.Tx, *eventv1.Event) error) func(context.Context, db.Tx, []*eventv1.Event) error {
	return func(ctx context.Context, tx db.Tx, events []*eventv1.Event) error {
		for _, e := range events {
			if err := handle(trace.With(ctx, trace.Link{Trace: e.GetTraceId(), Span: e.GetSpanId()}), tx, e); err != nil {
				return err
			}
		}
		return nil
	}
}

// Consumer hands every event of its subjects to Handle, once each if they are not repeatable.
type Consumer struct {
	c          ConsumerConfig
	attendance *Attendance
	skipped    atomic.Int64
	postponed  chan struct{} // tells that there is something new to try
	// unanswered messages and postponed events at most.
	mostUnanswered, mostPostponed int
}

// NewConsumer validates c.
func NewConsumer(c ConsumerConfig) (*Consumer, error) {
	if c.DB == nil || c.JS == nil || c.Handle == nil || c.Log == nil || len(c.Filter) == 0 {
		return nil, errors.New("event.NewConsumer: DB, JS, Filter, Handle and Log are required")
	}
	if c.Durable == "" || strings.ContainsAny(c.Durable, " .*>/\\\t\r\n") {
		return nil, fmt.Errorf("event.NewConsumer: bad name %q", c.Durable)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Consumer{c: c, postponed: make(chan struct{}, 1), mostUnanswered: maxUnanswered, mostPostponed: maxPostponed, attendance: &Attendance{DB: c.DB, JS: c.JS, Durable: c.Durable, Log: c.Log, Now: c.Now}}, nil
}

// Run consumes until ctx ends. It waits for a stream that does not exist yet, and goes on after NATS was away. The context
// given to Handle derives from ctx, so ctx carries the service's own identity.
func (c *Consumer) Run(ctx context.Context) error {
	defer c.retrying(ctx)()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		begun := time.Now()
		err := c.consume(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begun) > longPause { // it worked for a while
			pause = firstPause
		}
		c.c.Log.WarnContext(ctx, "events are not being received", "consumer", c.c.Durable, "retry_in", pause, "error", err)
		sleep(ctx, pause/2+rand.N(pause/2))
	}
}

func (c *Consumer) consume(ctx context.Context) error {
	if !c.c.JS.Conn().IsConnected() {
		return errAway
	}
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cons, err := c.attendance.Begin(attempt, jetstream.ConsumerConfig{
		Durable:        c.c.Durable,
		FilterSubjects: c.c.Filter,
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        ackWait,
		MaxDeliver:     -1,
		MaxAckPending:  c.mostUnanswered,
	})
	if err != nil {
		return err
	}
	messages, err := cons.Messages(jetstream.PullMaxMessages(prefetch), jetstream.PullHeartbeat(Heartbeat))
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	defer func() {
		if n := HandBack(ctx, c.c.JS.Conn(), messages); n > 0 {
			c.c.Log.InfoContext(ctx, "events that were fetched and not handled are handed back", "consumer", c.c.Durable, "messages", n)
		}
	}()
	work, cancel := Finishing(ctx, c.c.JS.Conn(), messages)
	defer cancel()
	defer c.attendance.Leave(ctx, cons)
	g, reading := errgroup.WithContext(work)
	g.Go(func() error {
		defer messages.Drain()
		return c.attendance.Run(reading, cons)
	})
	g.Go(func() error {
		var crowd time.Time // when messages of many events were last handled
		for {
			m, err := messages.Next(jetstream.NextContext(work))
			if err != nil {
				return err
			}
			all, events := []jetstream.Msg{m}, count(m.Data())
			if time.Since(crowd) < c.c.Gather {
				all, events, err = c.gather(work, messages, m)
			}
			c.together(work, all)
			if err != nil {
				return err
			}
			if events >= crowded*len(all) {
				crowd = time.Now()
			}
		}
	})
	return g.Wait()
}

// gather waits for more messages, and counts the events of all.
func (c *Consumer) gather(ctx context.Context, messages jetstream.MessagesContext, first jetstream.Msg) (all []jetstream.Msg, events int, err error) {
	waiting, cancel := context.WithTimeout(ctx, c.c.Gather)
	defer cancel()
	for m := first; err == nil; m, err = messages.Next(jetstream.NextContext(waiting)) {
		all, events = append(all, m), events+count(m.Data())
		if events >= gatherMost || len(all) == prefetch/2 {
			return all, events, nil
		}
	}
	if waiting.Err() != nil && ctx.Err() == nil {
		err = nil
	}
	return all, events, err
}

// together handles messages in one transaction, or each alone if that fails.
func (c *Consumer) together(ctx context.Context, all []jetstream.Msg) {
	if len(all) > 1 && c.handleAll(ctx, all) {
		return
	}
	for _, m := range all {
		c.message(ctx, m)
	}
}

func (c *Consumer) handleAll(ctx context.Context, all []jetstream.Msg) bool {
	defer c.keepAlive(all...)()
	var events []*eventv1.Event
	metas := make([]*jetstream.MsgMetadata, len(all))
	for i, m := range all {
		var err error
		if metas[i], err = m.Metadata(); err != nil {
			return false
		}
		more, unnamed, err := decode(m.Data(), c.c.Wanted)
		if err != nil || len(unnamed) > 0 {
			return false
		}
		events = append(events, more...)
	}
	if len(events) > 0 && c.handle(ctx, events) != nil {
		return false
	}
	for i, m := range all {
		if err := c.handled(ctx, m, metas[i]); err != nil {
			c.unanswered(ctx, metas[i], err)
		}
	}
	return true
}

// handled acknowledges a message. An acknowledgement that gets lost brings it again, and the inbox drops its events.
func (c *Consumer) handled(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata) error {
	crash.At(crash.EventHandled)
	err := doubleAck(ctx, m)
	crash.At(crash.EventAcked)
	return err
}

func (c *Consumer) unanswered(ctx context.Context, meta *jetstream.MsgMetadata, err error) {
	if ctx.Err() == nil {
		c.c.Log.WarnContext(ctx, "answering for a message", "consumer", c.c.Durable, "stream_seq", meta.Sequence.Stream, "error", err)
	}
}

// message handles one message and answers for it.
func (c *Consumer) message(ctx context.Context, m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		c.c.Log.ErrorContext(ctx, "message without JetStream metadata", "consumer", c.c.Durable, "error", err)
		return
	}
	done := c.keepAlive(m)
	err = c.batch(ctx, m, meta)
	done()
	switch {
	case err == nil:
		err = c.handled(ctx, m, meta)
	case errors.Is(err, errUndecodable):
		err = m.TermWithReason("undecodable")
	default:
		delay := retryIn(int64(meta.NumDelivered))
		c.c.Log.WarnContext(ctx, "event not handled yet", "consumer", c.c.Durable, "stream_seq", meta.Sequence.Stream, "delivered", meta.NumDelivered, "retry_in", delay, "error", err)
		err = m.NakWithDelay(delay)
	}
	if err != nil {
		c.unanswered(ctx, meta, err)
	}
}

// doubleAck waits until JetStream has taken the acknowledgement, but not for long: of a message that it is about to deliver again, as
// when a replica that begins has taken the consumer back, it takes none.
func doubleAck(ctx context.Context, m jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, stillBusy)
	defer cancel()
	return m.DoubleAck(ctx)
}

// keepAlive tells JetStream that messages are being worked on, until the returned function is called.
func (c *Consumer) keepAlive(all ...jetstream.Msg) func() {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(stillBusy):
				for _, m := range all {
					_ = m.InProgress() // the next one, or a redelivery, makes up for it
				}
			}
		}
	})
	return func() { close(stop); wg.Wait() }
}

var errUndecodable = errors.New("not an EventBatch")

// batch handles all events of a message in one transaction. If one of them fails, each gets its own, so that it holds up
// none of the others.
func (c *Consumer) batch(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata) error {
	events, unnamed, err := decode(m.Data(), c.c.Wanted)
	if err != nil {
		if err := c.skip(ctx, fmt.Sprintf("%s/%d", meta.Stream, meta.Sequence.Stream), err); err != nil {
			return err
		}
		return errUndecodable
	}
	for _, i := range unnamed {
		id := fmt.Sprintf("%s/%d/%d", meta.Stream, meta.Sequence.Stream, i)
		if err := c.skip(ctx, id, errors.New("the event's id is not a UUID")); err != nil {
			return err
		}
	}
	if len(events) == 0 {
		return nil
	}
	err = c.handle(ctx, events)
	if err == nil || ctx.Err() != nil {
		return err
	}
	var failures []failure
	for _, e := range events {
		err := c.handle(ctx, []*eventv1.Event{e})
		if fault.KindOf(err) == fault.Permanent {
			err = c.skip(ctx, e.GetId(), err)
		}
		if err != nil {
			failures = append(failures, failure{e, err})
		}
	}
	switch {
	case len(failures) == 0:
		return nil
	case meta.NumDelivered >= patience && ctx.Err() == nil:
		return c.postpone(ctx, failures, meta.Timestamp)
	}
	return fmt.Errorf("%d events: %s", len(failures), failures)
}

// count gives the number of events in a message, as far as it can be read.
func count(data []byte) (n int) {
	for len(data) > 0 {
		num, kind, size := protowire.ConsumeField(data)
		if size < 0 {
			return n
		}
		if num == batchEvents && kind == protowire.BytesType {
			n++
		}
		data = data[size:]
	}
	return n
}

// decode reads the events of a message that are wanted; all are where nothing says which. unnamed are the places of events that
// have no usable id.
func decode(data []byte, wanted func(kind, subject string) bool) (events []*eventv1.Event, unnamed []int, err error) {
	for i := 0; len(data) > 0; {
		num, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil, nil, protowire.ParseError(n)
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(num, kind, data); n < 0 {
			return nil, nil, protowire.ParseError(n)
		}
		value := data[:n]
		data = data[n:]
		if num != batchEvents || kind != protowire.BytesType {
			continue
		}
		value, _ = protowire.ConsumeBytes(value)
		if wanted == nil || wanted(textOf(value, typeField), textOf(value, subjectField)) {
			e := new(eventv1.Event)
			if err := proto.Unmarshal(without(value, factsField), e); err != nil {
				return nil, nil, err
			}
			if uuid.Validate(e.GetId()) == nil && len(e.GetId()) == 36 {
				events = append(events, e)
			} else {
				unnamed = append(unnamed, i)
			}
		}
		i++
	}
	return events, unnamed, nil
}

// without drops a field of a message. One that cannot be read stays as it is.
func without(message []byte, field protowire.Number) []byte {
	kept := make([]byte, 0, len(message))
	for rest := message; len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return message
		}
		if num != field {
			kept = append(kept, rest[:n]...)
		}
		rest = rest[n:]
	}
	return kept
}

// handle is one transaction, which begins with what is to be done first. A panic in the handler counts as its error: the event comes
// again, and the stack is in the log.
func (c *Consumer) handle(ctx context.Context, events []*eventv1.Event, first ...func(context.Context, db.Tx) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.c.Log.ErrorContext(ctx, "panic while handling an event", "consumer", c.c.Durable, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	begun := time.Now()
	fresh := events
	err = c.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		for _, do := range first {
			if err := do(ctx, tx); err != nil {
				return err
			}
		}
		if !c.c.Repeatable {
			if fresh, err = receive(ctx, tx, events, c.c.Now()); err != nil || len(fresh) == 0 {
				return err
			}
		}
		return c.c.Handle(ctx, tx, fresh)
	})
	if err == nil {
		Consumed(ctx, "process ", begun, fresh)
	}
	return err
}

// Consumed records that events were consumed, together and from then until now, each in its own trace. What was consumed
// stands in the span's name after verb.
func Consumed(ctx context.Context, verb string, begun time.Time, events []*eventv1.Event) {
	recorder := trace.RecorderOf(ctx)
	if recorder == nil {
		return
	}
	for _, e := range events {
		recorder.Record(trace.Span{
			Link: trace.Link{Trace: e.GetTraceId(), Span: trace.NewSpan()}, Parent: e.GetSpanId(), Kind: trace.Consumer,
			Name: verb + e.GetType(), Begun: begun, Ended: time.Now(),
			Attributes: []trace.Attribute{{Key: "sallyport.event", Value: e.GetId()}, {Key: "sallyport.subject", Value: e.GetSubject()}},
		})
	}
}

// skip notes an event that will never be handled, and why.
func (c *Consumer) skip(ctx context.Context, id string, why error) error {
	c.c.Log.ErrorContext(ctx, "event skipped for ever", "consumer", c.c.Durable, "event", id, "skipped_since_start", c.skipped.Add(1), "error", why)
	return c.c.DB.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO inbox (event_id, received, error) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			id, db.FromTime(c.c.Now()), reason(why))
		return err
	})
}

// receive notes events and gives those that are new. Of the others it notes that they have come again: they may once more.
func receive(ctx context.Context, tx db.Tx, events []*eventv1.Event, now time.Time) ([]*eventv1.Event, error) {
	unknown := map[string]bool{}
	for part := range slices.Chunk(events, receiveAtOnce) {
		args := []any{db.FromTime(now)}
		var rows strings.Builder
		for i, e := range part {
			args = append(args, e.GetId())
			fmt.Fprintf(&rows, "%s($%d, $1)", []string{"", ", "}[min(i, 1)], len(args))
		}
		query := `INSERT INTO inbox (event_id, received) VALUES ` + rows.String() + ` ON CONFLICT DO NOTHING RETURNING event_id`
		if err := eachText(ctx, tx, func(id string) { unknown[id] = true }, query, args...); err != nil {
			return nil, err
		}
	}
	var fresh []*eventv1.Event
	var known []string
	for _, e := range events {
		if unknown[e.GetId()] {
			delete(unknown, e.GetId()) // a message may hold it twice
			fresh = append(fresh, e)
		} else {
			known = append(known, e.GetId())
		}
	}
	for part := range slices.Chunk(known, receiveAtOnce) {
		args := []any{db.FromTime(now)}
		if _, err := tx.Exec(ctx, `UPDATE inbox SET received = $1 WHERE event_id IN `+db.In(&args, part), args...); err != nil {
			return nil, err
		}
	}
	return fresh, nil
}

// eachText runs a query that gives one column of text.
func eachText(ctx context.Context, tx db.Tx, do func(string), query string, args ...any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return err
		}
		do(text)
	}
	return rows.Err()
}
