package search_test

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ingest"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/audit/internal/search"
	"github.com/sallyport-pki/sallyport/services/audit/internal/search/searchtest"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestEachIsWhatFilterMatches compares a search with looking at every record, with blocks that are indexed and records that are not.
func TestEachIsWhatFilterMatches(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		ctx := t.Context()
		l, err := ledger.Open(ctx, ledger.Config{Dir: filepath.Join(t.TempDir(), "log"), Origin: "sallyport.test.example/audit", CheckpointInterval: 100 * time.Millisecond, Log: servicetest.Log(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // what is tested is over
		d, err := db.Open(ctx, c, store.Migrations(), "audit")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		index := store.New(d)
		recorder, err := ingest.NewRecorder(ctx, l, index, servicetest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(3, 4))
		var all []record.Encoded
		for len(all) < 4500 { // more blocks than the index is asked for at once, and a tail of 148 at least
			var batch []record.Encoded
			for range 100 {
				pick := func(list []string) string { return list[(len(all)/300+rnd.IntN(2))%len(list)] }
				data, err := auditlog.Record{
					Version: 1, ID: uuid.Must(uuid.NewV7()).String(), Time: time.Unix(1_800_000_000, int64(len(all)/100+rnd.IntN(3))*500), Service: "issuer",
					Type: pick(searchtest.Types), Subject: pick(searchtest.Subjects), Result: pick(searchtest.Results), TraceID: pick(searchtest.Traces), Actor: pick(searchtest.Actors),
				}.Encode()
				if err != nil {
					t.Fatal(err)
				}
				r, err := record.Parse(data)
				if err != nil {
					t.Fatal(err)
				}
				batch = append(batch, r)
			}
			if err := recorder.Record(ctx, batch); err != nil {
				t.Fatal(err)
			}
			all = append(all, batch...)
		}
		if err := recorder.Close(); err != nil {
			t.Fatal(err)
		}
		if next, err := index.Next(ctx); err != nil || next < 4096+store.BlockSize {
			t.Fatalf("only %d of the records are indexed: %v", next, err)
		}
		for n := range 200 {
			f, before, limit := searchtest.Filter(rnd), uint64(rnd.IntN(5000)), 1+rnd.IntN(300)
			if rnd.IntN(4) == 0 {
				before = math.MaxInt64
			}
			if n < 2 { // of every block; no more are wanted than there are, but more are noticed
				f, before, limit = []record.Filter{{}, {Type: "issuer."}}[n], math.MaxInt64, len(all)+1
			}
			var want, got []uint64
			for p, r := range slices.Backward(all) {
				if uint64(p) < before && f.Match(r.Head) && len(want) < limit {
					want = append(want, uint64(p))
				}
			}
			err := search.Search{Ledger: l, Store: index, Filter: f}.Each(ctx, before, func(p uint64, data []byte) bool {
				got = append(got, p)
				return len(got) < limit
			})
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Fatalf("%+v before %d: %v\n%s", f, before, err, diff)
			}
		}
	})
}
