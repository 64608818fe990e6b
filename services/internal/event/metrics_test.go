package event_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestMetrics follows events from the outbox to a consumer that does not want them.
func TestMetrics(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		relay, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "issuer", Log: servicetest.Log(t)})
		must(t, err)
		idle, err := event.NewRelay(event.RelayConfig{DB: w.to, JS: w.js, Service: "deployer", Log: servicetest.Log(t)})
		must(t, err)
		// until scrapes, each time as if for the first, until the metric is what it should be.
		until := func(what, metric string, want func(float64) bool) {
			t.Helper()
			line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(metric) + ` (\S+)$`)
			var text string
			for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(20 * time.Millisecond) {
				m, err := monitor.New(servicetest.Log(t))
				must(t, err)
				must(t, event.Monitor(m.Service("issuer"), event.Monitored{DB: w.from, JS: w.js, Relay: relay}))
				must(t, event.Monitor(m.Service("deployer"), event.Monitored{DB: w.to, JS: w.js, Relay: idle, Consumers: map[string][]string{"deployer": {event.FactsOf("issuer")}}}))
				answer := httptest.NewRecorder()
				m.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				must(t, m.Close())
				text = answer.Body.String()
				if found := line.FindStringSubmatch(text); found != nil {
					if v, err := strconv.ParseFloat(found[1], 64); err == nil && want(v) {
						return
					}
				}
			}
			t.Fatalf("%s: %s is not what it should be in\n%s", what, metric, text)
		}
		is := func(n float64) func(float64) bool { return func(v float64) bool { return v == n } }
		some := func(v float64) bool { return v > 0 && v < 60 }

		until("nothing waits", `sallyport_outbox_waiting_events{service="issuer"}`, is(0))
		w.emit("one", "two", "three")
		until("three wait", `sallyport_outbox_waiting_events{service="issuer"}`, is(3))
		until("they grow old", `sallyport_outbox_oldest_waiting_age_seconds{service="issuer"}`, some)
		w.spawn(relay.Run)
		until("they are gone", `sallyport_outbox_waiting_events{service="issuer"}`, is(0))
		until("nothing is old", `sallyport_outbox_oldest_waiting_age_seconds{service="issuer"}`, is(0))
		until("they are counted by type", `sallyport_events_published_total{service="issuer",type="issuer.request.issued"}`, is(3))

		var mood atomic.Value
		mood.Store("bad")
		var calls atomic.Int64
		seen := make(chan struct{})
		w.consume(func(context.Context, db.Tx, *eventv1.Event) error {
			switch mood.Load() {
			case "bad":
				if calls.Add(1) > 8 { // not at its first delivery
					<-seen
				}
				return fault.New(fault.Transient, "NOT_NOW", "not now")
			case "worse":
				return fault.New(fault.Permanent, "NEVER", "never")
			}
			return nil
		})
		until("what is not handled grows old", `sallyport_consumer_oldest_unhandled_age_seconds{consumer="deployer",service="deployer"}`, some)
		until("and comes again", `sallyport_consumer_redelivered_messages{consumer="deployer",service="deployer"}`, some)
		close(seen)
		until("until it is postponed", `sallyport_inbox_postponed_events{service="deployer"}`, is(3))
		until("and still old", `sallyport_consumer_oldest_unhandled_age_seconds{consumer="deployer",service="deployer"}`, some)
		mood.Store("worse")
		until("it is skipped", `sallyport_inbox_skipped_events{service="deployer"}`, is(3))
		until("and no longer postponed", `sallyport_inbox_postponed_events{service="deployer"}`, is(0))
		until("so nothing is left", `sallyport_consumer_oldest_unhandled_age_seconds{consumer="deployer",service="deployer"}`, is(0))
		mood.Store("good")

		w.broker.Stop()
		until("the broker is away", `sallyport_survey_failed{service="deployer",survey="consumer-deployer"}`, is(1))
		w.emit("four")
		until("and the outbox fills", `sallyport_outbox_waiting_events{service="issuer"}`, is(1))
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestConsumersApart: an event that two consumers of a service would hear would go to one of them.
func TestConsumersApart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b []string
		good bool
	}{
		{[]string{event.FactsOf("issuer"), event.FactsOf("deployer")}, []string{event.ObservationsOf("issuer")}, true},
		{[]string{event.FactsOf("issuer")}, []string{event.FactsOf("deployer")}, true},
		{[]string{event.FactsOf("*")}, []string{event.ObservationsOf("*")}, true},
		{[]string{event.FactsOf("issuer")}, []string{event.ObservationsOf("issuer"), event.FactsOf("issuer")}, false},
		{[]string{event.FactsOf("*")}, []string{event.FactsOf("issuer")}, false},
		{[]string{event.FactsOf("issuer")}, []string{event.FactsOf("*")}, false},
	} {
		w := newWorld(t, servicetest.SQLite(t))
		relay, err := event.NewRelay(event.RelayConfig{DB: w.from, JS: w.js, Service: "inventory", Log: servicetest.Log(t)})
		must(t, err)
		m, err := monitor.New(servicetest.Log(t))
		must(t, err)
		err = event.Monitor(m.Service("inventory"), event.Monitored{DB: w.from, JS: w.js, Relay: relay, Consumers: map[string][]string{"a": test.a, "b": test.b}})
		if (err == nil) != test.good {
			t.Errorf("%v and %v: %v", test.a, test.b, err)
		}
		must(t, m.Close())
	}
}
