package monitor

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	surveyEvery = 5 * time.Second
	surveyBound = 2 * time.Second
	// surveyPatience is how long a scrape waits for a read that does not end when it should.
	surveyPatience = surveyBound + 500*time.Millisecond
)

// Survey is metrics that are read together, from a store or another process, when somebody scrapes.
type Survey struct {
	// Name is a word that is the survey's own within its service.
	Name string
	// Metrics are all that Read may show.
	Metrics []*prometheus.Desc
	// Read writes the values. It is given two seconds and is not called more often than every five; when it fails none of its
	// metrics are shown.
	Read func(context.Context, *Sheet) error
}

// Sheet takes the values of a survey.
type Sheet struct{ metrics []prometheus.Metric }

// Gauge writes a value that goes up and down.
func (s *Sheet) Gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.metrics = append(s.metrics, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...))
}

// Counter writes a value that only grows.
func (s *Sheet) Counter(d *prometheus.Desc, v float64, labels ...string) {
	s.metrics = append(s.metrics, prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...))
}

// Time writes a moment in seconds since 1970; the zero time is left out.
func (s *Sheet) Time(d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		s.Gauge(d, float64(t.UnixMilli())/1000, labels...)
	}
}

// Survey shows the metrics of a survey.
func (s *Service) Survey(c Survey) error {
	if s == nil {
		return nil
	}
	label := prometheus.Labels{"survey": c.Name}
	return s.Register(&survey{
		Survey: c, m: s.m, service: s.name,
		failed: prometheus.NewDesc("sallyport_survey_failed", "1 if the source of these metrics did not answer in time or gave an error; the metrics are then missing.", nil, label),
	})
}

type survey struct {
	Survey
	m       *Monitor
	service string
	failed  *prometheus.Desc

	mu      sync.Mutex
	running chan struct{} // closed when the read under way ends; nil when none is
	begun   time.Time     // of the last read
	sheet   []prometheus.Metric
	err     error
}

func (s *survey) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.failed
	for _, d := range s.Metrics {
		ch <- d
	}
}

func (s *survey) Collect(ch chan<- prometheus.Metric) {
	failed := 0.0
	sheet, ok := s.take()
	if !ok {
		failed = 1
	}
	ch <- prometheus.MustNewConstMetric(s.failed, prometheus.GaugeValue, failed)
	for _, m := range sheet {
		ch <- m
	}
}

// take gives what was read not long ago, or reads.
func (s *survey) take() ([]prometheus.Metric, bool) {
	s.mu.Lock()
	if s.running == nil && time.Since(s.begun) >= surveyEvery && s.m.spawn(s.read) {
		s.running, s.begun = make(chan struct{}), time.Now()
	}
	running, late := s.running, time.Until(s.begun.Add(surveyPatience))
	s.mu.Unlock()
	if running != nil {
		select {
		case <-running:
		case <-time.After(late):
			return nil, false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sheet, s.err == nil
}

func (s *survey) read() {
	ctx, cancel := context.WithTimeout(s.m.life, surveyBound)
	defer cancel()
	var sheet Sheet
	err := s.Read(ctx, &sheet)
	if err != nil {
		sheet.metrics = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.err == nil && s.m.life.Err() == nil {
		s.m.log.WarnContext(ctx, "metrics cannot be read", "service", s.service, "survey", s.Name, "error", err)
	}
	s.sheet, s.err = sheet.metrics, err
	close(s.running)
	s.running = nil
}
