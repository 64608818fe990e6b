package challenge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	ioTimeout      = 5 * time.Second
	maxHeader      = 4 << 10
	maxConnections = 64
	stopWait       = 2 * time.Second
)

// listener answers by itself. It listens only while there are answers.
type listener struct {
	address string
	log     *slog.Logger

	mu     sync.Mutex
	bodies map[string]string // by token
	server *http.Server
	done   chan struct{}
	bound  net.Addr
}

func (l *listener) serve(ctx context.Context, want map[string]string) error {
	l.mu.Lock()
	l.bodies = maps.Clone(want)
	running := l.server != nil
	l.mu.Unlock()
	switch {
	case len(want) == 0 && running:
		return l.stop(ctx)
	case len(want) == 0 || running:
		return nil
	}
	return l.start(ctx)
}

func (l *listener) start(ctx context.Context) error {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", l.address)
	if err != nil {
		return fmt.Errorf("listening for HTTP-01 validation: %w", err)
	}
	l.log.InfoContext(ctx, "listening for HTTP-01 validation", "address", lis.Addr().String())
	server := &http.Server{
		Handler: l, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
	}
	server.SetKeepAlivesEnabled(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(netutil.LimitListener(lis, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
			l.log.ErrorContext(ctx, "HTTP-01 validation", "error", err)
		}
	}()
	l.mu.Lock()
	l.server, l.done, l.bound = server, done, lis.Addr()
	l.mu.Unlock()
	return nil
}

func (l *listener) stop(ctx context.Context) error {
	l.mu.Lock()
	server, done := l.server, l.done
	l.server = nil
	l.mu.Unlock()
	if server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	err := server.Shutdown(ctx)
	if err != nil { // a client that takes its time is hung up on
		err = server.Close()
	}
	<-done
	l.log.InfoContext(ctx, "no longer listening")
	return err
}

// ServeHTTP answers the exact path of a challenge and nothing else.
func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, path)
	l.mu.Lock()
	body, known := l.bodies[name]
	l.mu.Unlock()
	w.Header()["Date"] = nil
	if !ok || !known {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if _, err := io.WriteString(w, body); err != nil {
		l.log.DebugContext(r.Context(), "HTTP-01 answer broke off", "error", err)
	}
}
