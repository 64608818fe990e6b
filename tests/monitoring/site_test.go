// Package monitoring shows that what docs/monitoring.md says of metrics, alerts, health and readiness is what a running control
// plane does: every metric that is exported is documented and the other way round, every alert names metrics that are exported,
// and readiness follows the database, the broker and the process itself.
package monitoring

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// ground is a file system in memory, of the jail alone.
const ground = "/mnt"

const (
	patience = 90 * time.Second
)

// hosts are those of the tests that run side by side, as if each had a machine of its own: 127.0.0.11 and so on.
var (
	hosts    sync.Map
	machines atomic.Int32
)

// machine is the address at which the test's programs listen.
func machine(t *testing.T) string {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	host, found := hosts.Load(name)
	if !found {
		t.Fatalf("%s has no machine: it begins by newLab", name)
	}
	return host.(string)
}

// endpoint has the port that deploy/config and docs/monitoring.md give.
func endpoint(t *testing.T) string { t.Helper(); return machine(t) + ":9464" }

func config(t *testing.T) string { t.Helper(); return "metrics: {listen: " + endpoint(t) + "}\n" }

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "6") // they mostly wait
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, m.Run))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ok takes the result of a call that must succeed.
func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func repository(t *testing.T) string {
	t.Helper()
	for dir := ok(os.Getwd())(t); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
	}
	t.Fatal("the repository's root is not above the test")
	return ""
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	hosts.Store(t.Name(), fmt.Sprintf("127.0.0.%d", 11+machines.Add(1)))
	bin := filepath.Join(repository(t), "bin")
	for _, program := range []string{"sallyport", "sallyport-agent", "sallyport-inventory"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	l := lab.New(ok(os.MkdirTemp(ground, ""))(t), bin)
	t.Cleanup(func() {
		l.Close()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(l.Dir, "*.log"))
			for _, path := range logs {
				data, _ := os.ReadFile(path)
				lines := strings.Split(strings.TrimSpace(string(data)), "\n")
				t.Logf("--- %s\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-30):], "\n"))
			}
		}
		must(t, os.RemoveAll(l.Dir))
	})
	return l
}

// client takes a new connection each time, so that a listener that has gone is noticed.
var client = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

// get asks the process under test.
func get(t *testing.T, path, accept string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+endpoint(t)+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Accept", accept)
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// scraped is what a scrape gave.
type scraped map[string]*dto.MetricFamily

func scrape(t *testing.T) (scraped, string) {
	t.Helper()
	code, body, err := get(t, "/metrics", "text/plain")
	must(t, err)
	if code != http.StatusOK {
		t.Fatalf("/metrics answers %d: %s", code, body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	return ok(parser.TextToMetricFamilies(strings.NewReader(body)))(t), body
}

// settled scrapes when no record waits for a checkpoint: what was seen is taken to stay so.
func settled(t *testing.T) scraped {
	t.Helper()
	var s scraped
	must(t, lab.Await(t.Context(), patience, "all records to be under a checkpoint", func() error {
		s, _ = scrape(t)
		v, err := s.value("sallyport_audit_checkpoint_behind_records")
		if err == nil && v > 0 {
			err = fmt.Errorf("%v wait", v)
		}
		return err
	}))
	return s
}

// value of the metric whose labels are these, among others; a histogram gives its count.
func (s scraped) value(name string, labels ...string) (float64, error) {
	family := s[name]
	if family == nil {
		return 0, fmt.Errorf("there is no %s", name)
	}
	sum, found := 0.0, false
next:
	for _, m := range family.GetMetric() {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		for _, l := range labels {
			name, want, _ := strings.Cut(l, "=")
			if have[name] != want {
				continue next
			}
		}
		found = true
		sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	if !found {
		return 0, fmt.Errorf("%s has none with %v", name, labels)
	}
	return sum, nil
}

// await scrapes until a metric is what it should be.
func await(t *testing.T, what string, want func(float64) bool, name string, labels ...string) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, what, func() error {
		s, _ := scrape(t)
		v, err := s.value(name, labels...)
		if err == nil && !want(v) {
			err = fmt.Errorf("%s %v is %v", name, labels, v)
		}
		return err
	}))
}

func is(n float64) func(float64) bool      { return func(v float64) bool { return v == n } }
func atLeast(n float64) func(float64) bool { return func(v float64) bool { return v >= n } }

// readiness waits until /readyz answers so, with this line in it.
func readiness(t *testing.T, code int, line string) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, fmt.Sprintf("/readyz to answer %d with %q", code, line), func() error {
		got, body, err := get(t, "/readyz", "")
		if err == nil && (got != code || !strings.Contains(body, line)) {
			err = fmt.Errorf("it answers %d: %s", got, body)
		}
		return err
	}))
}
