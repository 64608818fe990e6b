package lab

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Collector takes spans as any OpenTelemetry collector does.
type Collector struct {
	collectorv1.UnimplementedTraceServiceServer
	Address string

	mu    sync.Mutex
	spans []Span
}

// Span is a span and the service that has sent it, without "sallyport-".
type Span struct {
	*tracev1.Span
	Service string
}

// Collector starts one, until the lab is closed.
func (l *Lab) Collector(ctx context.Context) (*Collector, error) {
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Collector{Address: lis.Addr().String()}
	s := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(s, c)
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(lis) }) // it ends by Stop
	l.OnClose(func() { s.Stop(); done.Wait() })
	return c, nil
}

// Export takes spans.
func (c *Collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
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
				c.spans = append(c.spans, Span{s, service})
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// All are the spans that have come.
func (c *Collector) All() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Of are those of a trace, by when they began.
func (c *Collector) Of(trace string) []Span {
	var all []Span
	for _, s := range c.All() {
		if hex.EncodeToString(s.GetTraceId()) == trace {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b Span) int { return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano()) })
	return all
}

var kinds = map[tracev1.Span_SpanKind]string{
	tracev1.Span_SPAN_KIND_INTERNAL: "internal", tracev1.Span_SPAN_KIND_SERVER: "server",
	tracev1.Span_SPAN_KIND_CLIENT: "client", tracev1.Span_SPAN_KIND_CONSUMER: "consumer",
}

// What names a span by service, name and kind.
func (s Span) What() string { return s.Service + " " + s.GetName() + " " + kinds[s.GetKind()] }

// ParentOf finds the parent of a span among others.
func ParentOf(all []Span, s Span) (Span, bool) {
	for _, p := range all {
		if string(p.GetSpanId()) == string(s.GetParentSpanId()) {
			return p, true
		}
	}
	return Span{}, false
}

// Missing are the pairs of span and parent that a trace does not have, and spans whose parent nobody has sent.
func (c *Collector) Missing(trace string, want [][2]string) []string {
	all := c.Of(trace)
	have := map[[2]string]bool{}
	var wrong []string
	for _, s := range all {
		parent := ""
		if len(s.GetParentSpanId()) > 0 {
			p, ok := ParentOf(all, s)
			if !ok {
				wrong = append(wrong, "the parent of "+s.What())
				continue
			}
			parent = p.What()
		}
		have[[2]string{s.What(), parent}] = true
	}
	for _, w := range want {
		if !have[w] {
			wrong = append(wrong, fmt.Sprintf("%s under %q", w[0], w[1]))
		}
	}
	return wrong
}

// Tree draws a trace.
func (c *Collector) Tree(trace string) string {
	all := c.Of(trace)
	if len(all) == 0 {
		return "(nothing)"
	}
	zero := all[0].GetStartTimeUnixNano()
	var b strings.Builder
	var draw func(parent string, depth int)
	draw = func(parent string, depth int) {
		for _, s := range all {
			_, known := ParentOf(all, s)
			if string(s.GetParentSpanId()) != parent && (depth > 0 || known) {
				continue
			}
			fmt.Fprintf(&b, "%7.1f %7.1f ms  %s%s", float64(s.GetStartTimeUnixNano()-zero)/1e6, float64(s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano())/1e6, strings.Repeat("  ", depth), s.What())
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
