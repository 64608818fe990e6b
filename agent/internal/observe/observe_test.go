//go:build linux

package observe

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/scan"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func observer(t *testing.T, server *agenttest.Server, paths ...string) (*Observer, *logs) {
	t.Helper()
	l := &logs{}
	log := slog.New(slog.NewTextHandler(l, nil))
	scanner, err := scan.New(scan.Config{Paths: paths, Listeners: "off", Names: func() []string { return nil }, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	o, err := New(Config{
		Answered: func(context.Context) {},
		Client:   server.Client("web1"), Info: &agentv1.AgentInfo{Version: "v"}, Scanner: scanner, Log: log, Now: time.Now,
		Intervals: func() (time.Duration, time.Duration) { return time.Second, time.Second },
	})
	if err != nil {
		t.Fatal(err)
	}
	return o, l
}

// run runs until stop, which waits for its end.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestWrongClockIsSaidOnce(t *testing.T) {
	server := agenttest.Start(t, agenttest.Config{Skew: time.Hour})
	o, l := observer(t, server)
	run(t, o.Heartbeat)
	server.Await("some heartbeats", func() bool { return server.Calls("ReportObservation") >= 4 })
	if n := l.count("clock and the server's are apart"); n != 1 {
		t.Errorf("said %d times", n)
	}
	for _, c := range []struct {
		off  time.Duration
		said int
	}{{0, 0}, {20 * time.Second, 0}, {-20 * time.Second, 0}, {time.Minute, 1}, {-time.Minute, 1}} {
		o, l := observer(t, server)
		now := time.Now()
		for range 3 {
			o.compare(t.Context(), now, now.Add(c.off))
		}
		if n := l.count("are apart"); n != c.said {
			t.Errorf("%v: said %d times", c.off, n)
		}
		if o.compare(t.Context(), now, now); l.count("agree again") != c.said {
			t.Errorf("%v: %d times that they agree", c.off, l.count("agree again"))
		}
	}
}

// A big scan comes in parts; parts that are not taken at once are sent again.
func TestScanInParts(t *testing.T) {
	dir := t.TempDir()
	data := pki.EncodeChainPEM(connectortest.NewCA(t).Pair(t, "x.test").Chain())
	const files = 1203
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.pem", i)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := agenttest.Start(t, agenttest.Config{})
	var calls atomic.Int32
	server.Fail("ReportObservation", func() error {
		if calls.Add(1)%2 == 0 {
			return fault.New(fault.Transient, "BUSY", "later")
		}
		return nil
	})
	o, _ := observer(t, server, dir)
	n, err := o.once(t.Context())
	if err != nil || n != files {
		t.Fatalf("%d, %v", n, err)
	}
	scans := server.Scans()
	if len(scans) != 1 || len(scans[0]) != files || server.Calls("ReportObservation") < 4 {
		t.Fatalf("%d scans in %d calls", len(scans), server.Calls("ReportObservation"))
	}
	for i, s := range scans[0] {
		if s.GetLocation() != filepath.Join(dir, fmt.Sprintf("%04d.pem", i)) || len(s.GetChain()) != 2 {
			t.Fatalf("%d: %s", i, s.GetLocation())
		}
	}
	// A scan that is not taken has no end.
	server.Fail("ReportObservation", func() error { return fault.New(fault.InvalidArgument, "NO", "no") })
	if _, err := o.once(t.Context()); err == nil || len(server.Scans()) != 1 {
		t.Errorf("%v", err)
	}
}

func TestScansAgain(t *testing.T) {
	server := agenttest.Start(t, agenttest.Config{})
	o, _ := observer(t, server, t.TempDir())
	stop := run(t, o.Scan)
	server.Await("two scans", func() bool { return len(server.Scans()) >= 2 })
	stop()
	o.ScanInterval = time.Hour // the host's own word
	if o.scanInterval() != time.Hour {
		t.Error(o.scanInterval())
	}
}
