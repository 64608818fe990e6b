package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Config says where the monitor is seen. It is read at start only.
type Config struct {
	// Listen is host:port for plain HTTP without authentication: /metrics for Prometheus, /healthz and /readyz for whoever
	// starts and watches the process. Absent: no listener. Take a loopback address, such as 127.0.0.1:9464, or one of a network
	// that only the monitoring reaches: who reaches it learns how much is going on here, though no names and no secrets.
	Listen string `yaml:"listen"`
}

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	if c.Listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fault.Invalid("metrics.listen", "%q: want host:port, such as 127.0.0.1:9464", c.Listen)
	}
	return nil
}

const (
	scrapeBound  = 10 * time.Second
	maxScrapes   = 4
	maxHeader    = 8 << 10
	requestBound = 5 * time.Second
)

// Listen begins to answer at the address, if there is one, until Close.
func (m *Monitor) Listen(ctx context.Context, c Config) error {
	if c.Listen == "" {
		return nil
	}
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("metrics.listen: another program listens on %s: stop it, or choose another port", c.Listen)
	}
	if err != nil {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	m.server = &http.Server{
		Handler: m.Handler(), ReadTimeout: requestBound, WriteTimeout: scrapeBound + requestBound, IdleTimeout: time.Minute,
		MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn),
	}
	m.log.InfoContext(ctx, "metrics are to be had", "url", "http://"+lis.Addr().String()+"/metrics")
	m.spawn(func() {
		if err := m.server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			m.log.ErrorContext(ctx, "metrics are not to be had any more", "error", err)
		}
	})
	return nil
}

// Handler answers /metrics, /healthz and /readyz.
func (m *Monitor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeBound,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", m.readyz)
	return mux
}

// readyz answers 200 or 503 and names each check, as text or, for who accepts it, as JSON.
func (m *Monitor) readyz(w http.ResponseWriter, r *http.Request) {
	answer := struct {
		Ready  bool      `json:"ready"`
		Checks []Finding `json:"checks"`
	}{Ready: true, Checks: m.findings("")}
	for _, f := range answer.Checks {
		answer.Ready = answer.Ready && f.OK
	}
	code, word := http.StatusOK, "ready"
	if !answer.Ready {
		code, word = http.StatusServiceUnavailable, "not ready"
	}
	w.Header().Set("Cache-Control", "no-store")
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(answer) // who asked may be gone
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, word)
	for _, f := range answer.Checks {
		if f.OK {
			_, _ = fmt.Fprintf(w, "ok    %s %s\n", f.Service, f.Check)
		} else {
			_, _ = fmt.Fprintf(w, "FAILS %s %s: %s\n", f.Service, f.Check, f.Message)
		}
	}
}
