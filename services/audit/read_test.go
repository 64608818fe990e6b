package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func TestListFilters(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		r := w.start()
		w.publish(
			w.fact(func(e *eventv1.Event) { e.Subject = "requests/a/1" }),
			w.fact(func(e *eventv1.Event) { e.Subject = "requests/a/2"; e.Result = eventv1.Result_RESULT_REFUSED }),
			w.fact(func(e *eventv1.Event) { e.Subject = "requests/a"; e.Type = "issuer.request.refused" }),
			w.fact(func(e *eventv1.Event) {
				e.Subject = "requests/ab/1"
				e.Type = "issuer.requests.listed"
				e.TraceId = "other"
			}),
			w.fact(func(e *eventv1.Event) {
				e.Subject = "agents/web-1"
				e.Type = "deployer.agent.locked"
				e.Actor = "spiffe://test.example/operator/ann"
			}),
		)
		r.await(t, 5)
		at := func(n int) *timestamppb.Timestamp { return timestamppb.New(time.Unix(1_800_000_000+int64(n), 0)) }
		for _, c := range []struct {
			f    *auditv1.RecordFilter
			want string
		}{
			{nil, "agents/web-1 requests/ab/1 requests/a requests/a/2 requests/a/1"},
			{&auditv1.RecordFilter{Subject: "requests/a/"}, "requests/a/2 requests/a/1"},
			{&auditv1.RecordFilter{Subject: "requests/a"}, "requests/a"},
			{&auditv1.RecordFilter{Subject: "requests/"}, "requests/ab/1 requests/a requests/a/2 requests/a/1"},
			{&auditv1.RecordFilter{Type: "issuer.request."}, "requests/a requests/a/2 requests/a/1"},
			{&auditv1.RecordFilter{Type: "issuer."}, "requests/ab/1 requests/a requests/a/2 requests/a/1"},
			{&auditv1.RecordFilter{Type: "issuer.request.issued"}, "requests/a/2 requests/a/1"},
			{&auditv1.RecordFilter{Type: "issuer.req"}, ""},
			{&auditv1.RecordFilter{Actor: "spiffe://test.example/operator/ann"}, "agents/web-1"},
			{&auditv1.RecordFilter{Result: eventv1.Result_RESULT_REFUSED}, "requests/a/2"},
			{&auditv1.RecordFilter{TraceId: "other"}, "requests/ab/1"},
			{&auditv1.RecordFilter{From: at(2), To: at(4)}, "requests/a requests/a/2"},
			{&auditv1.RecordFilter{From: at(5)}, "agents/web-1"},
			{&auditv1.RecordFilter{To: at(2)}, "requests/a/1"},
			{&auditv1.RecordFilter{From: at(1), Subject: "requests/a/", Result: eventv1.Result_RESULT_SUCCEEDED, TraceId: "4bf92f3577b34da6a3ce929d0e0e4736"}, "requests/a/1"},
		} {
			for _, page := range []int32{0, 1, 2} {
				var got []string
				for _, rec := range r.list(t, c.f, page) {
					got = append(got, rec.Subject)
				}
				if s := strings.Join(got, " "); s != c.want {
					t.Errorf("%v, pages of %d: %q, want %q", c.f, page, s, c.want)
				}
			}
		}
	})
}

