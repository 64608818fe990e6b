package audit_test

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// fed reads everything in the stream of records and gives the position after the last; the first must be from. The records are
// of the world's facts in order.
func (w *world) fed(from uint64) uint64 {
	w.t.Helper()
	return w.lines(from, func(position uint64, line []byte) bool {
		r, err := auditlog.ParseRecord(line)
		return err == nil && r.Subject == "requests/"+strconv.FormatUint(position+1, 10)
	})
}

// lines is fed for records that right finds right.
func (w *world) lines(from uint64, right func(position uint64, line []byte) bool) uint64 {
	w.t.Helper()
	stream, err := w.js.Stream(w.t.Context(), event.AuditStream)
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := stream.Info(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	next := from
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := stream.GetMsg(w.t.Context(), seq)
		if err != nil {
			w.t.Fatal(err)
		}
		first, err := strconv.ParseUint(m.Header.Get("Sallyport-First-Position"), 10, 64)
		if err != nil || first != next {
			w.t.Fatalf("message %d begins at %q, want %d", seq, m.Header.Get("Sallyport-First-Position"), next)
		}
		lines := bytes.Split(bytes.TrimSuffix(m.Data, []byte("\n")), []byte("\n"))
		if m.Header.Get("Sallyport-Count") != strconv.Itoa(len(lines)) || len(m.Data) > 512<<10 {
			w.t.Fatalf("message %d says %s records and has %d in %d bytes", seq, m.Header.Get("Sallyport-Count"), len(lines), len(m.Data))
		}
		for i, line := range lines {
			if !right(first+uint64(i), line) {
				w.t.Fatalf("position %d has %s", first+uint64(i), line)
			}
		}
		next = first + uint64(len(lines))
	}
	return next
}

func TestFeed(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	reaches := func(from, n uint64) {
		t.Helper()
		eventually(t, "all records published", func() bool { return w.fed(from) >= n })
	}
	w.publish(w.facts(1500)...)
	reaches(0, 1500)
	w.publish(w.facts(1)...)
	reaches(0, 1501)

	// A restart goes on where it was.
	r.stop()
	w.publish(w.facts(10)...)
	r = w.start()
	reaches(0, 1511)

	// The broker is away for a moment.
	w.broker.Stop()
	w.broker.Start()
	w.publishAgain(5)
	reaches(0, 1516)

	// All messages expired: it goes on where it was.
	r.stop()
	stream, err := w.js.Stream(t.Context(), event.AuditStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.publish(w.facts(3)...)
	r = w.start()
	reaches(1516, 1519)
	w.publish(w.facts(3)...)
	reaches(1516, 1522)

	// A new stream gets everything.
	if err := w.js.DeleteStream(t.Context(), event.AuditStream); err != nil {
		t.Fatal(err)
	}
	if err := event.EnsureStreams(t.Context(), w.js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	w.publish(w.facts(2)...)
	reaches(0, 1524)
	r.stop()
}

// publishAgain publishes once the broker answers.
func (w *world) publishAgain(n int) {
	w.t.Helper()
	events := w.facts(n)
	eventually(w.t, "the broker answers", func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		_, err := w.js.AccountInfo(ctx)
		return err == nil
	})
	w.publish(events...)
}

// TestFeedOfAnotherHistory: a log that was restored is not published behind records that it does not have, however long it grows.
func TestFeedOfAnotherHistory(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	reaches := func(n uint64) {
		t.Helper()
		eventually(t, "all records published", func() bool { return w.fed(0) == n })
	}
	r := w.start()
	w.publish(w.facts(10)...)
	reaches(10)
	r.stop()
	backup := filepath.Join(t.TempDir(), "backup")
	copyDir(t, w.config.Directory, backup)
	r = w.start()
	w.publish(w.facts(5)...)
	reaches(15)
	r.stop()

	copyDir(t, backup, w.config.Directory)
	w.config.Database = servicetest.SQLite(t)
	var said said
	d := w.deps()
	d.Log = slog.New(slog.NewTextHandler(&said, nil))
	s, err := audit.New(t.Context(), w.config, d)
	if err != nil {
		t.Fatal(err)
	}
	r = w.run(s)
	eventually(t, "it is told that the log is too short", func() bool { return said.has("the log has only 1") })
	w.publish(w.facts(7)...)
	r.await(t, 17)
	eventually(t, "it is told that the log is another", func() bool {
		if n := w.fed(0); n != 15 {
			t.Fatalf("records up to position %d are published, from 15 on those of another history", n)
		}
		return said.has("another record at position 14")
	})
	if err := w.js.DeleteStream(t.Context(), event.AuditStream); err != nil {
		t.Fatal(err)
	}
	if err := event.EnsureStreams(t.Context(), w.js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	any := func(uint64, []byte) bool { return true }
	eventually(t, "a new stream has the history as it is now", func() bool { return w.lines(0, any) == uint64(17+r.setBack(t)) })
}

// said is a log that is looked into while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}
