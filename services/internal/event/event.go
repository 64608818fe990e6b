// Package event carries facts between services: from an outbox table, over NATS JetStream, past an inbox table.
//
// It guarantees that there is no committed change without its event and no event without its change; that every event
// reaches every consumer, however long NATS, a service or a disk is away, and also when NATS has lost all it had, within the
// time for which outboxes keep it (35 days); and that a consumer's transaction handles it once. It does not guarantee order: an event's handler must bear an older one
// arriving after a newer one.
package event

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Facts is the kind of those rows of the outbox that become audit records.
const Facts = "facts"

const (
	facts        = Facts
	observations = "observations"
)

// MaxSize bounds one event and one message, in bytes.
const MaxSize = 512 << 10

const (
	outboxTopic = "outbox" // notified when a transaction emitted
	hurryTopic  = "outbox hurry"
)

//go:embed *.sql
var schema embed.FS

// WithSchema adds the tables of this package and of package lease to a service's migrations. The service numbers its own
// from 00100.
func WithSchema(migrations fs.FS) fs.FS { return db.Merge(lease.Schema, schema, migrations) }

// FactsOf is the subject of a service's state changes and denied calls. The service "*" stands for all.
func FactsOf(service string) string { return "sallyport.v1." + service + "." + facts }

// ObservationsOf is the subject of a service's heartbeats and sightings, which are not audited one by one.
func ObservationsOf(service string) string { return "sallyport.v1." + service + "." + observations }

// Emit adds a fact to the transaction's outbox. It fills what is empty: id, time, and from ctx the actor, the trace id and
// the request id. A loop that acts alone carries its service's own identity in ctx. An event larger than MaxSize is refused.
func Emit(ctx context.Context, tx db.Tx, e *eventv1.Event) error { return emit(ctx, tx, facts, e) }

// Observe is Emit for what is seen rather than done.
func Observe(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
	return emit(ctx, tx, observations, e)
}

// Hurry has what the transaction emits, and all that waits, published without lingering: another service goes on when it hears of it.
func Hurry(tx db.Tx) { tx.Notify(hurryTopic) }

func emit(ctx context.Context, tx db.Tx, kind string, e *eventv1.Event) error {
	if strings.Count(e.GetType(), ".") != 2 {
		return fault.New(fault.Internal, "INTERNAL", "event type %q: want <service>.<thing>.<what happened>", e.GetType())
	}
	if err := fill(ctx, e); err != nil {
		return err
	}
	payload, err := encode(e)
	if err != nil {
		return fault.New(fault.Internal, "INTERNAL", "encoding event %s: %w", e.GetType(), err)
	}
	if len(payload) > MaxSize {
		return fault.New(fault.Permanent, "EVENT_TOO_LARGE", "event %s on %s has %d bytes, more than %d", e.GetType(), e.GetSubject(), len(payload), MaxSize)
	}
	tx.Notify(outboxTopic)
	_, err = tx.Exec(ctx, `INSERT INTO outbox (id, created, kind, payload) VALUES ($1, $2, $3, $4)`,
		e.GetId(), db.FromTime(e.GetTime().AsTime()), kind, payload)
	return err
}

// encode is proto.Marshal, which writes maps by reflection: the facts are half of its time, and stand last here.
func encode(e *eventv1.Event) ([]byte, error) {
	facts := e.Facts
	e.Facts = nil
	defer func() { e.Facts = facts }()
	size := proto.Size(e)
	for k, v := range facts {
		size += protowire.SizeTag(factsField) + protowire.SizeBytes(sizeFact(k, v))
	}
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, size), e)
	if err != nil {
		return nil, err
	}
	for k, v := range facts {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("fact %q: %q is not UTF-8", k, v)
		}
		b = protowire.AppendTag(b, factsField, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(sizeFact(k, v)))
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendString(b, k)
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendString(b, v)
	}
	return b, nil
}

// sizeFact is what an entry of the map takes: its key is field 1, its value field 2.
func sizeFact(k, v string) int {
	return protowire.SizeTag(1) + protowire.SizeBytes(len(k)) + protowire.SizeTag(2) + protowire.SizeBytes(len(v))
}

func fill(ctx context.Context, e *eventv1.Event) error {
	if e.GetId() == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return fault.New(fault.Internal, "INTERNAL", "making an event id: %w", err)
		}
		e.Id = id.String()
	}
	if e.GetTime() == nil {
		e.Time = timestamppb.New(time.Now().UTC())
	}
	if e.GetActor() == "" {
		e.Actor = actor(identity.FromContext(ctx))
	}
	if e.GetTraceId() == "" {
		e.TraceId = trace.ID(ctx)
	}
	if at := trace.Of(ctx); e.GetSpanId() == "" && e.GetTraceId() == at.Trace {
		e.SpanId = at.Span
	}
	if e.GetRequestId() == "" {
		e.RequestId = trace.Request(ctx)
	}
	return nil
}

func actor(c identity.Caller) string {
	if c.ID.IsZero() {
		return string(identity.RoleAnonymous)
	}
	return c.ID.String()
}
