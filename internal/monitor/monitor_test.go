package monitor

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sallyport-pki/sallyport/internal/identity"
)

const secret = "hunter2"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newMonitor(t *testing.T) *Monitor {
	t.Helper()
	m, err := New(slog.New(slog.DiscardHandler))
	must(t, err)
	return m
}

// gauge is the value of the metric that has this label value, and whether it is there.
func gauge(t *testing.T, m *Monitor, name, label string) (float64, bool) {
	t.Helper()
	all, err := m.registry.Gather()
	must(t, err)
	for _, family := range all {
		if family.GetName() != name {
			continue
		}
		for _, one := range family.GetMetric() {
			for _, l := range one.GetLabel() {
				if l.GetValue() == label {
					return one.GetGauge().GetValue(), true
				}
			}
		}
	}
	return 0, false
}

func wantGauge(t *testing.T, m *Monitor, name, label string, want float64) {
	t.Helper()
	if got, there := gauge(t, m, name, label); !there || got != want {
		t.Errorf("%s of %s: %v (there: %v), want %v", name, label, got, there, want)
	}
}

// However many scrape, and whatever becomes of a store: it is read seldom, and a read that hangs holds up nothing but itself.
func TestASurveyHurtsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t)
		s := m.Service("issuer")
		value := prometheus.NewDesc("x", "x", nil, nil)
		var reads atomic.Int32
		var fails atomic.Bool
		hang := make(chan struct{})
		close(hang)
		must(t, s.Survey(Survey{Name: "slow", Metrics: []*prometheus.Desc{value}, Read: func(ctx context.Context, sheet *Sheet) error {
			reads.Add(1)
			if _, bounded := ctx.Deadline(); !bounded {
				t.Error("a read without a deadline")
			}
			<-hang
			sheet.Gauge(value, float64(reads.Load()))
			if fails.Load() {
				return errors.New(secret)
			}
			return nil
		}}))
		must(t, s.Survey(Survey{Name: "quick", Read: func(context.Context, *Sheet) error { return nil }}))
		scrapes := func(n int) time.Duration {
			begun := time.Now()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					if _, err := m.registry.Gather(); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			return time.Since(begun)
		}
		scrapes(20)
		wantGauge(t, m, "x", "issuer", 1)
		time.Sleep(surveyEvery - time.Millisecond)
		wantGauge(t, m, "x", "issuer", 1)
		time.Sleep(time.Millisecond)
		wantGauge(t, m, "x", "issuer", 2)

		time.Sleep(surveyEvery)
		hang = make(chan struct{})
		if took := scrapes(20); took > surveyPatience {
			t.Errorf("scrapes took %s", took)
		}
		time.Sleep(time.Minute)
		if took := scrapes(20); took > 0 {
			t.Errorf("scrapes took %s, long after the read began to hang", took)
		}
		wantGauge(t, m, "sallyport_survey_failed", "slow", 1)
		wantGauge(t, m, "sallyport_survey_failed", "quick", 0)
		if _, there := gauge(t, m, "x", "issuer"); there || reads.Load() != 3 {
			t.Errorf("after %d reads the value is there: %v", reads.Load(), there)
		}

		close(hang)
		synctest.Wait()
		wantGauge(t, m, "x", "issuer", 4)
		time.Sleep(surveyEvery)
		fails.Store(true)
		wantGauge(t, m, "sallyport_survey_failed", "slow", 1)
		if _, there := gauge(t, m, "x", "issuer"); there {
			t.Error("a survey that failed shows what it has")
		}
		must(t, m.Close())
		fails.Store(false)
		time.Sleep(surveyEvery)
		if scrapes(1); reads.Load() != 5 {
			t.Errorf("%d reads, one of them after the end", reads.Load())
		}
	})
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor(t)
		broken, stuck := errors.New("dial: password "+secret), make(chan struct{})
		var failing, hanging atomic.Bool
		var under atomic.Int32
		a, b := m.Service("issuer"), m.Service("audit")
		a.Check(Check{Name: "database", Fails: "the database is away", Test: func(context.Context) error {
			if failing.Load() {
				return broken
			}
			return nil
		}})
		b.Check(Check{Name: "ledger", Fails: "the log is stuck", Test: func(context.Context) error {
			if under.Add(1) > 1 {
				t.Error("a check was begun again before it ended")
			}
			defer under.Add(-1)
			if hanging.Load() {
				<-stuck
			}
			return nil
		}})
		ready := func(service, want string) {
			t.Helper()
			err := m.Ready(service)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("ready(%q): %v, want %q", service, err, want)
			}
		}
		ask := func(accept string) (int, string) {
			w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/readyz", nil)
			r.Header.Set("Accept", accept)
			m.Handler().ServeHTTP(w, r)
			if strings.Contains(w.Body.String(), secret) {
				t.Errorf("everybody may read %s", w.Body)
			}
			return w.Code, w.Body.String()
		}
		ready("", "starting")
		m.Serving()
		ready("issuer", "not checked yet")
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { must(t, m.Run(ctx)) })
		second := func() { time.Sleep(checkEvery + time.Millisecond); synctest.Wait() }
		second()
		ready("", "")
		wantGauge(t, m, "sallyport_ready", "issuer", 1)
		if code, body := ask(""); code != http.StatusOK || !strings.HasPrefix(body, "ready\nok    process serving\nok    issuer database\n") {
			t.Errorf("%d %s", code, body)
		}

		failing.Store(true)
		second()
		ready("", "issuer database: the database is away")
		ready("audit", "")
		wantGauge(t, m, "sallyport_ready", "issuer", 0)
		wantGauge(t, m, "sallyport_ready", "audit", 1)
		if code, body := ask("application/json"); code != http.StatusServiceUnavailable ||
			!strings.Contains(body, `{"service":"issuer","check":"database","ok":false,"message":"the database is away"}`) {
			t.Errorf("%d %s", code, body)
		}
		failing.Store(false)
		second()
		ready("", "")

		// One that hangs fails, alone, and is not begun again.
		hanging.Store(true)
		time.Sleep(10 * time.Second)
		ready("audit", "the log is stuck")
		ready("issuer", "")
		hanging.Store(false)
		close(stuck)
		second()
		second()
		ready("", "")

		// Nobody checks any more: what was found once is no truth.
		stop()
		running.Wait()
		time.Sleep(checkStale + time.Second)
		ready("issuer", "have not run")
		m.Stopping()
		ready("issuer", "stopping")
		if code, body := ask(""); code != http.StatusServiceUnavailable || !strings.Contains(body, "FAILS process serving: the process is stopping") {
			t.Errorf("%d %s", code, body)
		}
		m.Serving() // too late
		ready("issuer", "stopping")
		must(t, m.Close())
	})
}

