package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// load is what clients do to a site while its certificate changes: one download that was begun before, and new connections
// all the time.
type load struct {
	h     *host
	roots *x509.CertPool
	held  *http.Response
	free  chan struct{} // closed to let the download end
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	done   int
	failed []error
	seen   map[string]bool
}

// begin puts a slow page behind the site, and load on it.
func begin(t *testing.T, h *host, roots *x509.CertPool) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{h: h, roots: roots, free: make(chan struct{}), stop: cancel, seen: map[string]bool{}}
	slow := httptest.NewServer(http.HandlerFunc(l.slow))
	t.Cleanup(func() {
		cancel()
		slow.CloseClientConnections()
		slow.Close()
	})
	backend(t, h.site, slow.Listener.Addr().String())

	client := &http.Client{Transport: &http.Transport{DialTLSContext: l.dial}}
	req := ok(http.NewRequestWithContext(ctx, http.MethodGet, "https://"+h.dns+"/slow", nil))(t)
	l.held = ok(client.Do(req))(t)
	for range 2 {
		l.wg.Go(func() { l.hammer(ctx) })
	}
	l.settle(t)
	return l
}

// backend adds a page that another server answers.
func backend(t *testing.T, site *lab.Site, address string) {
	t.Helper()
	text := string(ok(os.ReadFile(site.Config))(t))
	switch site.Kind {
	case "nginx":
		text = strings.Replace(text, "location / {", "location /slow { proxy_pass http://"+address+"; proxy_buffering off; }\n    location / {", 1)
	case "haproxy":
		text = strings.Replace(text, "  http-request return", "  use_backend slow if { path /slow }\n  http-request return", 1)
		text = strings.TrimRight(text, "\n") + " unless { path /slow }\nbackend slow\n  server slow " + address + "\n"
	}
	must(t, os.WriteFile(site.Config, []byte(text), 0o644))
	must(t, site.Restart(t.Context()))
}

// slow sends a line now and then until it may end.
func (l *load) slow(w http.ResponseWriter, r *http.Request) {
	for {
		if _, err := io.WriteString(w, "more\n"); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-l.free:
			_, _ = io.WriteString(w, "end\n")
			return
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *load) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d := tls.Dialer{Config: &tls.Config{ServerName: l.h.dns, RootCAs: l.roots, MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, "tcp", l.h.site.Address)
}

func (l *load) hammer(ctx context.Context) {
	for ctx.Err() == nil {
		served, err := l.once(ctx)
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.done++
		l.seen[served] = true
		if err != nil {
			l.failed = append(l.failed, err)
		}
		l.mu.Unlock()
		time.Sleep(2 * time.Millisecond) // the rest of the machine has work to do
	}
}

func (l *load) once(ctx context.Context) (served string, err error) {
	conn, err := l.dial(ctx, "", "")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", l.h.dns); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return lab.Fingerprint(conn.(*tls.Conn).ConnectionState().PeerCertificates[0]), nil
}

// settle waits until some more requests are through.
func (l *load) settle(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	from := l.done
	l.mu.Unlock()
	l.h.w.await(t, "clients to be served", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.done < from+10 {
			return errors.New("too few yet")
		}
		return nil
	})
}

// end wants no client to have seen a failure, and all these certificates to have been seen.
func (l *load) end(t *testing.T, want ...*x509.Certificate) {
	t.Helper()
	l.settle(t)
	close(l.free)
	body, err := io.ReadAll(l.held.Body)
	l.held.Body.Close()
	if err != nil || !strings.HasSuffix(string(body), "end\n") {
		t.Errorf("the download that was held across it broke off after %d bytes: %v", len(body), err)
	}
	l.stop()
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d new connections failed, first: %v", len(l.failed), l.done, l.failed[0])
	}
	for _, cert := range want {
		if !l.seen[lab.Fingerprint(cert)] {
			t.Errorf("no client has seen %s", lab.Fingerprint(cert))
		}
	}
}
