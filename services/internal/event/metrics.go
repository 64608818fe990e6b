package event

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Monitored is what a service has of events.
type Monitored struct {
	DB    *db.DB
	JS    jetstream.JetStream
	Relay *Relay
	// Consumers gives the subjects of each consumer at JetStream, by its durable name.
	Consumers map[string][]string
}

// Monitor shows how events and the database fare, and checks both and the broker. It refuses consumers of which two would hear the same event.
func Monitor(m *monitor.Service, w Monitored) error {
	if err := apart(w.Consumers); err != nil {
		return err
	}
	m.Check(monitor.Check{
		Name: "database", Fails: "the database does not answer or takes no writes: the log says why", Test: w.DB.Check,
	})
	m.Check(monitor.Check{
		Name: "broker", Fails: "the event broker is not connected, or its JetStream does not answer: events wait in the outbox meanwhile",
		Test: func(ctx context.Context) error {
			if !w.JS.Conn().IsConnected() {
				return errAway
			}
			_, err := w.JS.Stream(ctx, StreamName)
			return err
		},
	})
	if err := m.Register(append(w.DB.Metrics(), w.Relay.published)...); err != nil {
		return err
	}
	if err := m.Survey(boxes(w.DB)); err != nil {
		return err
	}
	for durable, subjects := range w.Consumers {
		if err := m.Survey(lag(w, durable, subjects)); err != nil {
			return err
		}
	}
	return nil
}

// apart refuses consumers whose subjects overlap: their inbox, and what they have postponed, know an event by its id alone, so that it
// would go to one of them.
func apart(consumers map[string][]string) error {
	whose := map[string]string{}
	for name, subjects := range consumers {
		for _, subject := range subjects {
			for other, owner := range whose {
				if owner != name && overlap(subject, other) {
					return fmt.Errorf("consumers %s and %s of one service would share the events of %s and %s", name, owner, subject, other)
				}
			}
			whose[subject] = name
		}
	}
	return nil
}

// overlap is for subjects whose only wildcard is *.
func overlap(a, b string) bool {
	return slices.EqualFunc(strings.Split(a, "."), strings.Split(b, "."), func(a, b string) bool { return a == b || a == "*" || b == "*" })
}

func newPublished() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sallyport_events_published_total", Help: "Events that the broker has stored, by type. Each state change and each denied call is an event.",
	}, []string{"type"})
}

// Numbers of fields: EventBatch.events, Event.type, Event.subject and Event.facts.
const (
	batchEvents  = 1
	typeField    = 3
	subjectField = 4
	factsField   = 10
)

// textOf finds a text in an encoded event without decoding the rest; empty if there is none.
func textOf(payload []byte, field protowire.Number) string {
	for len(payload) > 0 {
		num, kind, n := protowire.ConsumeTag(payload)
		if n < 0 {
			return ""
		}
		payload = payload[n:]
		if num == field && kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(payload)
			return string(v)
		}
		if n = protowire.ConsumeFieldValue(num, kind, payload); n < 0 {
			return ""
		}
		payload = payload[n:]
	}
	return ""
}

// maxCounted bounds how many rows are counted for a metric: beyond it the number says "at least".
const maxCounted = 100_000

var (
	waitingDesc   = prometheus.NewDesc("sallyport_outbox_waiting_events", fmt.Sprintf("Events that wait to be published; %d means that many or more.", maxCounted), nil, nil)
	oldestDesc    = prometheus.NewDesc("sallyport_outbox_oldest_waiting_age_seconds", "Age of the oldest event that waits to be published; 0 when none waits.", nil, nil)
	postponedDesc = prometheus.NewDesc("sallyport_inbox_postponed_events", fmt.Sprintf("Events that failed several times and are tried again until they succeed; %d means that many or more.", maxCounted), nil, nil)
	skippedDesc   = prometheus.NewDesc("sallyport_inbox_skipped_events", "Events that can never be handled and were skipped for ever.", nil, nil)
)

