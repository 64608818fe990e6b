//go:build linux

package agent_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent"
	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/nginx"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestMain(m *testing.M) { connectortest.Main(m) }

const name = "x.test"

// world is a control plane, a host with an nginx, and its agent.
type world struct {
	*testing.T
	*agenttest.Server
	ca    *connectortest.CA
	nginx *connectortest.Server
	old   connector.Pair
	cfg   agent.Config
	log   *logs
	agent *agent.Agent
	stop  func()
}

type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newWorld has the test run beside others: they mostly wait for servers and disks.
func newWorld(t *testing.T, control agenttest.Config) *world {
	t.Helper()
	t.Parallel()
	w := &world{T: t, ca: connectortest.NewCA(t), log: &logs{}}
	if control.Issue == nil {
		control.Issue = func(csr *pki.CSR) ([][]byte, error) { return w.issue(csr), nil }
	}
	w.Server = agenttest.Start(t, control)
	dir := t.TempDir()
	w.nginx = connectortest.Nginx(t, dir, "")
	w.old = w.ca.Pair(t, name)
	w.nginx.Put(w.old)
	w.nginx.Start()
	w.cfg = agent.Config{
		Server: w.Server.Address, StateDir: filepath.Join(dir, "state"), Host: "web1",
		Connectors: agent.Connectors{Nginx: &nginx.Config{
			Config: pemfile.Config{Allow: []string{w.nginx.TLS}}, Binary: w.nginx.Binary(), Main: w.nginx.Config, PIDFile: w.nginx.PIDFile,
		}},
		Verify: agent.Verify{Interval: config.Duration(200 * time.Millisecond), Wait: config.Duration(time.Minute)},
		Scan:   agent.Scan{Listeners: "off"},
	}
	t.Cleanup(func() {
		if w.stop != nil {
			w.halt()
		}
		if t.Failed() {
			t.Logf("agent's log:\n%s", w.log)
		}
	})
	return w
}

func (w *world) issue(csr *pki.CSR) [][]byte {
	var out [][]byte
	for _, c := range w.ca.Sign(w.T, csr.Request.PublicKey, nil, csr.Names.Strings()...) {
		out = append(out, c.Raw)
	}
	return out
}

func (w *world) make() {
	w.Helper()
	if err := w.cfg.Validate(); err != nil {
		w.Fatal(err)
	}
	a, err := agent.New(w.cfg, agent.Deps{Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		w.Fatal(err)
	}
	w.agent = a
}

func (w *world) enrol() {
	w.Helper()
	w.make()
	if _, fresh, err := w.agent.Enroll(w.Context(), w.Token("t1"), false); err != nil || !fresh {
		w.Fatalf("enrolling: %v, %v", fresh, err)
	}
}

// run starts the agent; halt stops it and fails the test if it does not stop well.
func (w *world) run() {
	w.Helper()
	w.make()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.agent.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("the agent ended with: %v", err)
		}
	}
}

func (w *world) halt() {
	w.stop()
	w.stop = nil
}

func (w *world) assignment() *agentv1.Assignment {
	return &agentv1.Assignment{
		Id: "a1", Generation: 1, Attempt: 1, KeyType: typev1.KeyType_KEY_TYPE_ECDSA_P256, Names: &typev1.Names{Dns: []string{name}},
		Target: &agentv1.Target{Name: "web", Connector: "nginx", Settings: map[string]string{
			"certificate": w.nginx.Files["certificate"], "key": w.nginx.Files["key"], "verify": w.nginx.Address,
		}},
	}
}

func (w *world) want(r *agentv1.ReportAssignmentRequest, outcome agentv1.Outcome, reason string) {
	w.Helper()
	if r.GetOutcome() != outcome || r.GetReason() != reason {
		w.Fatalf("reported %v %s (%s), want %v %s", r.GetOutcome(), r.GetReason(), r.GetMessage(), outcome, reason)
	}
}

func (w *world) shows() string {
	w.Helper()
	f, err := w.nginx.Shows(name)
	if err != nil {
		w.Fatal(err)
	}
	return string(f)
}

func TestFromTokenToServed(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	w.enrol()
	w.run()
	w.Assign(w.assignment())
	first := w.Report(1)
	w.want(first, agentv1.Outcome_OUTCOME_SERVED, "")
	if first.GetServed() != w.shows() || first.GetServed() == string(pki.FingerprintOf(w.old.Leaf().Raw)) || first.GetAddress() != w.nginx.Address {
		t.Fatalf("reported %v, nginx shows %s", first, w.shows())
	}
	w.Change("a1", func(a *agentv1.Assignment) { a.Generation, a.Chain, a.CsrReceived = 2, nil, false })
	second := w.Report(2)
	w.want(second, agentv1.Outcome_OUTCOME_SERVED, "")
	if second.GetServed() == first.GetServed() || second.GetServed() != w.shows() || second.GetGeneration() != 2 {
		t.Fatalf("reported %v, nginx shows %s", second, w.shows())
	}
	leaf := w.leaf("certificate")
	csr, err := x509.ParseCertificateRequest(w.CSRs("a1", 2, 1)[0])
	if err != nil || pki.SPKIHash(csr.PublicKey) != pki.SPKIHash(leaf.PublicKey) {
		t.Fatalf("installed is another key than was asked for: %v", err)
	}
	w.halt()
	for _, secret := range []string{"PRIVATE KEY", w.Token("t2").String()[:20]} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	w.noKeys()
}

func (w *world) leaf(part string) *x509.Certificate {
	w.Helper()
	data, err := os.ReadFile(w.nginx.Files[part])
	if err != nil {
		w.Fatal(err)
	}
	chain, err := pki.ParseChainPEM(data)
	if err != nil {
		w.Fatal(err)
	}
	return chain[0]
}

// noKeys fails the test if a pending key stays.
func (w *world) noKeys() {
	w.Helper()
	w.Await("pending keys to be erased", func() bool {
		entries, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "keys"))
		return err == nil && len(entries) == 0
	})
}

// fingerprint is of the installed certificate.
func (w *world) fingerprint() pki.Fingerprint { return pki.FingerprintOf(w.leaf("certificate").Raw) }
