package session

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Since when the agent is refused for one reason outlives tries and restarts, and ends with the stream.
func TestStanding(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	folder, err := disk.OpenFolder(filepath.Join(t.TempDir(), "contact"), log)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	start := func() *Contact {
		return OpenContact(t.Context(), folder, log, func() time.Time { return now })
	}
	want := func(what string, want Standing) {
		t.Helper()
		got, err := LoadStanding(t.Context(), folder)
		if err != nil || got == nil || *got != want {
			t.Errorf("%s: %+v %v, want %+v", what, got, err, want)
		}
	}
	if got, err := LoadStanding(t.Context(), folder); got != nil || err != nil {
		t.Errorf("before it ever ran: %v %v", got, err)
	}
	begun := now
	c := start()
	want("started", Standing{Since: begun})
	now = now.Add(time.Minute)
	opened := now
	c.Opened(t.Context())
	want("connected", Standing{Connected: true, Since: opened, Heard: opened})
	now = now.Add(heardEvery / 2)
	c.Answered(t.Context())
	want("heard a moment before", Standing{Connected: true, Since: opened, Heard: opened})
	now = now.Add(heardEvery)
	heard := now
	c.Answered(t.Context())
	want("heard", Standing{Connected: true, Since: opened, Heard: heard})

	now = now.Add(time.Hour)
	locked := now
	refusal := fault.New(fault.Denied, "AGENT_LOCKED", "the agent is locked by an operator")
	refused := Standing{Refused: true, Since: locked, Heard: heard, Reason: "AGENT_LOCKED", Message: refusal.Error()}
	for range 2 {
		c.Failed(t.Context(), refusal, time.Minute)
		refused.Next = now.Add(time.Minute)
		want("locked", refused)
		now = now.Add(time.Minute)
	}
	c.Stop(t.Context())
	stopped := refused
	stopped.Next, stopped.Stopped = time.Time{}, now
	want("stopped", stopped)
	c = start()
	c.Failed(t.Context(), refusal, time.Minute)
	refused.Next = now.Add(time.Minute)
	want("locked still", refused)
	now = now.Add(time.Minute)
	c.Failed(t.Context(), errors.New("no route to host"), time.Second)
	want("away", Standing{Since: now, Heard: heard, Message: "no route to host", Next: now.Add(time.Second)})
	now = now.Add(time.Minute)
	unknown := fault.New(fault.Unauthenticated, "CERTIFICATE_EXPIRED", "outside its life")
	c.Failed(t.Context(), unknown, time.Second)
	want("not let in", Standing{Refused: true, Since: now, Heard: heard, Reason: "CERTIFICATE_EXPIRED", Message: unknown.Error(), Next: now.Add(time.Second)})
	now = now.Add(time.Minute)
	c.Opened(t.Context())
	heard = now
	now = now.Add(time.Minute)
	c.Failed(t.Context(), errors.New("EOF"), time.Second)
	want("broken off", Standing{Since: now, Heard: heard, Message: "EOF", Next: now.Add(time.Second)})
	now = now.Add(time.Minute)
	c.Opened(t.Context())
	want("unlocked", Standing{Connected: true, Since: now, Heard: now})
	set := now
	now = now.Add(-time.Hour)
	c.Answered(t.Context())
	want("heard by a clock that was set back", Standing{Connected: true, Since: set, Heard: now})
	now = now.Add(-time.Hour)
	c.Opened(t.Context())
	want("the stream goes on after that", Standing{Connected: true, Since: set, Heard: now})
	start()
	want("killed and started again", Standing{Since: now, Heard: now})
}
