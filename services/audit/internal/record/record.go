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
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
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

// Of is the record of an event that the service named publisher has published. The error says why e is no event at all: it
// lacks what a record cannot do without.
func Of(publisher string, e *eventv1.Event) (auditlog.Record, error) {
	switch {
	case uuid.Validate(e.GetId()) != nil || len(e.GetId()) != 36:
		return auditlog.Record{}, fmt.Errorf("id %q is not a UUID", shorten(e.GetId(), maxName))
	case e.GetTime().CheckValid() != nil || e.GetTime().AsTime().IsZero():
		return auditlog.Record{}, errors.New("no valid time")
	case strings.Count(e.GetType(), ".") != 2 || len(e.GetType()) > maxName:
		return auditlog.Record{}, fmt.Errorf("type %q is not <service>.<thing>.<what happened>", shorten(e.GetType(), maxName))
	}
	return fit(auditlog.Record{
		Version:   auditlog.RecordVersion,
		ID:        strings.ToLower(e.GetId()),
		Time:      e.GetTime().AsTime(),
		Service:   shorten(publisher, maxName),
		Type:      e.GetType(),
		Actor:     shorten(e.GetActor(), maxThing),
		Subject:   shorten(e.GetSubject(), maxThing),
		Result:    Result(e.GetResult()),
		Reason:    shorten(e.GetReason(), maxText),
		TraceID:   shorten(e.GetTraceId(), maxName),
		RequestID: shorten(e.GetRequestId(), maxName),
		Facts:     shortenAll(e.GetFacts()),
		Detail:    shortenAll(detail(e)),
	}), nil
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
func Unreadable(publisher string, m Message, index int, why error) auditlog.Record {
	sum := sha256.Sum256(m.Data)
	where := fmt.Sprintf("%s/%d/%d/%x", m.Stream, m.Sequence, index, sum)
	facts := map[string]string{
		"stream": m.Stream, "sequence": strconv.FormatUint(m.Sequence, 10), "nats_subject": m.Subject,
		"message_bytes": strconv.Itoa(len(m.Data)), "message_sha256": hex.EncodeToString(sum[:]),
	}
	if index >= 0 {
		facts["event_index"] = strconv.Itoa(index)
	}
	return fit(auditlog.Record{
		Version: auditlog.RecordVersion,
		ID:      uuid.NewSHA1(uuid.NameSpaceOID, []byte(where)).String(),
		Time:    m.Time,
		Service: shorten(publisher, maxName),
		Type:    TypeUnreadable,
		Subject: "messages/" + strconv.FormatUint(m.Sequence, 10),
		Result:  Result(eventv1.Result_RESULT_FAILED),
		Reason:  shorten(why.Error(), maxText),
		Facts:   shortenAll(facts),
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

// fit makes a record that is too large small enough: first the facts go, then the detail. What went is counted and hashed.
func fit(r auditlog.Record) auditlog.Record {
	for _, m := range []*map[string]string{&r.Facts, &r.Detail} {
		if _, err := r.Encode(); err == nil || len(*m) == 0 {
			continue
		}
		*m = map[string]string{"left_out": summary(*m)}
	}
	return r
}

func summary(m map[string]string) string {
	h := sha256.New()
	n := 0
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(m[k]), m[k])
		n += len(k) + len(m[k])
	}
	return fmt.Sprintf("%d facts of %d bytes, SHA-256 %x", len(m), n, h.Sum(nil))
}

func shortenAll(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) { // in order, so that of two names cut to one always the same wins
		out[shorten(k, maxName)] = shorten(m[k], maxText)
	}
	return out
}

// shorten cuts s to about limit bytes and says what is missing; it also makes it UTF-8, which names in certificates need not be.
func shorten(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
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
