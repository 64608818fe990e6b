package fleet

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// filesEach is how many files an agent has open: its lock, its state folder, a connection, that of every tenth two at a proxy, and
// one more now and then. When all renew at once it is 4.3; who finds none then tries again.
const filesEach = 3.5

// clock is the time of agents and control plane.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// host is a real agent with a state folder and a folder of files of its own.
type host struct {
	name   string
	dir    string
	config string
	clock  *clock
	slow   *network // its way to the control plane, nil for the direct one

	watchful bool // soon notices what happens to its files

	stop context.CancelFunc
	done chan error

	mu   sync.Mutex
	said map[string][]time.Time // when it said each message of interest, by the machine's clock
	last []string               // what it said last, whatever it was
}

// What agents say.
const (
	saidEnrolled  = "enrolled"
	saidConnected = "connected to the server"
	saidCSR       = "CSR handed in"
	saidRenewed   = "identity renewed"
	saidBack      = "identity renewed after it had expired"
)

func (h *host) certificate() string { return filepath.Join(h.dir, "files", "site.pem") }

// fingerprint is of the certificate that lies there.
func (h *host) fingerprint(t *testing.T) string {
	t.Helper()
	block, _ := pem.Decode(ok(os.ReadFile(h.certificate()))(t))
	if block == nil {
		t.Fatalf("%s: no PEM in %s", h.name, h.certificate())
	}
	return lab.Fingerprint(ok(x509.ParseCertificate(block.Bytes))(t))
}

// newHost prepares a host.
func newHost(dir, name, server string, c *clock, slow *network, watchful bool) (*host, error) {
	h := &host{name: name, dir: filepath.Join(dir, name), clock: c, slow: slow, watchful: watchful, said: map[string][]time.Time{}}
	h.config = filepath.Join(h.dir, "agent.yaml")
	if err := os.MkdirAll(filepath.Join(h.dir, "files"), 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("server: %s\nhost: %s\nstate_dir: %s/state\ntoken_file: %s/token\nconnectors: {files: {allow: [%s/files]}}\nscan: {listeners: \"off\"}\n",
		server, name, h.dir, h.dir, h.dir)
	if watchful {
		text += "verify: {interval: 1s}\n"
	}
	if slow != nil {
		text += "proxy: http://" + slow.address + "\n"
	}
	return h, os.WriteFile(h.config, []byte(text), 0o600)
}

// start lets the agent run.
func (h *host) start() error {
	cfg, err := agent.Load(h.config)
	if err != nil {
		return err
	}
	a, err := agent.New(cfg, agent.Deps{Log: slog.New(listener{h}), Now: h.clock.now})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.done = stop, make(chan error, 1)
	go func() { h.done <- a.Run(ctx) }()
	return nil
}

// end stops the agent and waits for it.
func (h *host) end() error {
	if h.stop == nil {
		return nil
	}
	h.stop()
	h.stop = nil
	select {
	case err := <-h.done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("%s does not stop", h.name)
	}
}

// status is the agent's own word, by what it keeps on disk.
func (h *host) status(t *testing.T) *agent.Status {
	t.Helper()
	a := ok(agent.New(ok(agent.Load(h.config))(t), agent.Deps{Log: slog.New(slog.DiscardHandler), Now: h.clock.now}))(t)
	return ok(a.Status(t.Context()))(t)
}

// since gives when it said so for the first time after some moment.
func (h *host) since(text string, after time.Time) (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range h.said[text] {
		if at.After(after) {
			return at, true
		}
	}
	return time.Time{}, false
}

// tail is what it said last.
func (h *host) tail() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.last, "\n")
}

// listener notes what an agent says and when.
type listener struct{ *host }

func (listener) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l listener) WithAttrs([]slog.Attr) slog.Handler             { return l }
func (l listener) WithGroup(string) slog.Handler                  { return l }

func (l listener) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := r.Time.Format(time.TimeOnly) + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.last = append(l.last[max(0, len(l.last)-7):], line)
	switch r.Message {
	case saidEnrolled, saidConnected, saidCSR, saidRenewed, saidBack:
		l.said[r.Message] = append(l.said[r.Message], r.Time)
	}
	return nil
}
