package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/audit/internal/search/searchtest"
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

// made is the record at a position.
func made(position uint64, change ...func(*auditlog.Record)) record.Encoded {
	r := auditlog.Record{
		Version: 1, ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", position), Time: time.Unix(1_800_000_000+int64(position), 0).UTC(),
		Service: "issuer", Type: "issuer.request.issued", Actor: "spiffe://test.example/service/deployer", Subject: fmt.Sprintf("requests/%d", position), Result: "succeeded",
	}
	for _, c := range change {
		c(&r)
	}
	return record.Encoded{ID: uuid.MustParse(r.ID), Head: r}
}

func blocks(first uint64, n int, change ...func(*auditlog.Record)) []record.Encoded {
	all := make([]record.Encoded, n*BlockSize)
	for i := range all {
		all[i] = made(first+uint64(i), change...)
	}
	return all
}

func add(t *testing.T, s *Store, first uint64, all []record.Encoded) {
	t.Helper()
	if err := s.Add(t.Context(), first, all); err != nil {
		t.Fatal(err)
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
		next := func(want uint64) {
			t.Helper()
			if got, err := s.Next(t.Context()); err != nil || got != want {
				t.Errorf("indexed up to %d, want %d: %v", got, want, err)
			}
		}
		next(0)
		add(t, s, 0, blocks(0, 3))
		next(768)
		adopt(t, s, Tip{768, made(767).Head.ID})
		// Only what is next, and only whole blocks.
		for first, n := range map[uint64]int{0: 1, 512: 1, 1024: 1} {
			if err := s.Add(t.Context(), first, blocks(first, n)); fault.Of(err).Reason != "INDEX_REFUSED" {
				t.Errorf("from %d: %v", first, err)
			}
		}
		for first, all := range map[uint64][]record.Encoded{768: blocks(768, 1)[1:], 769: blocks(769, 1), 770: nil} {
			if err := s.Add(t.Context(), first, all); fault.KindOf(err) != fault.Internal {
				t.Errorf("from %d: %v", first, err)
			}
		}
		next(768)
		if err := s.SetTip(t.Context(), Tip{800, "x"}); err != nil {
			t.Fatal(err)
		}
		adopt(t, s, Tip{800, "x"})
		if err := s.SetTip(t.Context(), Tip{790, "y"}); err != nil {
			t.Fatal(err)
		}
		adopt(t, s, Tip{800, "x"})
		add(t, s, 768, blocks(768, 1))
		next(1024)
		adopt(t, s, Tip{1024, made(1023).Head.ID})
	})
}

func TestPositions(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		adopt(t, s, Tip{})
		// Ids of one moment, of many moments, and without a time.
		id := func(p uint64) string {
			switch p % 3 {
			case 0:
				return fmt.Sprintf("01938c5e-7b1a-7000-8000-%012d", p)
			case 1:
				return fmt.Sprintf("01938c5e-%04x-7000-8000-%012d", p*97%65536, p)
			}
			return uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, p)).String()
		}
		renamed := func(r *auditlog.Record) { r.ID = id(uint64(r.Time.Unix() - 1_800_000_000)) }
		add(t, s, 0, blocks(0, 2, renamed))
		add(t, s, 512, blocks(512, 1, renamed))
		var ids []uuid.UUID
		want := map[uuid.UUID]uint64{}
		for p := range uint64(900) {
			one := uuid.MustParse(id(p))
			ids = append(ids, one)
			if p < 768 {
				want[one] = p
			}
		}
		got, next, err := s.Positions(t.Context(), ids)
		if diff := cmp.Diff(want, got); err != nil || next != 768 || diff != "" {
			t.Errorf("%v %d %s", err, next, diff)
		}
		// One of many that were made in the same moment.
		if got, _, err := s.Positions(t.Context(), ids[3:4]); err != nil || len(got) != 1 || got[ids[3]] != 3 {
			t.Errorf("%v %v", got, err)
		}
		if got, _, err := s.Positions(t.Context(), nil); err != nil || len(got) != 0 {
			t.Errorf("%v %v", got, err)
		}
	})
}

