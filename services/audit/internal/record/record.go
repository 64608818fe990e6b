// Package record makes audit records of events.
//
// It guarantees that the same event, published by the same service, always gives the same bytes; that every event gives a
// record, however large or strange it is; that of payloads only the fields named here are taken, so that a field added to a
// payload does not reach the log, which nobody can erase, before somebody decided that it is public.
// The format itself is auditlog.Record; its golden bytes are held by the tests here.
package record

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Bounds of one text, in bytes. What is longer is cut, and says so. Even if every byte takes six, as control characters do, a
// record without facts and detail is smaller than auditlog.MaxRecord.
const (
	maxText  = 4 << 10 // facts, reasons
	maxThing = 1 << 10 // actors, subjects
	maxName  = 256
)

// TypeUnreadable is the type of the record that stands for an event, or a whole message, that could not be understood.
const TypeUnreadable = "audit.event.unreadable"

// Encoded is a record as it goes into the log.
type Encoded struct {
	ID   uuid.UUID       // of the event
	Head auditlog.Record // without Facts and Detail
	Data []byte          // the whole, canonical
}

// Parse reads a record of the log.
func Parse(data []byte) (Encoded, error) {
	head, err := auditlog.ParseRecord(data)
	if err != nil {
		return Encoded{}, err
	}
	id, err := uuid.Parse(head.ID)
	if err != nil {
		return Encoded{}, fmt.Errorf("id %q is not a UUID", head.ID)
	}
	head.Facts, head.Detail = nil, nil
	return Encoded{id, head, data}, nil
}

// Records are made in memory of this size, until less than chunkLow of it is left.
const (
	chunk    = 256 << 10
	chunkLow = 4 << 10
)

// Maker makes records; it keeps the memory it needed for the last one, so its methods must not be called concurrently.
type Maker struct {
	facts, detail members
	certificates  certificates
	chain         []string // of a certificate
	spare         []byte   // memory for the next records
}

// Of is the record of an event that the service named publisher has published. The error says why e is no event at all: it
// lacks what a record cannot do without.
func (m *Maker) Of(publisher string, e *eventv1.Event) (Encoded, error) {
	m.facts, m.detail = m.facts[:0], m.detail[:0]
	m.facts.setAll(e.GetFacts())
	m.detail.setDetail(e, &m.certificates)
	return m.make(publisher, fields{
		id: e.GetId(), at: e.GetTime(), kind: e.GetType(), subject: e.GetSubject(), actor: e.GetActor(), reason: e.GetReason(),
		result: e.GetResult(), trace: e.GetTraceId(), request: e.GetRequestId(),
	})
}

// fields are those of an event but for facts and payload.
type fields struct {
	id, kind, subject, actor, reason, trace, request string
	at                                               *timestamppb.Timestamp
	result                                           eventv1.Result
}

// make makes the record of an event whose facts and detail have been set.
func (m *Maker) make(publisher string, f fields) (Encoded, error) {
	id, err := uuid.Parse(f.id)
	switch {
	case err != nil || len(f.id) != 36:
		return Encoded{}, fmt.Errorf("id %q is not a UUID", shorten(f.id, maxName))
	case f.at.CheckValid() != nil || f.at.AsTime().IsZero():
		return Encoded{}, errors.New("no valid time")
	case strings.Count(f.kind, ".") != 2 || len(f.kind) > maxName:
		return Encoded{}, fmt.Errorf("type %q is not <service>.<thing>.<what happened>", shorten(f.kind, maxName))
	}
	return m.fit(id, auditlog.Record{
		Version:   auditlog.RecordVersion,
		ID:        id.String(),
		Time:      f.at.AsTime(),
		Service:   shorten(publisher, maxName),
		Type:      f.kind,
		Actor:     shorten(f.actor, maxThing),
		Subject:   shorten(f.subject, maxThing),
		Result:    Result(f.result),
		Reason:    shorten(f.reason, maxText),
		TraceID:   shorten(f.trace, maxName),
		RequestID: shorten(f.request, maxName),
	})
}

// Message is where an event came from.
type Message struct {
	Stream   string
	Sequence uint64
	Subject  string
	Time     time.Time // when the stream stored it
	Data     []byte
}

