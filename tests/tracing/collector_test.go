package tracing

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

func newCollector(t *testing.T) *lab.Collector {
	t.Helper()
	l := lab.New(t.TempDir(), "")
	t.Cleanup(l.Close)
	c, err := l.Collector(t.Context())
	must(t, err)
	return c
}

// newHole takes connections and never answers.
func newHole(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	})
	t.Cleanup(func() { lis.Close(); all.Wait() })
	return lis.Addr().String()
}

// slack is for times that were stored with less precision.
const slack = time.Millisecond

// outside are spans that do not lie within their parents although somebody waits for them there, or begin before them.
func outside(c *lab.Collector, trace string) []string {
	var wrong []string
	all := c.Of(trace)
	for _, s := range all {
		p, ok := lab.ParentOf(all, s)
		early := ok && s.GetStartTimeUnixNano()+uint64(slack) < p.GetStartTimeUnixNano()
		late := ok && s.GetEndTimeUnixNano() > p.GetEndTimeUnixNano()+uint64(slack)
		if s.GetKind() == tracev1.Span_SPAN_KIND_CONSUMER || slices.Contains(apart, s.What()) {
			late = false
		}
		if strings.HasPrefix(s.GetName(), "record ") { // many at once, from when the first of them came
			early = false
		}
		if early || late || s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() {
			wrong = append(wrong, s.What())
		}
	}
	return wrong
}

func callOf(c *lab.Collector, trace, what string) string {
	for _, s := range c.Of(trace) {
		if s.What() != what {
			continue
		}
		for _, a := range s.GetAttributes() {
			if a.GetKey() == "sallyport.request_id" {
				return a.GetValue().GetStringValue()
			}
		}
	}
	return ""
}

// tellsNoSecrets holds all spans to names, ids and states.
func tellsNoSecrets(t *testing.T, c *lab.Collector) {
	t.Helper()
	allowed := []string{"rpc.system", "sallyport.caller", "sallyport.request_id", "sallyport.assignment", "sallyport.deployment", "sallyport.identity", "sallyport.host",
		"sallyport.target", "sallyport.generation", "sallyport.attempt", "sallyport.state", "sallyport.fingerprint", "sallyport.authority", "sallyport.request",
		"sallyport.event", "sallyport.subject"}
	for _, s := range c.All() {
		for _, a := range s.GetAttributes() {
			if !slices.Contains(allowed, a.GetKey()) || len(a.GetValue().GetStringValue()) > 256 {
				t.Errorf("%s has the attribute %s", s.What(), a)
			}
		}
	}
}
