package auditlog

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
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
