package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	checkEvery = time.Second
	checkBound = 2 * time.Second
	// checkStale is the age at which what a round found counts for nothing: checks hang, or the process does.
	checkStale = 15 * time.Second
)

// Check finds out whether a service can do its work.
type Check struct {
	// Name is a word: "database".
	Name string
	// Fails says for everybody to read what is wrong when Test fails. The error itself is only logged.
	Fails string
	// Test must be cheap: it runs every second. It is given two seconds.
	Test func(context.Context) error
}

var errUnchecked = errors.New("not checked yet")

type check struct {
	Check
	running bool
	err     error
}

// Check adds a check: as long as it fails the service is not ready.
func (s *Service) Check(c Check) {
	if s == nil {
		return
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.checks = append(s.checks, &check{Check: c, err: errUnchecked})
}

// Run checks again and again until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	for {
		m.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// round runs all checks at once. One that has not ended since an earlier round is left to itself, and fails.
func (m *Monitor) round(ctx context.Context) {
	var all sync.WaitGroup
	ended := make(chan struct{})
	m.mu.Lock()
	for _, s := range m.services {
		for _, c := range s.checks {
			if c.running {
				continue
			}
			c.running = true
			all.Add(1)
			m.under.Go(func() { m.run(ctx, s, c, all.Done) })
		}
	}
	m.under.Go(func() { all.Wait(); close(ended) })
	m.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(checkBound + checkEvery):
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.checked = time.Now()
	m.mu.Unlock()
}

func (m *Monitor) run(ctx context.Context, s *Service, c *check, done func()) {
	defer done()
	bound, cancel := context.WithTimeout(ctx, checkBound)
	stuck := context.AfterFunc(bound, func() {
		if ctx.Err() == nil {
			m.note(ctx, s, c, fmt.Errorf("no answer within %s", checkBound))
		}
	})
	err := c.Test(bound)
	stuck()
	cancel()
	m.mu.Lock()
	c.running = false
	m.mu.Unlock()
	if ctx.Err() == nil {
		m.note(ctx, s, c, err)
	}
}

// note keeps what a check found, and logs it when it is news.
func (m *Monitor) note(ctx context.Context, s *Service, c *check, err error) {
	m.mu.Lock()
	was := c.err
	c.err = err
	quiet := m.phase != serving
	m.mu.Unlock()
	switch {
	case err != nil && (was == nil || errors.Is(was, errUnchecked)) && !quiet:
		m.log.WarnContext(ctx, "not ready", "service", s.name, "check", c.Name, "error", err)
	case err == nil && was != nil && !errors.Is(was, errUnchecked):
		m.log.InfoContext(ctx, "ready again", "service", s.name, "check", c.Name)
	}
}

// Finding is what a check found last.
type Finding struct {
	Service string `json:"service"`
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"` // what is wrong
}

// processChecks are about the process, whatever its services.
const processChecks = "process"

// findings are all, or those of one service and of the process.
func (m *Monitor) findings(service string) []Finding {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := []Finding{m.process()}
	for _, s := range m.services {
		if service != "" && service != s.name {
			continue
		}
		for _, c := range s.checks {
			f := Finding{Service: s.name, Check: c.Name, OK: c.err == nil}
			switch {
			case errors.Is(c.err, errUnchecked):
				f.Message = "it was not checked yet"
			case c.err != nil:
				f.Message = c.Fails
			}
			found = append(found, f)
		}
	}
	return found
}

// process is about the process itself; m.mu is held.
func (m *Monitor) process() Finding {
	f := Finding{Service: processChecks, Check: "serving"}
	switch age := time.Since(m.checked); {
	case m.phase == starting:
		f.Message = "the process is starting: it opens its data and brings it up to date"
	case m.phase == stopping:
		f.Message = "the process is stopping"
	case !m.checked.IsZero() && age > checkStale:
		f.Message = fmt.Sprintf("the checks have not run for %s", age.Round(time.Second))
	default:
		f.OK = true
	}
	return f
}

// Ready gives the first reason why a service, or any for "", is not ready, from memory; nil if it is.
func (m *Monitor) Ready(service string) error {
	for _, f := range m.findings(service) {
		if !f.OK {
			return fmt.Errorf("%s %s: %s", f.Service, f.Check, f.Message)
		}
	}
	return nil
}

// readiness shows the checks as metrics.
type readiness struct{ m *Monitor }

var (
	readyDesc = prometheus.NewDesc("sallyport_ready", "1 if all checks of the service pass and the process is neither starting nor stopping.", []string{"service"}, nil)
	checkDesc = prometheus.NewDesc("sallyport_check_passed", "1 if the check passed when it last ran.", []string{"service", "check"}, nil)
)

func (r readiness) Describe(ch chan<- *prometheus.Desc) {
	ch <- readyDesc
	ch <- checkDesc
}

func (r readiness) Collect(ch chan<- prometheus.Metric) {
	one := func(ok bool) float64 {
		if ok {
			return 1
		}
		return 0
	}
	ready, process := map[string]bool{}, false
	for _, f := range r.m.findings("") {
		ch <- prometheus.MustNewConstMetric(checkDesc, prometheus.GaugeValue, one(f.OK), f.Service, f.Check)
		if f.Service == processChecks {
			process = f.OK
			continue
		}
		was, seen := ready[f.Service]
		ready[f.Service] = f.OK && (was || !seen)
	}
	for service, ok := range ready {
		ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, one(ok && process), service)
	}
}
