package auditlog

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

const (
	// RecordVersion is the version of the format that Record.Encode writes.
	RecordVersion = 1
	// MaxRecord is the most bytes one record may have (c2sp.org/tlog-tiles: an entry's length has 16 bits).
	MaxRecord = 1<<16 - 1
	// TimeFormat is how times are written: RFC 3339, UTC, always nine digits of a second.
	TimeFormat = "2006-01-02T15:04:05.000000000Z"
)

// Record is one entry of the log: who did what, on what, why, with what result, when. It is written as one JSON object in
// canonical form (RFC 8785) with exactly these members, all of them always there:
//
//	actor       who: SPIFFE ID of the caller, or of the service that acted alone
//	detail      what other services act on, as public facts in clear; "payload" names its kind; {} when there is none
//	facts       public facts that the service gave, names and values are strings
//	id          the event's id; the log has one record per id for ever
//	reason      why: what the caller gave, or the rule that decided
//	request_id  the call that caused it; "" when no call did
//	result      "succeeded", "refused" (policy said no), "failed" (was tried) or "" (not said)
//	service     whose event it is: the first part of type
//	subject     on what: a resource name such as "requests/..."
//	time        when it was committed, by the service's clock, in TimeFormat
//	trace_id    joins the records of one story
//	type        what happened: "<service>.<thing>.<what happened>"
//	v           version of this format, 1
//
// Later versions may add members; they will not change the meaning of these.
type Record struct {
	Version   int
	ID        string
	Time      time.Time
	Service   string
	Type      string
	Actor     string
	Subject   string
	Result    string
	Reason    string
	TraceID   string
	RequestID string
	Facts     map[string]string
	Detail    map[string]string
}

// Member is one name and its value of a record's facts or detail.
type Member struct{ Name, Value string }

// Encode gives the record's canonical bytes, the only thing that is hashed. It refuses what Parse would refuse.
func (r Record) Encode() ([]byte, error) {
	return r.Append(make([]byte, 0, 512), members(r.Facts), members(r.Detail))
}

func members(m map[string]string) []Member {
	all := make([]Member, 0, len(m))
	for name, value := range m {
		all = append(all, Member{name, value})
	}
	return all
}

// Append appends what Encode gives to b, with facts and detail from the two lists instead of the maps. It sorts the lists; the
// same name twice is refused.
func (r Record) Append(b []byte, facts, detail []Member) ([]byte, error) {
	start := len(b)
	b = appendString(append(b, `{"actor":`...), r.Actor)
	b, twice := appendMembers(append(b, `,"detail":`...), detail)
	b, again := appendMembers(append(b, `,"facts":`...), facts)
	b = appendString(append(b, `,"id":`...), r.ID)
	b = appendString(append(b, `,"reason":`...), r.Reason)
	b = appendString(append(b, `,"request_id":`...), r.RequestID)
	b = appendString(append(b, `,"result":`...), r.Result)
	b = appendString(append(b, `,"service":`...), r.Service)
	b = appendString(append(b, `,"subject":`...), r.Subject)
	b = r.Time.UTC().AppendFormat(append(b, `,"time":"`...), TimeFormat)
	b = appendString(append(b, `","trace_id":`...), r.TraceID)
	b = appendString(append(b, `,"type":`...), r.Type)
	b = strconv.AppendInt(append(b, `,"v":`...), int64(r.Version), 10)
	b = append(b, '}')
	// What is appended this way is canonical but for these, which is what FuzzAppend holds.
	year := r.Time.UTC().Year()
	switch {
	case len(b)-start > MaxRecord:
		return nil, fmt.Errorf("encoding a record: %d bytes, a record has at most %d", len(b)-start, MaxRecord)
	case !utf8.Valid(b[start:]):
		return nil, errors.New("a record's text must be UTF-8")
	case twice || again:
		return nil, errors.New("encoding a record: a name twice")
	case year < 0 || year > 9999 || r.Time.IsZero():
		return nil, errors.New("encoding a record: no time between the years 0 and 9999")
	case r.Version < 1 || r.Version >= 1<<53:
		return nil, errors.New("encoding a record: no version")
	case r.ID == "" || r.Type == "":
		return nil, errors.New("encoding a record: id or type is empty")
	}
	return b, nil
}

// appendMembers sorts the members and appends them as an object. It says whether a name is there twice.
func appendMembers(b []byte, all []Member) (_ []byte, twice bool) {
	slices.SortFunc(all, func(x, y Member) int { return compareUTF16(x.Name, y.Name) })
	b = append(b, '{')
	for i, m := range all {
		if i > 0 {
			b = append(b, ',')
			twice = twice || m.Name == all[i-1].Name
		}
		b = append(appendString(b, m.Name), ':')
		b = appendString(b, m.Value)
	}
	return append(b, '}'), twice
}

