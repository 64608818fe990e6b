package session

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/agent/internal/plan"
	"github.com/sallyport-pki/sallyport/agent/internal/spool"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

func open(t *testing.T, server *agenttest.Server, silence time.Duration) *Session {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var folders [3]*disk.Folder
	for i, name := range []string{"desired", "spool", "contact"} {
		f, err := disk.OpenFolder(filepath.Join(t.TempDir(), name), log)
		if err != nil {
			t.Fatal(err)
		}
		folders[i] = f
	}
	desired, err := plan.OpenDesired(t.Context(), folders[0], log)
	if err != nil {
		t.Fatal(err)
	}
	reports, err := spool.Open(t.Context(), folders[1], log)
	if err != nil {
		t.Fatal(err)
	}
	contact := OpenContact(t.Context(), folders[2], log, time.Now)
	s, err := New(Config{
		Client: server.Client("web1"), Info: &agentv1.AgentInfo{}, Desired: desired, Spool: reports, Contact: contact, Connect: func(context.Context) {}, Unanswered: func() bool { return false }, Back: func() {}, Changed: func() {}, Refused: func() {}, Silence: silence, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A stream that says nothing is opened again, where it left off.
func TestSilence(t *testing.T) {
	server := agenttest.Start(t, agenttest.Config{})
	s := open(t, server, 200*time.Millisecond)
	run(t, s.Listen)
	where := func() (all []bool) {
		for _, q := range server.Subscriptions() {
			all = append(all, q.GetSession() != "")
		}
		return all
	}
	// On a slow machine a stream may count as silent before it has said anything.
	server.Await("the stream to be opened again where it was, twice", func() bool {
		all := where()
		return slices.Contains(all, true) && len(all)-slices.Index(all, true) >= 2
	})
	all := where()
	if all[0] || slices.Contains(all[slices.Index(all, true):], false) {
		t.Errorf("with a session: %v", all)
	}
}

// A server that wants nothing to do with the session is asked for everything.
func TestSessionRefused(t *testing.T) {
	server := agenttest.Start(t, agenttest.Config{})
	s := open(t, server, time.Minute)
	if err := s.Desired.Apply(t.Context(), &agentv1.SubscribeResponse{Session: "ancient", Revision: 5}); err != nil {
		t.Fatal(err)
	}
	first := true
	server.Fail("Subscribe", func() error {
		if first {
			first = false
			return fault.New(fault.Conflict, "SESSION_UNKNOWN", "begin again")
		}
		return nil
	})
	run(t, s.Listen)
	server.Await("the stream", func() bool { return len(server.Subscriptions()) == 1 })
	if q := server.Subscriptions()[0]; q.GetSession() != "" || q.GetRevision() != 0 {
		t.Errorf("%v", q)
	}
}

// TryAgain ends a long pause.
func TestTryAgain(t *testing.T) {
	server := agenttest.Start(t, agenttest.Config{})
	s := open(t, server, time.Minute)
	locked := true
	server.Fail("Subscribe", func() error {
		if locked {
			return fault.New(fault.Denied, "LOCKED", "locked").After(time.Hour)
		}
		return nil
	})
	run(t, s.Listen)
	server.Await("the refusal", func() bool { return server.Calls("Subscribe") == 1 })
	server.Fail("Subscribe", nil)
	s.TryAgain()
	server.Await("the stream", func() bool { return len(server.Subscriptions()) == 1 })
}
