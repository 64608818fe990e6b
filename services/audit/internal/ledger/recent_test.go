package ledger

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestRecent: what is kept is right, is the last, and has its bound, also when records in between were read from the disk instead.
func TestRecent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var kept recent
	next, begun := uint64(0), uint64(0) // begun: from where on nothing was missed
	size := map[uint64]int{}
	for range 400 {
		if r.IntN(20) == 0 {
			next += 1 + r.Uint64N(1000)
			begun = next
		}
		var records [][]byte
		for i := range 1 + r.IntN(300) {
			one := make([]byte, 100+r.IntN(2000))
			copy(one, fmt.Sprint(next+uint64(i)))
			records = append(records, one)
			size[next+uint64(i)] = len(one)
		}
		kept.add(next, records)
		next += uint64(len(records))
		bytes, p := 0, next
		for p > begun && bytes+size[p-1] <= maxRecent {
			p--
			bytes += size[p]
			if got := string(kept.get(p)[:len(fmt.Sprint(p))]); got != fmt.Sprint(p) {
				t.Fatalf("position %d has %q", p, got)
			}
		}
		for _, other := range []uint64{p - 1, next, next + 1} {
			if one := kept.get(other); one != nil {
				t.Fatalf("position %d is kept, of %d to %d", other, p, next)
			}
		}
		if kept.bytes != bytes {
			t.Fatalf("%d bytes are counted, %d are kept", kept.bytes, bytes)
		}
	}
}
