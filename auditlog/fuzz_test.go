package auditlog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

// FuzzParseRecord: what is taken is valid JSON, and encodes to the same bytes if this version made it.
func FuzzParseRecord(f *testing.F) {
	s := newSample(f, 1)
	f.Add(s.records[0])
	f.Add([]byte(`{"actor":"","detail":{},"facts":{"a":"\u0001\\\"","b":""},"id":"x","reason":"","request_id":"","result":"","service":"","subject":"","time":"2026-11-21T10:11:12.000000000Z","trace_id":"","type":"a.b.c","v":1}`))
	f.Add([]byte(`{"actor":"","detail":{},"facts":{},"id":"x","new":[1,-2,{"a":null,"b":true}],"reason":"","request_id":"","result":"","service":"","subject":"","time":"2026-11-21T10:11:12.000000000Z","trace_id":"","type":"a.b.c","v":2}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatalf("taken, but not JSON: %q", data)
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if len(again) == len(data) && !bytes.Equal(again, data) {
			t.Fatalf("two canonical forms:\n%s\n%s", data, again)
		}
	})
}

// FuzzAppend compares Append with the plain way to the same bytes, and what it refuses with what ParseRecord refuses.
func FuzzAppend(f *testing.F) {
	f.Add("id", "a.b.c", "text\n\"\\\x01\u20ac", "\U0001F600", "\uE000", "v", int64(1_800_000_000), 1)
	f.Add("", "a.b.c", "\xff", "n", "n", "", int64(-62135596800), 0)
	f.Add("id", "", "", "a", "b", "\x7f\u2028", int64(1<<40), -1)
	f.Add("id", "t", "", "n\u00e9", "n", strings.Repeat("x", MaxRecord), int64(253402300800), 1<<53)
	f.Fuzz(func(t *testing.T, id, kind, text, name, other, value string, seconds int64, version int) {
		if seconds > 1<<50 || seconds < -(1<<50) {
			return // time.Time itself overflows
		}
		r := Record{Version: version, ID: id, Time: time.Unix(seconds, 7), Type: kind, Actor: text, Subject: value, Result: other, Reason: name, Service: kind, TraceID: text, RequestID: id}
		facts := []Member{{name, value}, {other, text}}
		detail := []Member{{other, id}, {name, kind}, {"", text}}
		want := plainly(r, facts, detail)
		_, refused := ParseRecord(want)
		got, err := r.Append([]byte("before"), facts, detail)
		if (err != nil) != (refused != nil) {
			t.Fatalf("append says %v, parse %v of %q", err, refused, want)
		}
		if err == nil && string(got) != "before"+string(want) {
			t.Fatalf("append gave\n%q, want\n%q", got[len("before"):], want)
		}
	})
}

// plainly writes a record in the order and form of RFC 8785, by its words and not for speed; it checks nothing.
func plainly(r Record, facts, detail []Member) []byte {
	quote := func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			switch c := s[i]; {
			case strings.IndexByte("\b\t\n\f\r", c) >= 0:
				b.WriteString(map[byte]string{'\b': `\b`, '\t': `\t`, '\n': `\n`, '\f': `\f`, '\r': `\r`}[c])
			case c < 0x20:
				fmt.Fprintf(&b, `\u%04x`, c)
			case c == '"' || c == '\\':
				b.WriteString(`\` + string(rune(c)))
			default:
				b.WriteByte(c)
			}
		}
		return `"` + b.String() + `"`
	}
	object := func(members map[string]string) string {
		names := slices.SortedFunc(maps.Keys(members), func(a, b string) int {
			return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
		})
		for i, name := range names {
			names[i] = quote(name) + ":" + members[name]
		}
		return "{" + strings.Join(names, ",") + "}"
	}
	list := func(all []Member) string {
		members := map[string]string{}
		for _, m := range all {
			if _, twice := members[m.Name]; twice {
				return "" // which no parser takes
			}
			members[m.Name] = quote(m.Value)
		}
		return object(members)
	}
	return []byte(object(map[string]string{
		"actor": quote(r.Actor), "detail": list(detail), "facts": list(facts), "id": quote(r.ID), "reason": quote(r.Reason), "request_id": quote(r.RequestID),
		"result": quote(r.Result), "service": quote(r.Service), "subject": quote(r.Subject), "time": quote(r.Time.UTC().Format(TimeFormat)),
		"trace_id": quote(r.TraceID), "type": quote(r.Type), "v": strconv.Itoa(r.Version),
	}))
}

func FuzzParseCheckpoint(f *testing.F) {
	s := newSample(f, 3)
	key, err := ParseKey(s.key)
	if err != nil {
		f.Fatal(err)
	}
	good := s.checkpoint(s.records)
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("\n3\n"), []byte("\n03\n"), 1))
	f.Add([]byte("a\n1\nAAAA\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// No fuzzer finds a signature, so the only head that passes is the one that was signed.
		if c, err := ParseCheckpoint(data, key); err == nil && (c.Size != 3 || c.Root != rootOver(s.records)) {
			t.Fatalf("taken: %q", data)
		}
		_, _ = parseTreeHead(string(data))
	})
}

func FuzzParseProofs(f *testing.F) {
	s := newSample(f, 10)
	inclusion := s.inclusion(4, 10)
	for _, file := range []interface{ Encode() ([]byte, error) }{
		inclusion,
		Consistency{Older: s.checkpoint(s.records[:5]), Newer: s.checkpoint(s.records), Path: inclusion.Path},
		Extent{Checkpoint: s.checkpoint(s.records), Start: 3, Before: inclusion.Path[:2], End: 9, Last: inclusion.Path},
	} {
		data, err := file.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"format":"sallyport-audit-inclusion-v1","position":18446744073709551615}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ParseInclusion(data); err == nil {
			if _, _, err := VerifyInclusion(p, s.options()); err == nil && (p.Position != 4 || !bytes.Equal(p.Record, s.records[4])) {
				t.Fatalf("proved: %q", data)
			}
		}
		if p, err := ParseConsistency(data); err == nil {
			_, _, _ = VerifyConsistency(p, s.options())
		}
		if e, err := ParseExtent(data); err == nil {
			if s.verifyExport(lines(s.records[1:2]), e, s.options()) == nil {
				t.Fatalf("verified: %q", data)
			}
		}
	})
}

// FuzzVerifyDir puts foreign bytes where bundles and tiles should be: no change passes.
func FuzzVerifyDir(f *testing.F) {
	good := newSample(f, 300)
	first, second := bundle(good.records[:256]), bundle(good.records[256:])
	f.Add(first, second)
	f.Add(first[:1000], second)
	f.Add(first, second[1:])
	f.Add([]byte{0, 0, 0, 0}, []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := newSample(t, 0)
		s.key, s.signer, s.records = good.key, good.signer, good.records
		s.write(s.records, s.records)
		s.file("tile/entries/000", a)
		s.file("tile/entries/001.p/44", b)
		same := bytes.Equal(a, first) && bytes.Equal(b, second)
		if err := s.verifyDir(s.options()); (err == nil) != same {
			t.Fatalf("unchanged %t: %v", same, err)
		}
		s.write(s.records, s.records)
		s.file("tile/0/000", a)
		s.file("tile/1/000.p/1", b)
		if err := s.verifyDir(s.options()); err == nil {
			t.Fatal("foreign tiles pass")
		}
	})
}

// FuzzVerifyExport: nothing but the very lines passes.
func FuzzVerifyExport(f *testing.F) {
	s := newSample(f, 5)
	good, e := lines(s.records), Extent{Checkpoint: s.checkpoint(s.records)}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("\n\n\n\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := VerifyExport(context.Background(), bytes.NewReader(data), e, s.options())
		if (err == nil) != bytes.Equal(data, good) {
			t.Fatalf("%q: %v", data, err)
		}
	})
}
