// Package check examines a service's own store for an operator: rules that no row may break, the events that the outbox holds,
// and how far the service has come in what others tell it.
//
// It guarantees that it changes nothing and holds no transaction open while the operator's program is slow. A rule sees one
// state of the store, but two rules may see two: what is found while the service works may be over a moment later, so whoever
// asks looks again before he believes it.
package check

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	perRule = 100  // violations told of one rule
	perPart = 1000 // events in one message
	patient = time.Minute
	asking  = 5 * time.Second // JetStream
)

// Rule is something that holds for every row of a store.
type Rule struct {
	// Name is how docs/doctor.md lists it.
	Name string
	// Broken finds up to limit rows that break it.
	Broken func(ctx context.Context, tx db.Tx, now time.Time, limit int) ([]Violation, error)
	// Full is set for a rule that reads whole rows or files: it is looked at only when that is asked for.
	Full bool
}

// Violation is one row that breaks a rule.
type Violation struct{ Subject, Message string }

// SQL is a Broken that is a query of two columns, subject and message. Each of ages becomes a parameter: the time that long ago.
func SQL(query string, ages ...time.Duration) func(context.Context, db.Tx, time.Time, int) ([]Violation, error) {
	return func(ctx context.Context, tx db.Tx, now time.Time, limit int) ([]Violation, error) {
		var args []any
		for _, age := range ages {
			args = append(args, db.FromTime(now.Add(-age)))
		}
		args = append(args, limit)
		rows, err := tx.Query(ctx, fmt.Sprintf("%s LIMIT $%d", query, len(args)), args...)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var all []Violation
		for rows.Next() {
			var v Violation
			if err := rows.Scan(&v.Subject, &v.Message); err != nil {
				return nil, err
			}
			all = append(all, v)
		}
		return all, rows.Err()
	}
}

// Consumer tells how far something has come that works through what comes in.
type Consumer struct {
	Name string
	// Progress gives how much waits, and a number that grows with what is finished.
	Progress func(context.Context) (waiting, finished uint64, err error)
}

// Config is what a Checker needs.
type Config struct {
	DB *db.DB
	// Rules of this service's own tables; those of the outbox, the inbox and the leases are added.
	Rules     []Rule
	Consumers []Consumer
	Now       func() time.Time
}

// Checker examines one store.
type Checker struct{ c Config }

// New validates c.
func New(c Config) (*Checker, error) {
	if c.DB == nil || c.Now == nil {
		return nil, errors.New("check.New: DB and Now are required")
	}
	c.Rules = append(append([]Rule{}, c.Rules...), common...)
	return &Checker{c: c}, nil
}

// JetStream is the progress of a durable consumer of the services' stream.
func JetStream(js jetstream.JetStream, durable string) Consumer {
	return Consumer{Name: durable, Progress: func(ctx context.Context) (uint64, uint64, error) {
		ctx, cancel := context.WithTimeout(ctx, asking)
		defer cancel()
		cons, err := js.Consumer(ctx, event.StreamName, durable)
		if err != nil {
			return 0, 0, err
		}
		info := cons.CachedInfo()
		return info.NumPending + uint64(max(info.NumAckPending, 0)), info.AckFloor.Stream, nil
	}}
}

// common are the rules of the tables that every service has.
var common = []Rule{
	{Name: "outbox-stuck", Broken: SQL(`SELECT 'events/' || id, 'was committed more than a minute ago and is not published' FROM outbox
		WHERE published_at IS NULL AND created < $1 ORDER BY id`, patient)},
	{Name: "event-skipped", Broken: SQL(`SELECT 'events/' || event_id, 'was received and could not be used: ' || error FROM inbox
		WHERE error <> '' ORDER BY received`)},
	{Name: "event-postponed", Broken: SQL(`SELECT 'events/' || event_id, 'fails again and again at consumer ' || consumer || ': ' || error FROM postponed
		ORDER BY since`)},
	{Name: "lease", Broken: SQL(`SELECT 'leases/' || name, 'has the fencing number ' || CAST(fence AS TEXT) || ' and lasts ' || CAST(ttl AS TEXT) || ' microseconds'
		FROM lease WHERE fence < 1 OR ttl < 1 OR beat < 0 ORDER BY name`)},
	{Name: "event-readable", Full: true, Broken: unreadable},
}

