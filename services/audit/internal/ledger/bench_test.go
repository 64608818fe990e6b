package ledger

import (
	"context"
	"crypto/rand"
	"strconv"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

// BenchmarkAppend compares the ledger with Tessera alone, on the same disk in the same run.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 64, 1024, 4096} {
		all := records(b, 0, n)
		rate := func(b *testing.B) {
			b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "records/s")
		}
		b.Run("ledger/"+strconv.Itoa(n), func(b *testing.B) {
			l := open(b, b.TempDir())
			defer closeLedger(b, l)
			for b.Loop() {
				appendAll(b, l, all)
			}
			rate(b)
		})
		b.Run("tessera/"+strconv.Itoa(n), func(b *testing.B) {
			add := bareTessera(b)
			for b.Loop() {
				futures := make([]tessera.IndexFuture, n)
				for i := range all {
					futures[i] = add(context.Background(), tessera.NewEntry(all[i]))
				}
				for _, f := range futures {
					if _, err := f(); err != nil {
						b.Fatal(err)
					}
				}
			}
			rate(b)
		})
	}
}

func bareTessera(b *testing.B) tessera.AddFn {
	b.Helper()
	private, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	driver, err := posix.New(ctx, posix.Config{Path: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	a, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithCheckpointInterval(100*time.Millisecond).WithCheckpointRepublishInterval(0).WithBatching(BatchSize, 5*time.Millisecond))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := shutdown(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return a.Add
}
