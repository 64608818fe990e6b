// Package monitor shows how a process is doing: metrics for Prometheus, whether it is alive, and whether it is ready to do its
// work, with the check that fails if not.
//
// It guarantees that being looked at costs the services next to nothing: a store is read for metrics at most once in five
// seconds and for at most two, and a read that hangs holds up nothing but itself. Readiness is what the checks found within the
// last seconds, the same over HTTP and over grpc.health.v1. What is shown has no secrets in it and no labels without bound, such
// as hosts or serial numbers. The listener is plain HTTP without authentication, for the loopback or a network of one's own.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// phase is how far a process is in its life.
type phase int

const (
	starting phase = iota
	serving
	stopping
)

// Monitor is what one process shows. It always counts and checks; Listen makes it be seen.
type Monitor struct {
	log      *slog.Logger
	registry *prometheus.Registry
	calls    *calls
	server   *http.Server

	life  context.Context // ends with Close
	end   context.CancelFunc
	under sync.WaitGroup // what runs on its own

	mu       sync.Mutex
	closed   bool
	phase    phase
	services []*Service
	checked  time.Time // when the last round of checks ended
}

// New makes a monitor. Close it last of all.
func New(log *slog.Logger) (*Monitor, error) {
	if log == nil {
		return nil, errors.New("monitor.New: a log is required")
	}
	m := &Monitor{log: log, registry: prometheus.NewRegistry(), calls: newCalls()}
	m.life, m.end = context.WithCancel(context.Background())
	v := boot.Version()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sallyport_build_info", Help: "Always 1; the labels say which program this is.",
		ConstLabels: prometheus.Labels{"version": v.Version, "revision": v.Commit, "goversion": v.Go},
	}, func() float64 { return 1 })
	for _, c := range []prometheus.Collector{
		build, m.calls.total, m.calls.duration, m.calls.open, m.calls.denied, readiness{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := m.registry.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

// Meter counts the calls of a server.
func (m *Monitor) Meter() rpc.Meter { return m.calls }

// Serving notes that the start is over: calls are answered.
func (m *Monitor) Serving() { m.enter(serving) }

// Stopping notes that the stop has begun: from now on nothing is ready.
func (m *Monitor) Stopping() { m.enter(stopping) }

func (m *Monitor) enter(p phase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.phase = max(m.phase, p)
}

// Service begins the part of one service, such as "issuer".
func (m *Monitor) Service(name string) *Service {
	s := &Service{m: m, name: name, registerer: prometheus.WrapRegistererWith(prometheus.Labels{"service": name}, m.registry)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.services = append(m.services, s)
	return s
}

// spawn runs fn on its own; not once Close has begun.
func (m *Monitor) spawn(fn func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.under.Go(fn)
	}
	return !m.closed
}

// Close ends the listener and waits for all that runs. Run must have returned.
func (m *Monitor) Close() error {
	m.end()
	m.mu.Lock()
	m.closed, m.phase = true, stopping
	m.mu.Unlock()
	var err error
	if m.server != nil {
		if err = m.server.Close(); errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
	}
	m.under.Wait()
	return err
}

// Service is the part of one service. On a nil Service everything may be called and nothing is kept.
type Service struct {
	m          *Monitor
	name       string
	registerer prometheus.Registerer
	checks     []*check // guarded by m.mu
}

// Register shows metrics, with the label "service" added.
func (s *Service) Register(all ...prometheus.Collector) error {
	if s == nil {
		return nil
	}
	for _, c := range all {
		if err := s.registerer.Register(c); err != nil {
			return fmt.Errorf("registering the metrics of the %s: %w", s.name, err)
		}
	}
	return nil
}
