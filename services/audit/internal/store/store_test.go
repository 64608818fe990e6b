package store

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func eachStore(t *testing.T, fn func(*testing.T, *Store)) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d, err := db.Open(t.Context(), c, Migrations(), "audit")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		fn(t, New(d))
	})
}

func entry(position uint64, change ...func(*auditlog.Record)) Entry {
	r := auditlog.Record{
		Version: 1, ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", position), Time: time.Unix(1_800_000_000+int64(position), 0).UTC(),
		Service: "issuer", Type: "issuer.request.issued", Actor: "spiffe://test.example/service/deployer", Subject: fmt.Sprintf("requests/%d", position), Result: "succeeded",
	}
	for _, c := range change {
		c(&r)
	}
	return Entry{position, r}
}

func add(t *testing.T, s *Store, want int, entries ...Entry) {
	t.Helper()
	n, err := s.Add(t.Context(), entries)
	if err != nil || n != want {
		t.Fatalf("%d entries are new, want %d: %v", n, want, err)
	}
}

func adopt(t *testing.T, s *Store, want Tip) {
	t.Helper()
	err := s.Adopt(t.Context(), "log+1+key")
	if err != nil {
		t.Fatal(err)
	}
	tip, err := s.Tip(t.Context())
	if err != nil || tip != want {
		t.Errorf("tip %+v, want %+v: %v", tip, want, err)
	}
}

func TestAdoptAndAdd(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		adopt(t, s, Tip{})
		adopt(t, s, Tip{})
		if err := s.Adopt(t.Context(), "other+1+key"); fault.Of(err).Reason != "INDEX_REFUSED" {
			t.Error(err)
		}
		var all []Entry
		for p := range uint64(1201) { // more than two statements
			all = append(all, entry(p))
		}
		add(t, s, 1201, all...)
		adopt(t, s, Tip{1201, all[1200].Record.ID})
		add(t, s, 0, all[5:700]...)
		add(t, s, 1, entry(1201), entry(1200))
		// The same event at another position is left out, the position is not.
		add(t, s, 0, entry(1202, func(r *auditlog.Record) { r.ID = all[3].Record.ID }))
		adopt(t, s, Tip{1202, entry(1201).Record.ID})
		add(t, s, 0)
	})
}

func TestKnown(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		add(t, s, 2, entry(0), entry(1))
		ids := []string{entry(1).Record.ID, entry(2).Record.ID}
		for i := range 1300 {
			ids = append(ids, fmt.Sprint("unknown ", i))
		}
		ids = append(ids, entry(0).Record.ID)
		known, err := s.Known(t.Context(), ids)
		if diff := cmp.Diff(map[string]bool{entry(0).Record.ID: true, entry(1).Record.ID: true}, known); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
		if known, err := s.Known(t.Context(), nil); err != nil || len(known) != 0 {
			t.Errorf("%v %v", known, err)
		}
	})
}

// TestSearchIsWhatFilterMatches compares SQL with Filter.Match on random records and filters.
func TestSearchIsWhatFilterMatches(t *testing.T) {
	types := []string{"issuer.request.issued", "issuer.request.refused", "issuer.requests.x", "deployer.agent.locked", "issuer.request", "issuer/x"}
	subjects := []string{"requests/a", "requests/a/", "requests/a/b", "requests/aa", "requests0", "agents/w\u00e4b", "", "requests/\U0001F600/x"}
	results := []string{"", "succeeded", "refused", "failed"}
	traces := []string{"", "t1", "t2"}
	actors := []string{"spiffe://a/operator/ann", "spiffe://a/operator/anna", "anonymous"}
	filters := map[string][]string{
		"type":    {"", "issuer.", "issuer.request.", "issuer.request.issued", "issuer.request", "deployer.", "."},
		"subject": {"", "requests/", "requests/a/", "requests/a", "agents/", "agents/w\u00e4b", "/", "requests/\U0001F600/", "requests"},
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(list []string) string { return list[rnd.IntN(len(list))] }
	eachStore(t, func(t *testing.T, s *Store) {
		var all []Entry
		for p := range uint64(400) {
			all = append(all, entry(p, func(r *auditlog.Record) {
				r.Time = time.Unix(1_800_000_000, int64(rnd.IntN(10))*500) // half microseconds: compared as whole ones
				r.Type, r.Subject, r.Result, r.TraceID, r.Actor = pick(types), pick(subjects), pick(results), pick(traces), pick(actors)
			}))
		}
		add(t, s, 400, all...)
		for range 400 {
			f := record.Filter{Type: pick(filters["type"]), Subject: pick(filters["subject"])}
			if rnd.IntN(3) == 0 {
				f.Result = eventv1.Result(rnd.IntN(4))
			}
			if rnd.IntN(3) == 0 {
				f.TraceID = pick(traces)
			}
			if rnd.IntN(3) == 0 {
				f.Actor = pick(actors)
			}
			if rnd.IntN(3) == 0 {
				f.From = time.Unix(1_800_000_000, int64(rnd.IntN(10))*500)
			}
			if rnd.IntN(3) == 0 {
				f.To = time.Unix(1_800_000_000, int64(rnd.IntN(10))*500)
			}
			before, limit := uint64(rnd.IntN(450)), 1+rnd.IntN(50)
			var want []uint64
			for _, e := range slices.Backward(all) {
				if e.Position < before && f.Match(e.Record) && len(want) < limit {
					want = append(want, e.Position)
				}
			}
			got, err := s.Search(t.Context(), f, before, limit)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Fatalf("%+v before %d: %v\n%s", f, before, err, diff)
			}
		}
		if got, err := s.Search(t.Context(), record.Filter{}, math.MaxUint64, 1); err != nil || got[0] != 399 {
			t.Errorf("%v %v", got, err)
		}
	})
}

func TestPublished(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		adopt(t, s, Tip{})
		for _, n := range []uint64{0, 5, 1 << 40} {
			if n > 0 {
				if err := s.SetPublished(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := s.Published(t.Context()); err != nil || got != n {
				t.Errorf("%d, want %d: %v", got, n, err)
			}
		}
	})
}

// TestSearchUsesIndexes: no filter may read the whole table.
func TestSearchUsesIndexes(t *testing.T) {
	d, err := db.Open(t.Context(), servicetest.SQLite(t), Migrations(), "audit")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, f := range []record.Filter{
		{}, {Type: "issuer.x.y"}, {Type: "issuer."}, {Subject: "requests/1"}, {Subject: "requests/"}, {Actor: "a"},
		{TraceID: "t"}, {From: time.Unix(1, 0), To: time.Unix(2, 0)},
	} {
		where, args := conditions(f, 100)
		err := d.Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
			rows, err := tx.Query(ctx, `EXPLAIN QUERY PLAN SELECT position FROM record WHERE `+where+` ORDER BY position DESC LIMIT 10`, args...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused int
				var step string
				if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
					return err
				}
				if step == "SCAN record" {
					t.Errorf("%+v: %s", f, step)
				}
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
