package event

import (
	"strconv"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// What stands in the metadata of streams and consumers is read as it was written, and nothing else is taken for a time.
func FuzzMetadata(f *testing.F) {
	for _, seed := range []string{"", "-", "1-2", "-5--3", "1761000000000000", "1761000000000000-1761000000000001", "9223372036854775808", " 1", "1_0", "+1-2"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if g, err := parseGap(text); err == nil {
			if again, err := parseGap(g.String()); err != nil || again != g {
				t.Errorf("%q: %v, and then %v, %v", text, g, again, err)
			}
		}
		_, err := strconv.ParseInt(text, 10, 64)
		back := setBack(jetstream.StreamConfig{Metadata: map[string]string{metaSetBack: text}})
		noted := notedIn(map[string]string{metaNoted: text})
		if back.IsZero() != (err != nil) || !noted.Equal(back) {
			t.Errorf("%q: set back %v, noted %v", text, back, noted)
		}
	})
}