// TestBlocksMissNothing compares the index with Filter.Match on random records and filters.
func TestBlocksMissNothing(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		adopt(t, s, Tip{})
		rnd := rand.New(rand.NewPCG(1, 2))
		all := make([]record.Encoded, 12*BlockSize)
		for p := range all {
			// Few of the values in each block, so that most blocks need not be looked at.
			pick := func(list []string) string { return list[(p/BlockSize+rnd.IntN(2))%len(list)] }
			all[p] = made(uint64(p), func(r *auditlog.Record) {
				r.Time = time.Unix(1_800_000_000, int64(p/BlockSize+rnd.IntN(2))*500) // half microseconds: compared as whole ones
				r.Type, r.Subject, r.Result, r.TraceID, r.Actor = pick(searchtest.Types), pick(searchtest.Subjects), pick(searchtest.Results), pick(searchtest.Traces), pick(searchtest.Actors)
			})
		}
		add(t, s, 0, all[:9*BlockSize])
		add(t, s, 9*BlockSize, all[9*BlockSize:])
		named, needed := 0, 0
		for range 1000 {
			f, before := searchtest.Filter(rnd), uint64(rnd.IntN(13))
			got, err := s.Blocks(t.Context(), f, before, 100)
			if err != nil || !slices.IsSortedFunc(got, func(a, b uint64) int { return int(b) - int(a) }) {
				t.Fatalf("%+v: %v %v", f, got, err)
			}
			named += len(got)
			for p, r := range all {
				if b := uint64(p / BlockSize); b < before && f.Match(r.Head) {
					if !slices.Contains(got, b) {
						t.Fatalf("%+v before %d: position %d is in none of the blocks %v", f, before, p, got)
					}
				}
			}
			for b := range before {
				if slices.ContainsFunc(all[b*BlockSize:(b+1)*BlockSize], func(r record.Encoded) bool { return f.Match(r.Head) }) {
					needed++
				}
			}
			if limited, err := s.Blocks(t.Context(), f, before, 2); err != nil || !slices.Equal(limited, got[:min(2, len(got))]) {
				t.Fatalf("%v of %v: %v", limited, got, err)
			}
		}
		if named > needed+needed/20 {
			t.Errorf("%d blocks were named, %d needed", named, needed)
		}
	})
}

// TestDeepPrefixes: a filter that goes deeper than what is indexed finds what it should.
func TestDeepPrefixes(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		adopt(t, s, Tip{})
		add(t, s, 0, blocks(0, 1, func(r *auditlog.Record) { r.Subject = "a/b/c/d/e/f/g" }))
		for subject, want := range map[string]int{"a/b/c/d/e/f/": 1, "a/b/c/d/": 1, "a/": 1, "b/": 0, "a/b/c/e/": 0, "a/b/c/d/e/f/g": 1} {
			if got, err := s.Blocks(t.Context(), record.Filter{Subject: subject}, 1, 10); err != nil || len(got) != want {
				t.Errorf("%s: %v %v", subject, got, err)
			}
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

// TestBlocksUsesKeys: no filter may read all terms.
func TestBlocksUsesKeys(t *testing.T) {
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
		{}, {Type: "issuer.x.y"}, {Type: "issuer."}, {Subject: "requests/1"}, {Subject: "requests/", Type: "issuer."}, {Actor: "a"},
		{TraceID: "t"}, {From: time.Unix(1, 0), To: time.Unix(2, 0)}, {From: time.Unix(1, 0), Subject: "requests/1"},
	} {
		query, args := blocksQuery(f, 100, 10)
		err := d.Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
			var id, parent, unused int
			var step string
			return each(ctx, tx, `EXPLAIN QUERY PLAN `+query, args, []any{&id, &parent, &unused, &step}, func() {
				unbounded := strings.HasPrefix(step, "SEARCH t ") && !strings.Contains(step, "(key>? AND key<?)") // all blocks of other terms
				if unbounded || strings.HasPrefix(step, "SCAN") || strings.Contains(step, "TEMP B-TREE") {
					t.Errorf("%+v: %s", f, step)
				}
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRules: what the index can have wrong is told.
func TestRules(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		adopt(t, s, Tip{})
		size := uint64(1000)
		told := func() string {
			t.Helper()
			var all []string
			for _, rule := range Rules(func() uint64 { return size }) {
				err := s.db.Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
					wrong, err := rule.Broken(ctx, tx, time.Now(), 10)
					for _, v := range wrong {
						all = append(all, rule.Name+": "+v.Subject+" "+v.Message)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			return strings.Join(all, "\n")
		}
		write := func(query string, args ...any) {
			t.Helper()
			err := s.db.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
				_, err := tx.Exec(ctx, query, args...)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		expect := func(want string) {
			t.Helper()
			if got := told(); got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
		add(t, s, 0, blocks(0, 3))
		expect("")
		size = 768 + MaxTail
		expect("")
		size++
		expect("log-indexed: records/768 and those after it are not in the index: the log has 17153 records")
		size = 700
		expect("log-indexed: records/700 is in the index, but the log has only 700 records")
		size = 768
		if err := s.SetPublished(t.Context(), 769); err != nil {
			t.Fatal(err)
		}
		expect("log-published: log the audit stream has 769 records, the log 768")
		if err := s.SetPublished(t.Context(), 768); err != nil {
			t.Fatal(err)
		}
		write(`DELETE FROM block WHERE number = 1`)
		expect("log-indexed: records/256 and the 255 after it are not in the index, but later ones are")
		write(`INSERT INTO block (number, min_time, max_time) VALUES (1, 0, 0)`)
		add(t, s, 768, append(blocks(768, 1)[:255], made(5)))
		size = 1024
		expect("log-indexed: records/1023 its event " + made(5).Head.ID + " has another record, at position 5")
		write(`DELETE FROM event_position WHERE block = 3`)
		expect("log-indexed: log the index has 1024 records, and the events of 768")
	})
}