func TestListRefuses(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	w.publish(w.facts(3)...)
	r.await(t, 3)
	first, err := r.client.ListRecords(t.Context(), &auditv1.ListRecordsRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for field, req := range map[string]*auditv1.ListRecordsRequest{
		"page_size":       {PageSize: 1001},
		"page_token":      {PageToken: "hello"},
		"filter.result":   {Filter: &auditv1.RecordFilter{Result: 99}},
		"filter.from":     {Filter: &auditv1.RecordFilter{From: &timestamppb.Timestamp{Nanos: -1}}},
		"filter.to":       {Filter: &auditv1.RecordFilter{From: timestamppb.New(time.Unix(2, 0)), To: timestamppb.New(time.Unix(1, 0))}},
		"filter.subject":  {Filter: &auditv1.RecordFilter{Subject: strings.Repeat("x", 5000)}},
		"page_token too":  {PageToken: first.GetNextPageToken(), Filter: &auditv1.RecordFilter{Type: "issuer."}},
		"page_size minus": {PageSize: -1},
	} {
		_, err := r.client.ListRecords(t.Context(), req)
		want, _, _ := strings.Cut(field, " ")
		if f := fault.Of(err); f == nil || f.Kind != fault.InvalidArgument || f.Field != want {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestLargePages: a page ends before it is too large for a client.
func TestLargePages(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	for range 200 {
		w.publish(w.fact(func(e *eventv1.Event) {
			for n := range 14 {
				e.Facts[fmt.Sprint(n)] = strings.Repeat("x", 4000)
			}
		}))
	}
	r.await(t, 200)
	stream, err := r.client.ExportRecords(t.Context(), &auditv1.ExportRecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := export(t, stream); bytes.Count(data, []byte("\n")) != 200 {
		t.Errorf("exported %d lines", bytes.Count(data, []byte("\n")))
	}
}

// export reads a whole export.
func export(t *testing.T, stream interface {
	Recv() (*auditv1.ExportRecordsResponse, error)
}) (data []byte, checkpoint []byte) {
	t.Helper()
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if checkpoint == nil {
				t.Fatal("no checkpoint at the end")
			}
			return data, checkpoint
		}
		if err != nil {
			t.Fatal(err)
		}
		if checkpoint != nil {
			t.Fatal("the checkpoint was not in the last message")
		}
		for _, rec := range resp.GetRecords() {
			data = append(append(data, rec.GetJson()...), '\n')
		}
		if resp.GetCheckpoint() != "" {
			checkpoint = []byte(resp.GetCheckpoint())
		}
	}
}

func TestExportVerifies(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	key := r.key(t)
	verify := func(from, end uint64, older []byte) []byte {
		t.Helper()
		stream, err := r.client.ExportRecords(t.Context(), &auditv1.ExportRecordsRequest{Position: from, End: end})
		if err != nil {
			t.Fatal(err)
		}
		data, checkpoint := export(t, stream)
		e := auditlog.Extent{Checkpoint: checkpoint, Start: from, End: end}
		if from > 0 {
			e.Before = before(t, r, from)
		}
		if end > 0 {
			last, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: end - 1})
			if err != nil {
				t.Fatal(err)
			}
			e.Last, e.Checkpoint = last.GetPath(), []byte(last.GetCheckpoint())
		}
		if _, err := auditlog.VerifyExport(t.Context(), bytes.NewReader(data), e, auditlog.Options{Key: key, Older: older}); err != nil {
			t.Errorf("%d to %d: %v", from, end, err)
		}
		return checkpoint
	}
	older := verify(0, 0, nil) // an empty log
	w.publish(w.facts(400)...)
	r.await(t, 400)
	older = verify(0, 0, older)
	w.publish(w.facts(2500)...)
	r.await(t, 2900)
	verify(0, 0, older)
	verify(1000, 0, nil)
	verify(0, 777, nil)
	verify(300, 1500, older)
	for _, bad := range [][2]uint64{{0, 5000}, {10, 5}, {5000, 0}} {
		stream, err := r.client.ExportRecords(t.Context(), &auditv1.ExportRecordsRequest{Position: bad[0], End: bad[1]})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// before is what an export from a position on needs.
func before(t *testing.T, r *running, position uint64) [][]byte {
	t.Helper()
	rec, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: position})
	if err != nil {
		t.Fatal(err)
	}
	key, err := auditlog.ParseKey(r.key(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := auditlog.ParseCheckpoint([]byte(rec.GetCheckpoint()), key)
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := auditlog.Before(position, c.Size, rec.GetPath())
	if err != nil {
		t.Fatal(err)
	}
	return hashes
}

func TestProofs(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	o := auditlog.Options{Key: r.key(t)}
	var older []auditv1.GetCheckpointResponse
	total := 0
	for _, n := range []int{1, 3, 300, 1000} {
		w.publish(w.facts(n)...)
		total += n
		r.await(t, total)
		// At once: the checkpoint that covers it is waited for.
		rec, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: uint64(total) - 1})
		if err != nil {
			t.Fatal(err)
		}
		p := auditlog.Inclusion{Position: rec.GetRecord().GetPosition(), Record: rec.GetRecord().GetJson(), Path: rec.GetPath(), Checkpoint: []byte(rec.GetCheckpoint())}
		got, _, err := auditlog.VerifyInclusion(p, o)
		if err != nil || got.Subject != fmt.Sprintf("requests/%d", total) {
			t.Errorf("%+v: %v", got, err)
		}
		c, err := r.client.GetCheckpoint(t.Context(), &auditv1.GetCheckpointRequest{})
		if err != nil {
			t.Fatal(err)
		}
		older = append(older, auditv1.GetCheckpointResponse{Checkpoint: c.GetCheckpoint()})
	}
	key, err := auditlog.ParseKey(o.Key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range older {
		c, err := auditlog.ParseCheckpoint([]byte(older[i].GetCheckpoint()), key)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.client.GetConsistencyProof(t.Context(), &auditv1.GetConsistencyProofRequest{FromSize: c.Size})
		if err != nil {
			t.Fatal(err)
		}
		p := auditlog.Consistency{Older: c.Note, Newer: []byte(resp.GetCheckpoint()), Path: resp.GetPath()}
		if _, newer, err := auditlog.VerifyConsistency(p, o); err != nil || newer.Size != resp.GetToSize() {
			t.Errorf("from %d: %v", c.Size, err)
		}
	}
	if _, err := r.client.GetRecord(t.Context(), &auditv1.GetRecordRequest{Position: uint64(total)}); fault.Of(err).Reason != "POSITION_NOT_FOUND" {
		t.Error(err)
	}
	if _, err := r.client.GetConsistencyProof(t.Context(), &auditv1.GetConsistencyProofRequest{FromSize: 9999}); fault.Of(err).Field != "from_size" {
		t.Error(err)
	}
}

// tail reads records until it has n and gives their subjects' numbers and the position to go on at.
func tail(t *testing.T, r *running, req *auditv1.TailRecordsRequest, n int, ready func()) (subjects []string, next uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := r.client.TailRecords(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if ready != nil {
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		ready()
	}
	for len(subjects) < n {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d records: %v", len(subjects), err)
		}
		for _, rec := range resp.GetRecords() {
			parsed, err := auditlog.ParseRecord(rec.GetJson())
			if err != nil {
				t.Fatal(err)
			}
			subjects = append(subjects, parsed.Subject)
		}
		next = resp.GetNextPosition()
	}
	return subjects, next
}

func TestTail(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	w.publish(w.facts(1500)...)
	r.await(t, 1500)

	// From the beginning, broken off and resumed, and on into what comes.
	got, next := tail(t, r, &auditv1.TailRecordsRequest{}, 1000, nil)
	w.publish(w.facts(20)...)
	more, next := tail(t, r, &auditv1.TailRecordsRequest{Position: next}, 1520-len(got), nil)
	got = append(got, more...)
	for i, s := range got {
		if s != fmt.Sprintf("requests/%d", i+1) {
			t.Fatalf("record %d is of %s", i, s)
		}
	}
	if next != 1520 {
		t.Errorf("goes on at %d", next)
	}

	// Filtered.
	w.publish(w.fact(func(e *eventv1.Event) { e.Type = "deployer.agent.locked"; e.Subject = "agents/web-1" }))
	got, next = tail(t, r, &auditv1.TailRecordsRequest{Filter: &auditv1.RecordFilter{Type: "deployer."}}, 1, nil)
	if got[0] != "agents/web-1" || next != 1521 {
		t.Errorf("%v, goes on at %d", got, next)
	}

	for _, bad := range []*auditv1.TailRecordsRequest{{Position: 9999}, {Position: 1, FromEnd: true}, {Filter: &auditv1.RecordFilter{Result: 99}}} {
		stream, err := r.client.TailRecords(t.Context(), bad)
		if err == nil {
			_, err = stream.Recv()
		}
		if c := status.Code(err); c != codes.NotFound && c != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestTailFromEnd: a tail that was begun gets everything from then on.
func TestTailFromEnd(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	w.publish(w.facts(100)...)
	r.await(t, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := r.client.TailRecords(ctx, &auditv1.TailRecordsRequest{FromEnd: true})
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 1)
	go func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			for _, rec := range resp.GetRecords() {
				if parsed, err := auditlog.ParseRecord(rec.GetJson()); err == nil {
					found <- parsed.Subject
					return
				}
			}
		}
	}()
	// The server begins somewhere after the call: whatever comes first is a new record.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case s := <-found:
			var n int
			if _, err := fmt.Sscanf(s, "requests/%d", &n); err != nil || n <= 100 {
				t.Errorf("first is %s", s)
			}
			return
		case <-tick.C:
			w.publish(w.fact())
		}
	}
}
