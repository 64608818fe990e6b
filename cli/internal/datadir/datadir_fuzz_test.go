package datadir

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
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

// FuzzRestored: what is taken says from when to when something was lost, in times that the deployer's configuration can name, and is
// the same when it is kept again; all else is damaged.
func FuzzRestored(f *testing.F) {
	f.Add([]byte(`{"backup": "2026-11-21T03:00:00.123456789Z", "at": "2026-11-21T12:00:00Z"}` + "\n"))
	f.Add([]byte(`{"backup": "2026-11-21T12:00:00Z", "at": "2026-11-21T12:00:00Z"}`))
	f.Add([]byte(`{"backup": "2026-11-21T12:00:00Z", "at": "2026-11-21T03:00:00Z"}`))
	f.Add([]byte(`{"at": "2026-11-21T03:00:00Z"}`))
	f.Add([]byte(`{"backup": "2026-11-21T03:00:00Z"}`))
	f.Add([]byte("{}"))
	f.Add([]byte("null"))
	f.Add([]byte{})
	f.Add([]byte(`{"backup": "2026-11-21T03:00:00Z", "at": "2026-11-21T12:00:00Z"}` + strings.Repeat(" ", maxFile)))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := t.TempDir()
		write(t, filepath.Join(path, FileRestored), string(data))
		r, err := (&Dir{Path: path}).Restored()
		if err != nil {
			if exit.Of(err) != exit.Data || r != nil {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		for _, at := range []time.Time{r.Backup, r.At} {
			if named, err := time.Parse(time.RFC3339Nano, at.Format(time.RFC3339Nano)); err != nil || !named.Equal(at) || at.IsZero() {
				t.Fatalf("%v is named %v, %v", at, named, err)
			}
		}
		kept, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseRestored(kept); err != nil || !again.At.Equal(r.At) || !again.Backup.Equal(r.Backup) || r.At.Before(r.Backup) || len(data) > maxFile {
			t.Fatalf("%+v, %v, after %+v", again, err, r)
		}
	})
}

// FuzzClock starts by a clock that stands at noon, whatever time was noted: it is refused if that was later than the slack, by a
// comparison of other numbers, and what is no time is damaged.
func FuzzClock(f *testing.F) {
	for _, s := range []string{
		"2026-11-21T12:00:00Z\n", "2026-11-21T12:02:00Z", "2026-11-21T12:02:00.000000001Z", "2026-11-21T14:01:00+02:00", "2026-11-21T12:01:00-02:00",
		"9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "noon", "", "2026-11-21T12:00:00Z" + strings.Repeat("\n", maxFile),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &Dir{Path: t.TempDir(), Marker: Marker{Created: noon.Add(-time.Hour)}, now: at(noon)}
		write(t, d.Join(FileClock), string(data))
		err := d.checkClock()
		noted, bad := parseClock(data)
		want := exit.OK
		switch {
		case bad != nil || len(data) > maxFile:
			want = exit.Data
		case noted.Unix()-noon.Unix() > 120 || noted.Unix()-noon.Unix() == 120 && noted.Nanosecond() > 0:
			want = exit.Clock
		}
		if exit.Of(err) != want {
			t.Fatalf("%q: %v, want code %d", data, err, want)
		}
		if after, err := os.ReadFile(d.Join(FileClock)); err != nil || string(after) != string(data) {
			t.Fatalf("it was changed to %q, %v", after, err)
		}
	})
}