// aged gives an SVID and the CA certificate behind it.
type aged struct {
	identity.Source
	svid *x509svid.SVID
}

func (a aged) GetX509SVID() (*x509svid.SVID, error) { return a.svid, nil }

type strange struct{ identity.Source }

func (s strange) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return x509bundle.FromX509Authorities(td, []*x509.Certificate{}), nil
}

func TestIdentity(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ca, err := identity.CreateAuthority(td, nil)
	must(t, err)
	id, err := identity.ServiceID(td, "issuer")
	must(t, err)
	source, err := identity.NewMinted(ca, id, time.Hour)
	must(t, err)
	svid, err := source.GetX509SVID()
	must(t, err)
	root := ca.Bundle().X509Authorities()[0]
	still := aged{source, svid} // what NewMinted would replace
	for _, c := range []struct {
		what string
		src  identity.Source
		at   time.Time
		want string
	}{
		{"now", still, time.Now(), ""},
		{"after its end", still, svid.Certificates[0].NotAfter.Add(time.Second), "expired at"},
		{"before its begin", still, svid.Certificates[0].NotBefore.Add(-time.Second), "not valid before"},
		{"without the root", strange{still}, time.Now(), "does not lead to the trust bundle"},
	} {
		own, behind, err := behind(c.src, c.at)
		if own != svid.Certificates[0] || c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.what, err)
		}
		if _, lost := c.src.(strange); !lost && !behind.NotAfter.Equal(root.NotAfter) {
			t.Errorf("%s: the CA is %v", c.what, behind)
		}
	}
	m := newMonitor(t)
	must(t, m.Service("issuer").Identity(still, func() time.Time { return time.Now().AddDate(1, 0, 0) }))
	wantGauge(t, m, "sallyport_svid_expiry_timestamp_seconds", "issuer", float64(svid.Certificates[0].NotAfter.Unix()))
	wantGauge(t, m, "sallyport_svid_authority_expiry_timestamp_seconds", "issuer", float64(root.NotAfter.Unix()))
	must(t, m.Close())
}

func TestListen(t *testing.T) {
	if err := (Config{Listen: "9464"}).Validate(); err == nil || !strings.Contains(err.Error(), "127.0.0.1:9464") {
		t.Errorf("without a host: %v", err)
	}
	must(t, Config{}.Validate())
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer lis.Close()
	m := newMonitor(t)
	if err := m.Listen(t.Context(), Config{Listen: lis.Addr().String()}); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("where another listens: %v", err)
	}
	must(t, m.Listen(t.Context(), Config{}))
	must(t, m.Listen(t.Context(), Config{Listen: "127.0.0.1:0"}))
	must(t, m.Close())
	// Nobody who watches needs to be there.
	var nobody *Service
	nobody.Check(Check{})
	must(t, errors.Join(nobody.Register(nil), nobody.Survey(Survey{}), nobody.Identity(nil, nil)))
}
