package feed

import (
	"testing"

	"github.com/nats-io/nats.go"
)

// FuzzAfter reads where the stream's last message says that it ends: never before its first record.
func FuzzAfter(f *testing.F) {
	f.Add("0", "1")
	f.Add("4096", "256")
	f.Add("18446744073709551615", "1")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, first, count string) {
		h := nats.Header{}
		h.Set(HeaderFirst, first)
		h.Set(HeaderCount, count)
		next, err := after(h)
		if begin, beginErr := position(h); err == nil && (beginErr != nil || next < begin || next == 0) {
			t.Fatalf("what begins at %q and has %q records ends at %d", first, count, next)
		}
	})
}
