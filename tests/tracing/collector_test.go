package tracing

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// collector takes spans as any OpenTelemetry collector does.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	address string

	mu    sync.Mutex
	spans []span
}

type span struct {
	*tracev1.Span
	service string
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &collector{address: lis.Addr().String()}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
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

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		service := ""
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = strings.TrimPrefix(a.GetValue().GetStringValue(), "sallyport-")
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span{s, service})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

func (c *collector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.spans)
}

func (c *collector) of(trace string) []span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []span
	for _, s := range c.spans {
		if hex.EncodeToString(s.GetTraceId()) == trace {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b span) int { return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano()) })
	return all
}

var kinds = map[tracev1.Span_SpanKind]string{
	tracev1.Span_SPAN_KIND_INTERNAL: "internal", tracev1.Span_SPAN_KIND_SERVER: "server",
	tracev1.Span_SPAN_KIND_CLIENT: "client", tracev1.Span_SPAN_KIND_CONSUMER: "consumer",
}

// what names a span by service, name and kind.
func (s span) what() string { return s.service + " " + s.GetName() + " " + kinds[s.GetKind()] }

func parentOf(all []span, s span) (span, bool) {
	for _, p := range all {
		if string(p.GetSpanId()) == string(s.GetParentSpanId()) {
			return p, true
		}
	}
	return span{}, false
}

// missing are the pairs of span and parent that a trace does not have, and spans whose parent nobody has sent.
func (c *collector) missing(trace string, want [][2]string) []string {
	all := c.of(trace)
	have := map[[2]string]bool{}
	var wrong []string
	for _, s := range all {
		parent := ""
		if len(s.GetParentSpanId()) > 0 {
			p, ok := parentOf(all, s)
			if !ok {
				wrong = append(wrong, "the parent of "+s.what())
				continue
			}
			parent = p.what()
		}
		have[[2]string{s.what(), parent}] = true
	}
	for _, w := range want {
		if !have[w] {
			wrong = append(wrong, fmt.Sprintf("%s under %q", w[0], w[1]))
		}
	}
	return wrong
}

// slack is for times that were stored with less precision.
const slack = time.Millisecond

// outside are spans that do not lie within their parents although somebody waits for them there, or begin before them.
func (c *collector) outside(trace string) []string {
	var wrong []string
	all := c.of(trace)
	for _, s := range all {
		p, ok := parentOf(all, s)
		early := ok && s.GetStartTimeUnixNano()+uint64(slack) < p.GetStartTimeUnixNano()
		late := ok && s.GetEndTimeUnixNano() > p.GetEndTimeUnixNano()+uint64(slack)
		if s.GetKind() == tracev1.Span_SPAN_KIND_CONSUMER || slices.Contains(apart, s.what()) {
			late = false
		}
		if strings.HasPrefix(s.GetName(), "record ") { // many at once, from when the first of them came
			early = false
		}
		if early || late || s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() {
			wrong = append(wrong, s.what())
		}
	}
	return wrong
}

func (c *collector) requestID(trace, what string) string {
	for _, s := range c.of(trace) {
		if s.what() != what {
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
func (c *collector) tellsNoSecrets(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	allowed := []string{"rpc.system", "sallyport.caller", "sallyport.request_id", "sallyport.assignment", "sallyport.deployment", "sallyport.identity", "sallyport.host",
		"sallyport.target", "sallyport.generation", "sallyport.attempt", "sallyport.state", "sallyport.fingerprint", "sallyport.authority", "sallyport.request",
		"sallyport.event", "sallyport.subject"}
	for _, s := range c.spans {
		for _, a := range s.GetAttributes() {
			if !slices.Contains(allowed, a.GetKey()) || len(a.GetValue().GetStringValue()) > 256 {
				t.Errorf("%s has the attribute %s", s.what(), a)
			}
		}
	}
}

// tree draws a trace.
func (c *collector) tree(trace string) string {
	all := c.of(trace)
	if len(all) == 0 {
		return "(nothing)"
	}
	zero := all[0].GetStartTimeUnixNano()
	var b strings.Builder
	var draw func(parent string, depth int)
	draw = func(parent string, depth int) {
		for _, s := range all {
			_, known := parentOf(all, s)
			if string(s.GetParentSpanId()) != parent && (depth > 0 || known) {
				continue
			}
			fmt.Fprintf(&b, "%7.1f %7.1f ms  %s%s", float64(s.GetStartTimeUnixNano()-zero)/1e6, float64(s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano())/1e6, strings.Repeat("  ", depth), s.what())
			if m := s.GetStatus().GetMessage(); m != "" {
				fmt.Fprintf(&b, " [%s]", m)
			}
			b.WriteByte('\n')
			draw(string(s.GetSpanId()), depth+1)
		}
	}
	draw("", 0)
	return b.String()
}
