package session

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// FuzzStanding reads what may be in the record of how the agent stands. Who only looks leaves it as it is; an agent that starts goes
// on from it whatever it says, and what it says itself is read as it was meant.
func FuzzStanding(f *testing.F) {
	log := slog.New(slog.DiscardHandler)
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	dir := filepath.Join(f.TempDir(), "contact")
	folder, err := disk.OpenFolder(dir, log)
	if err != nil {
		f.Fatal(err)
	}
	seed := func() {
		f.Helper()
		data, err := folder.Get(f.Context(), recordStanding)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	c := OpenContact(f.Context(), folder, log, clock)
	seed()
	c.Opened(f.Context())
	seed()
	c.Failed(f.Context(), fault.New(fault.Denied, "AGENT_LOCKED", "the agent is locked by an operator"), time.Minute)
	seed()
	c.Stop(f.Context())
	seed()
	f.Add([]byte(`{"connected":true,"since":"2999-01-01T00:00:00Z","heard":"2999-01-01T00:00:00+23:59"}`))
	f.Add([]byte(`{"connected":"yes"}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(t.TempDir(), "contact")
		folder, err := disk.OpenFolder(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = folder.Close() }()
		if err := folder.Put(recordStanding, data); err != nil {
			t.Fatal(err)
		}
		view, err := disk.ViewFolder(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = view.Close() }()
		seen, err := LoadStanding(t.Context(), view)
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := folder.Get(t.Context(), recordStanding); err != nil || string(kept) != string(data) {
			t.Fatalf("looking has left %q, %v", kept, err)
		}
		loaded, err := LoadStanding(t.Context(), folder)
		if err != nil || !reflect.DeepEqual(loaded, seen) {
			t.Fatalf("%+v, %v, and for who looks %+v", loaded, err, seen)
		}
		if _, err := folder.Get(t.Context(), recordStanding); loaded == nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("what makes no sense is not set aside: %v", err)
		}
		c := OpenContact(t.Context(), folder, log, clock)
		got, err := LoadStanding(t.Context(), view)
		switch {
		case err != nil || got == nil:
			t.Fatalf("%+v, %v", got, err)
		case got.Connected || !got.Stopped.IsZero() || !got.Next.IsZero():
			t.Fatalf("an agent that starts says %+v", got)
		case (loaded == nil || loaded.Connected) != got.Since.Equal(now) && (loaded == nil || !loaded.Since.Equal(now)):
			t.Fatalf("since %s, after %+v", got.Since, loaded)
		}
		c.Opened(t.Context())
		if got, err := LoadStanding(t.Context(), view); err != nil || got == nil || *got != (Standing{Connected: true, Since: now, Heard: now}) {
			t.Fatalf("connected: %+v, %v", got, err)
		}
	})
}
