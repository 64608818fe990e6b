package deployer_test

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestOverdueIsShown lets a renewal be late and wants those who watch to see it: the alerts hang on that.
func TestOverdueIsShown(t *testing.T) {
	b := newBench(t, servicetest.SQLite(t))
	h := b.join("web-1.example.com")
	s := h.subscribe(nil)
	b.apply(shop(h.name))
	h.serve(s)
	b.becomes("shop", healthy)
	s.cancel()
	m, err := monitor.New(servicetest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	b.stop()
	b.deps.Monitor = m.Service("deployer")
	b.start()
	shows := func(metric, labels string, want func(float64) bool) {
		t.Helper()
		line := regexp.MustCompile(`(?m)^sallyport_deployer_` + metric + `\{service="deployer"` + labels + `\} (\S+)$`)
		eventually(t, metric+" is what it should be", func() bool {
			answer := httptest.NewRecorder()
			m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			found := line.FindStringSubmatch(answer.Body.String())
			if found == nil {
				return false
			}
			v, err := strconv.ParseFloat(found[1], 64)
			return err == nil && want(v)
		})
	}
	zero, one, much := func(v float64) bool { return v == 0 }, func(v float64) bool { return v == 1 }, func(v float64) bool { return v > 86400 }
	shows("renewals_overdue", "", zero)
	shows("renewals_overdue_oldest_seconds", "", zero)
	shows("assignments", `,state="served"`, one)
	b.clock.advance(85 * 24 * time.Hour) // of 90; the host is away
	shows("renewals_overdue", "", one)
	shows("renewals_overdue_oldest_seconds", "", much)
	shows("agents_silent", "", one)
	shows("assignment_oldest_age_seconds", `,state="planned"`, func(v float64) bool { return v > 0 })
}
