package datadir

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// FuzzMarker: a marker that is taken is of a format that this program knows, any other is refused as damaged data.
func FuzzMarker(f *testing.F) {
	f.Add([]byte(`{"format": 1, "trust_domain": "example.org", "created": "2026-11-21T12:00:00Z", "complete": true}`))
	f.Add([]byte(`{"format": 2}`))
	f.Add([]byte(`{"format": 1, "trust_domain": "example.org", "new": 1}`))
	f.Add([]byte(`{"format": 1e0}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &Dir{Path: "/data", now: time.Now}
		err := d.parse(data)
		if err == nil && (d.Marker.Format < 1 || d.Marker.Format > Format || d.Marker.TrustDomain == "") {
			t.Fatalf("%q is %+v", data, d.Marker)
		}
		if err != nil && exit.Of(err) != exit.Data {
			t.Fatal(err)
		}
	})
}