// boxes surveys outbox and inbox.
func boxes(d *db.DB) monitor.Survey {
	return monitor.Survey{Name: "events", Metrics: []*prometheus.Desc{waitingDesc, oldestDesc, postponedDesc, skippedDesc}, Read: func(ctx context.Context, sheet *monitor.Sheet) error {
		var waiting, postponed, skipped int
		var oldest time.Time
		err := d.Read(ctx, func(ctx context.Context, tx db.Tx) error {
			for _, kind := range []string{facts, observations} {
				var n int
				err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM outbox WHERE kind = $1 AND published_at IS NULL LIMIT $2) AS waiting`, kind, maxCounted).Scan(&n)
				if err != nil {
					return err
				}
				waiting += n
				var created int64
				err = tx.QueryRow(ctx, `SELECT created FROM outbox WHERE kind = $1 AND published_at IS NULL ORDER BY id LIMIT 1`, kind).Scan(&created)
				if errors.Is(err, sql.ErrNoRows) {
					continue
				}
				if err != nil {
					return err
				}
				if t := db.Time(created); oldest.IsZero() || t.Before(oldest) {
					oldest = t
				}
			}
			err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM postponed LIMIT $1) AS held`, maxCounted).Scan(&postponed)
			if err != nil {
				return err
			}
			return tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM inbox WHERE error <> '' LIMIT $1) AS skipped`, maxCounted).Scan(&skipped)
		})
		if err != nil {
			return fmt.Errorf("counting events: %w", err)
		}
		sheet.Gauge(waitingDesc, float64(min(waiting, maxCounted)))
		sheet.Gauge(oldestDesc, age(oldest))
		sheet.Gauge(postponedDesc, float64(postponed))
		sheet.Gauge(skippedDesc, float64(skipped))
		return nil
	}}
}

// age is how long ago a moment was, 0 for the zero time.
func age(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(time.Since(t).Seconds(), 0)
}

// lag surveys a consumer at JetStream.
func lag(w Monitored, durable string, subjects []string) monitor.Survey {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("sallyport_consumer_"+name, help, nil, prometheus.Labels{"consumer": durable})
	}
	pending := desc("pending_messages", "Messages at the broker that are not delivered to the consumer yet; replicas share a consumer and show the same number.")
	unacked := desc("unacknowledged_messages", "Messages that are delivered and not acknowledged yet.")
	redelivered := desc("redelivered_messages", "Messages that were delivered more than once and are not acknowledged yet.")
	unhandled := desc("oldest_unhandled_age_seconds", "Age of the oldest message that the consumer has not fully handled; 0 when it has handled all.")
	metrics := []*prometheus.Desc{pending, unacked, redelivered, unhandled}
	return monitor.Survey{Name: "consumer-" + durable, Metrics: metrics, Read: func(ctx context.Context, sheet *monitor.Sheet) error {
		if !w.JS.Conn().IsConnected() {
			return errAway
		}
		consumer, err := w.JS.Consumer(ctx, StreamName, durable)
		if err != nil {
			return fmt.Errorf("looking at consumer %s: %w", durable, err)
		}
		info := consumer.CachedInfo()
		var oldest time.Time
		if info.NumPending > 0 || info.NumAckPending > 0 {
			if oldest, err = unhandledSince(ctx, w.JS, info.AckFloor.Stream+1, subjects); err != nil {
				return fmt.Errorf("looking at what consumer %s has not handled: %w", durable, err)
			}
		}
		postponed, err := postponedSince(ctx, w.DB, durable)
		if err != nil {
			return fmt.Errorf("looking at what consumer %s has postponed: %w", durable, err)
		}
		if oldest.IsZero() || !postponed.IsZero() && postponed.Before(oldest) {
			oldest = postponed
		}
		sheet.Gauge(pending, float64(info.NumPending))
		sheet.Gauge(unacked, float64(info.NumAckPending))
		sheet.Gauge(redelivered, float64(info.NumRedelivered))
		sheet.Gauge(unhandled, age(oldest))
		return nil
	}}
}

// unhandledSince is when the first message from a sequence on was stored. What the acknowledgements of a consumer have not
// passed without a gap begins there.
func unhandledSince(ctx context.Context, js jetstream.JetStream, from uint64, subjects []string) (oldest time.Time, err error) {
	stream, err := js.Stream(ctx, StreamName)
	if err != nil {
		return oldest, err
	}
	for _, subject := range subjects {
		m, err := stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return oldest, err
		}
		if oldest.IsZero() || m.Time.Before(oldest) {
			oldest = m.Time
		}
	}
	return oldest, nil
}