// Unreadable is the record of something published that is no event: nothing that was published goes unrecorded. index is the
// event's place in the message, -1 for the whole message. The record's id follows from where it stands in the stream.
func (m *Maker) Unreadable(publisher string, from Message, index int, why error) (Encoded, error) {
	sum := sha256.Sum256(from.Data)
	where := fmt.Sprintf("%s/%d/%d/%x", from.Stream, from.Sequence, index, sum)
	facts := map[string]string{
		"stream": from.Stream, "sequence": strconv.FormatUint(from.Sequence, 10), "nats_subject": from.Subject,
		"message_bytes": strconv.Itoa(len(from.Data)), "message_sha256": hex.EncodeToString(sum[:]),
	}
	if index >= 0 {
		facts["event_index"] = strconv.Itoa(index)
	}
	m.facts, m.detail = m.facts[:0], m.detail[:0]
	m.facts.setAll(facts)
	id := uuid.NewSHA1(uuid.NameSpaceOID, []byte(where))
	return m.fit(id, auditlog.Record{
		Version: auditlog.RecordVersion,
		ID:      id.String(),
		Time:    from.Time,
		Service: shorten(publisher, maxName),
		Type:    TypeUnreadable,
		Subject: "messages/" + strconv.FormatUint(from.Sequence, 10),
		Result:  Result(eventv1.Result_RESULT_FAILED),
		Reason:  shorten(why.Error(), maxText),
	})
}

// Result is a result as records write it.
func Result(r eventv1.Result) string {
	switch r {
	case eventv1.Result_RESULT_UNSPECIFIED:
		return ""
	case eventv1.Result_RESULT_SUCCEEDED:
		return "succeeded"
	case eventv1.Result_RESULT_REFUSED:
		return "refused"
	case eventv1.Result_RESULT_FAILED:
		return "failed"
	}
	return "result " + strconv.Itoa(int(r)) // of a newer service
}

// fit encodes a record. If it is too large, first the facts go, then the detail. What went is counted and hashed.
func (m *Maker) fit(id uuid.UUID, head auditlog.Record) (Encoded, error) {
	if cap(m.spare) < chunkLow {
		m.spare = make([]byte, 0, chunk)
	}
	data, err := head.Append(m.spare, m.facts, m.detail)
	for _, all := range []*members{&m.facts, &m.detail} {
		if err == nil || len(*all) == 0 {
			continue
		}
		*all = members{{Name: "left_out", Value: all.summary()}}
		data, err = head.Append(m.spare, m.facts, m.detail)
	}
	if err != nil {
		return Encoded{}, err
	}
	if len(data) <= cap(m.spare) { // else it went into memory of its own
		m.spare = m.spare[len(data):len(data):cap(m.spare)]
	}
	return Encoded{id, head, data[:len(data):len(data)]}, nil
}

// members are facts or detail; empty values can be left out by set.
type members []auditlog.Member

func (f *members) set(name, value string) {
	if value != "" {
		*f = append(*f, auditlog.Member{Name: name, Value: shorten(value, maxText)})
	}
}

// setAll adds facts that a service gave, with names and values cut.
func (f *members) setAll(facts map[string]string) {
	whole := true
	for name, value := range facts {
		whole = whole && len(name) <= maxName && utf8.ValidString(name)
		*f = append(*f, auditlog.Member{Name: name, Value: shorten(value, maxText)})
	}
	if whole {
		return
	}
	f.sort() // so that of two names cut to one always the same wins
	unique := make(map[string]string, len(*f))
	for _, one := range *f {
		unique[shorten(one.Name, maxName)] = one.Value
	}
	*f = (*f)[:0]
	for name, value := range unique {
		*f = append(*f, auditlog.Member{Name: name, Value: value})
	}
}

func (f members) sort() {
	slices.SortFunc(f, func(x, y auditlog.Member) int { return strings.Compare(x.Name, y.Name) })
}

func (f members) summary() string {
	f.sort()
	h := sha256.New()
	n := 0
	for _, one := range f {
		fmt.Fprintf(h, "%d:%s%d:%s", len(one.Name), one.Name, len(one.Value), one.Value)
		n += len(one.Name) + len(one.Value)
	}
	return fmt.Sprintf("%d facts of %d bytes, SHA-256 %x", len(f), n, h.Sum(nil))
}

// shorten cuts s to about limit bytes and says what is missing; it also makes it UTF-8, which names in certificates need not be.
func shorten(s string, limit int) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if len(s) <= limit {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	cut := limit
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return fmt.Sprintf("%s... (%d bytes, SHA-256 %x)", s[:cut], len(s), sum)
}