// unreadable finds events in the outbox that are not what their row says.
func unreadable(ctx context.Context, tx db.Tx, _ time.Time, limit int) ([]Violation, error) {
	rows, err := tx.Query(ctx, `SELECT id, payload FROM outbox ORDER BY id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Violation
	for rows.Next() && len(all) < limit {
		var id string
		var payload []byte
		if err := rows.Scan(&id, &payload); err != nil {
			return nil, err
		}
		var e eventv1.Event
		switch err := proto.Unmarshal(payload, &e); {
		case err != nil:
			all = append(all, Violation{"events/" + id, "cannot be decoded: " + err.Error()})
		case e.GetId() != id:
			all = append(all, Violation{"events/" + id, "calls itself " + e.GetId()})
		}
	}
	return all, rows.Err()
}

// Run sends what it finds, in parts.
func (c *Checker) Run(ctx context.Context, full bool, send func(*typev1.StoreReport) error) error {
	report, err := c.examine(ctx, full)
	if err != nil {
		return err
	}
	for _, consumer := range c.c.Consumers {
		waiting, finished, err := consumer.Progress(ctx)
		if err != nil {
			report.Violations = append(report.Violations, &typev1.Violation{
				Rule: "consumer-lag", Subject: "consumers/" + consumer.Name, Message: "cannot be asked how far it is: " + err.Error()})
			continue
		}
		report.Consumers = append(report.Consumers, &typev1.EventConsumer{Name: consumer.Name, Waiting: waiting, Finished: finished})
	}
	if err := send(report); err != nil {
		return err
	}
	return c.events(ctx, send)
}

func (c *Checker) examine(ctx context.Context, full bool) (*typev1.StoreReport, error) {
	report := &typev1.StoreReport{}
	found := func(rule, subject, message string) {
		report.Violations = append(report.Violations, &typev1.Violation{Rule: rule, Subject: subject, Message: message})
	}
	for _, rule := range c.c.Rules {
		if rule.Full && !full {
			continue
		}
		report.Rules = append(report.Rules, rule.Name)
		var broken []Violation
		err := c.c.DB.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
			broken, err = rule.Broken(ctx, tx, c.c.Now(), perRule)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("checking %s: %w", rule.Name, err)
		}
		for _, v := range broken {
			found(rule.Name, v.Subject, v.Message)
		}
	}
	if !full {
		return report, nil
	}
	damage, err := c.c.DB.Damage(ctx)
	if err != nil {
		return nil, fmt.Errorf("checking the database's own files: %w", err)
	}
	report.Rules = append(report.Rules, "database")
	for _, d := range damage {
		found("database", "databases/"+c.c.DB.Name(), d)
	}
	return report, nil
}

// events sends the facts that the outbox holds, page by page: one that is committed meanwhile may or may not be among them.
func (c *Checker) events(ctx context.Context, send func(*typev1.StoreReport) error) error {
	for after := ""; ; {
		var part []*typev1.HeldEvent
		err := c.c.DB.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
			part, err = held(ctx, tx, after)
			return err
		})
		if err != nil {
			return fmt.Errorf("reading the outbox: %w", err)
		}
		if len(part) == 0 {
			return nil
		}
		if err := send(&typev1.StoreReport{Events: part}); err != nil {
			return err
		}
		after = part[len(part)-1].GetId()
	}
}

func held(ctx context.Context, tx db.Tx, after string) ([]*typev1.HeldEvent, error) {
	rows, err := tx.Query(ctx, `SELECT id, created, published_at IS NOT NULL FROM outbox WHERE id > $1 AND kind = $2 ORDER BY id LIMIT $3`, after, event.Facts, perPart)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var part []*typev1.HeldEvent
	for rows.Next() {
		var created int64
		e := &typev1.HeldEvent{}
		if err := rows.Scan(&e.Id, &created, &e.Published); err != nil {
			return nil, err
		}
		e.Time = timestamppb.New(db.Time(created))
		part = append(part, e)
	}
	return part, rows.Err()
}