// ParseRecord reads a record and refuses bytes that are not canonical. Members it does not know are left out of the Record.
func ParseRecord(data []byte) (Record, error) {
	raw, err := scanRecord(data)
	if err != nil {
		return Record{}, err
	}
	facts, err := parseMap(raw.facts)
	if err != nil {
		return Record{}, err
	}
	detail, err := parseMap(raw.detail)
	if err != nil {
		return Record{}, err
	}
	return Record{
		Version: raw.version, Time: raw.time, Facts: facts, Detail: detail,
		ID: unquote(raw.text[textID]), Service: unquote(raw.text[textService]), Type: unquote(raw.text[textType]),
		Actor: unquote(raw.text[textActor]), Subject: unquote(raw.text[textSubject]), Result: unquote(raw.text[textResult]),
		Reason: unquote(raw.text[textReason]), TraceID: unquote(raw.text[textTraceID]), RequestID: unquote(raw.text[textRequestID]),
	}, nil
}

func parseMap(raw []byte) (map[string]string, error) {
	m := map[string]string{}
	s := scanner{data: raw}
	return m, s.object(func(key []byte) error {
		value, err := s.str()
		m[unquote(key)] = unquote(value)
		return err
	})
}

// The text members of a record.
const (
	textActor = iota
	textID
	textReason
	textRequestID
	textResult
	textService
	textSubject
	textTraceID
	textType
	texts
)

// rawRecord holds the members of a record as slices of its bytes.
type rawRecord struct {
	text          [texts][]byte // between the quotes; nil when absent
	facts, detail []byte
	time          time.Time
	version       int
}

// scanRecord is the whole check of one record; ParseRecord and the verification of millions both stand on it.
func scanRecord(data []byte) (rawRecord, error) {
	var r rawRecord
	if len(data) > MaxRecord {
		return r, fmt.Errorf("%d bytes, a record has at most %d", len(data), MaxRecord)
	}
	s := scanner{data: data}
	err := s.document(func() error { return s.object(func(key []byte) error { return r.member(&s, key) }) })
	if err != nil {
		return r, err
	}
	return r, r.complete()
}

func (r *rawRecord) member(s *scanner, key []byte) (err error) {
	text := func(n int) error {
		r.text[n], err = s.str()
		return err
	}
	object := func(into *[]byte) error {
		start := s.at
		if err := s.object(func([]byte) error { _, err := s.str(); return err }); err != nil {
			return err
		}
		*into = s.data[start:s.at]
		return nil
	}
	switch string(key) {
	case "actor":
		return text(textActor)
	case "detail":
		return object(&r.detail)
	case "facts":
		return object(&r.facts)
	case "id":
		return text(textID)
	case "reason":
		return text(textReason)
	case "request_id":
		return text(textRequestID)
	case "result":
		return text(textResult)
	case "service":
		return text(textService)
	case "subject":
		return text(textSubject)
	case "time":
		return r.timestamp(s)
	case "trace_id":
		return text(textTraceID)
	case "type":
		return text(textType)
	case "v":
		n, err := s.integer()
		r.version = int(n)
		return err
	}
	return s.value(2)
}

func (r *rawRecord) timestamp(s *scanner) error {
	raw, err := s.str()
	if err != nil {
		return err
	}
	t, err := time.Parse(TimeFormat, string(raw))
	var one [len(TimeFormat)]byte // Parse takes a comma for the point, too
	if err != nil || t.IsZero() || string(t.AppendFormat(one[:0], TimeFormat)) != string(raw) {
		return s.errorf("time %q is not of the form %s", raw, TimeFormat)
	}
	r.time = t
	return nil
}

// complete checks that all members are there and the ones that must not be empty are not.
func (r *rawRecord) complete() error {
	names := [texts]string{"actor", "id", "reason", "request_id", "result", "service", "subject", "trace_id", "type"}
	for n, name := range names {
		if r.text[n] == nil {
			return fmt.Errorf("member %q is missing", name)
		}
	}
	switch {
	case r.facts == nil:
		return errors.New(`member "facts" is missing`)
	case r.detail == nil:
		return errors.New(`member "detail" is missing`)
	case r.time.IsZero():
		return errors.New(`member "time" is missing`)
	case r.version < 1:
		return errors.New(`member "v" is missing or not positive`)
	case len(r.text[textID]) == 0:
		return errors.New(`member "id" is empty`)
	case len(r.text[textType]) == 0:
		return errors.New(`member "type" is empty`)
	}
	return nil
}
