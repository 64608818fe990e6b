package record

import (
	"math"
	"runtime"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
)

// The fields of an Event, and of what it is made of.
const (
	fieldEvent     = 1 // of EventBatch
	fieldID        = 1
	fieldTime      = 2
	fieldType      = 3
	fieldSubject   = 4
	fieldActor     = 5
	fieldReason    = 6
	fieldResult    = 7
	fieldTraceID   = 8
	fieldRequestID = 9
	fieldFact      = 10
	fieldSpanID    = 11
	fieldPayload   = 20 // and those after it
	fieldIssued    = 20
	lastPayload    = 30
)

// yieldEach is after how many records the processor is offered to others: a message can have thousands, and the log, which comes back from the
// disk between two of its files, would otherwise wait for its turn until all are made.
const yieldEach = 16

// The fields of a RequestIssued.
const (
	issuedRequest   = 1
	issuedIdentity  = 2
	issuedProfile   = 3
	issuedAuthority = 4
	issuedChain     = 5
	issuedReplaces  = 6
)

// Batch appends to all what Of gives for each of the events in an encoded EventBatch, in a fraction of the time: it makes no Event,
// and the texts are parts of data. It does so for what services send; false means that there is something in it that they do not
// send, and the whole batch has to be read the general way.
func (m *Maker) Batch(all []Encoded, publisher, data string) ([]Encoded, bool) {
	before := len(all)
	for w := (wire{data}); w.rest != ""; {
		field, event, ok := w.bytes()
		if !ok || field != fieldEvent {
			return all[:before], false
		}
		one, ok := m.event(publisher, event)
		if !ok {
			return all[:before], false
		}
		all = append(all, one)
		if len(all)%yieldEach == 0 {
			runtime.Gosched()
		}
	}
	return all, true
}

// event reads one. Each field is there once at most, so that there is nothing to merge.
func (m *Maker) event(publisher, data string) (Encoded, bool) {
	var f fields
	var payload, message string // with its tag and length, and without
	var kind uint64
	var seen uint32
	m.facts, m.detail = m.facts[:0], m.detail[:0]
	texts := [...]*string{fieldID: &f.id, fieldType: &f.kind, fieldSubject: &f.subject, fieldActor: &f.actor, fieldReason: &f.reason, fieldTraceID: &f.trace, fieldRequestID: &f.request, fieldSpanID: new(string)}
	for w := (wire{data}); w.rest != ""; {
		before := w.rest
		field, value, ok := w.value()
		switch {
		case !ok || field > lastPayload || field != fieldFact && seen&(1<<field) != 0:
			return Encoded{}, false
		case field == fieldTime && value.text:
			ok = f.time(value.bytes)
		case field == fieldResult && !value.text:
			f.result, ok = eventv1.Result(value.number), value.number <= math.MaxInt32
		case field == fieldFact && value.text:
			ok = m.fact(value.bytes)
		case field >= fieldPayload && value.text && payload == "":
			kind, message, payload = field, value.bytes, before[:len(before)-len(w.rest)]
		case field < uint64(len(texts)) && texts[field] != nil && value.text:
			*texts[field], ok = value.bytes, utf8.ValidString(value.bytes)
		default:
			ok = false
		}
		if !ok {
			return Encoded{}, false
		}
		seen |= 1 << field
	}
	if payload != "" && (kind != fieldIssued || !m.issued(message)) {
		var e eventv1.Event // with nothing but its payload
		if proto.Unmarshal([]byte(payload), &e) != nil {
			return Encoded{}, false
		}
		m.detail.setDetail(&e, &m.certificates)
	}
	one, err := m.make(publisher, f)
	return one, err == nil
}

// issued reads a RequestIssued, the payload that comes most: its certificates are most of what a message holds.
func (m *Maker) issued(data string) bool {
	p := issued{chain: m.chain[:0]}
	texts := [...]*string{issuedRequest: &p.request, issuedIdentity: &p.identity, issuedProfile: &p.profile, issuedAuthority: &p.authority, issuedReplaces: &p.replaces}
	for w := (wire{data}); w.rest != ""; {
		field, text, ok := w.bytes()
		switch {
		case !ok || field >= uint64(len(texts)):
			return false
		case field == issuedChain:
			p.chain = append(p.chain, text)
		case *texts[field] != "" || !utf8.ValidString(text):
			return false
		default:
			*texts[field] = text
		}
	}
	m.detail.setIssued(p, &m.certificates)
	clear(p.chain) // which would hold the whole message
	m.chain = p.chain
	return true
}

// time reads a Timestamp.
func (f *fields) time(data string) bool {
	var parts [3]uint64
	for w := (wire{data}); w.rest != ""; {
		field, value, ok := w.value()
		if !ok || value.text || field >= uint64(len(parts)) || parts[field] != 0 {
			return false
		}
		parts[field] = value.number
	}
	f.at = &timestamppb.Timestamp{Seconds: int64(parts[1]), Nanos: int32(min(parts[2], math.MaxInt32))}
	return true
}

// fact reads one entry of the map, name and value.
func (m *Maker) fact(data string) bool {
	var parts [3]string
	for w := (wire{data}); w.rest != ""; {
		field, text, ok := w.bytes()
		if !ok || field >= uint64(len(parts)) || parts[field] != "" || !utf8.ValidString(text) {
			return false
		}
		parts[field] = text
	}
	m.facts = append(m.facts, auditlog.Member{Name: parts[1], Value: shorten(parts[2], maxText)})
	return len(parts[1]) <= maxName
}

// wire reads the encoding of protocol buffers, as far as events need it: numbers, and what has a length.
type wire struct{ rest string }

// value is either.
type value struct {
	text   bool // it has a length
	number uint64
	bytes  string
}

// value reads one field.
func (w *wire) value() (field uint64, v value, ok bool) {
	tag, ok := w.varint()
	if !ok || tag>>3 == 0 || tag>>3 > lastPayload {
		return 0, v, false
	}
	number, ok := w.varint()
	switch {
	case !ok:
	case tag&7 == 0:
		v.number = number
	case tag&7 == 2 && number <= uint64(len(w.rest)):
		v.text = true
		v.bytes, w.rest = w.rest[:number], w.rest[number:]
	default:
		ok = false
	}
	return tag >> 3, v, ok
}

// bytes reads one field that has a length.
func (w *wire) bytes() (field uint64, text string, ok bool) {
	field, v, ok := w.value()
	return field, v.bytes, ok && v.text
}

// varint reads a number of the shortest form.
func (w *wire) varint() (n uint64, ok bool) {
	for i := range min(len(w.rest), 10) {
		c := w.rest[i]
		if i == 9 && c > 1 {
			return 0, false
		}
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			w.rest = w.rest[i+1:]
			return n, c != 0 || i == 0
		}
	}
	return 0, false
}
