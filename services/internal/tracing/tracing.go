// Package tracing sends the spans of a service to an OpenTelemetry collector, by OTLP over gRPC.
//
// It guarantees that nothing is opened, sent or slowed unless a collector is configured; that spans leave this machine under
// TLS only; and that a collector which is slow or dead costs spans and one log line a minute, never work: what does not fit
// into a bounded queue is dropped, and a stop waits for it for a second at most, not at all if it was dead before. What a span says is left to those who
// make it, in package trace.
package tracing

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

const (
	queue        = 8192 // spans that wait to be sent
	batchTimeout = time.Second
	sendTimeout  = 3 * time.Second
	stopBound    = time.Second
	sayEvery     = time.Minute
	maxValue     = 256 // bytes of an attribute
)

// Config says where spans go. It is read at start only.
type Config struct {
	// Endpoint is the collector, OTLP over gRPC: "https://collector.example.com:4317", or "http://127.0.0.1:4317" for one on
	// this machine. Default none: nothing is recorded.
	Endpoint string `yaml:"endpoint"`
	// CA is a file with the CA certificates, PEM, that the collector's must come from. Default: those of the system.
	CA string `yaml:"ca"`
	// Sample is the share of all traces that is kept, above 0 and up to 1. Default 1. It is decided by the trace's id, so if
	// all services say the same, a trace is kept whole or not at all.
	Sample float64 `yaml:"sample"`
}

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	if c.Sample < 0 || c.Sample > 1 {
		return fault.Invalid("tracing.sample", "%v: want a share above 0 and up to 1", c.Sample)
	}
	if c.Endpoint == "" {
		if c.CA != "" || c.Sample != 0 {
			return fault.Invalid("tracing.endpoint", `must not be empty: give the collector, such as "https://collector.example.com:4317", or leave tracing out`)
		}
		return nil
	}
	_, _, err := c.address()
	return err
}

// address is host:port, and whether it is reached without TLS.
func (c Config) address() (address string, plain bool, err error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.User != nil { // there may be a password in it
		return "", false, fault.Invalid("tracing.endpoint", `want "https://host:port", or "http://127.0.0.1:port", without a user`)
	}
	if u.Host == "" || u.Port() == "" || u.Path != "" || u.RawQuery != "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", false, fault.Invalid("tracing.endpoint", `%q: want "https://host:port", or "http://127.0.0.1:port"`, c.Endpoint)
	}
	plain = u.Scheme == "http"
	if ip, err := netip.ParseAddr(u.Hostname()); plain && (err != nil || !ip.IsLoopback()) {
		return "", false, fault.Invalid("tracing.endpoint", "%q: spans leave this machine under TLS only: say https, or send them to a collector at 127.0.0.1", c.Endpoint)
	}
	if plain && c.CA != "" {
		return "", false, fault.Invalid("tracing.ca", "%q uses no TLS, so there is nothing to check: leave it out", c.Endpoint)
	}
	return net.JoinHostPort(u.Hostname(), u.Port()), plain, nil
}

func (c Config) credentials(plain bool) (credentials.TransportCredentials, error) {
	if plain {
		return insecure.NewCredentials(), nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		data, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("reading tracing.ca: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(data) {
			return nil, fault.Invalid("tracing.ca", "%s holds no certificate in PEM", c.CA)
		}
	}
	return credentials.NewTLS(conf), nil
}

// Exporter sends the spans of one service; nil sends none.
type Exporter struct {
	conn     *grpc.ClientConn
	provider *sdktrace.TracerProvider
	tracer   oteltrace.Tracer
	sender   *exporter
}

// Open begins to send for a service. It gives nil where no collector is configured, and does not wait for the one that is.
func Open(ctx context.Context, c Config, service string, log *slog.Logger) (*Exporter, error) {
	if err := c.Validate(); err != nil || c.Endpoint == "" {
		return nil, err
	}
	address, plain, err := c.address()
	if err != nil {
		return nil, err
	}
	creds, err := c.credentials(plain)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("dns:///"+address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	otlp, err := otlptracegrpc.New(ctx, otlptracegrpc.WithGRPCConn(conn), otlptracegrpc.WithTimeout(sendTimeout))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("tracing: %w", err)
	}
	return start(otlp, conn, c, address, service, log), nil
}

// start sends through an exporter that is there already.
func start(by sdktrace.SpanExporter, conn *grpc.ClientConn, c Config, address, service string, log *slog.Logger) *Exporter {
	sender := &exporter{SpanExporter: by, log: log, to: address}
	share := c.Sample
	if share == 0 {
		share = 1
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(sender,
			sdktrace.WithMaxQueueSize(queue), sdktrace.WithBatchTimeout(batchTimeout), sdktrace.WithExportTimeout(sendTimeout)),
		sdktrace.WithSampler(sdktrace.TraceIDRatioBased(share)),
		sdktrace.WithIDGenerator(given{}),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "sallyport-"+service), attribute.String("service.version", boot.Version().Version))),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{AttributeValueLengthLimit: maxValue, AttributeCountLimit: 32}),
	)
	return &Exporter{conn: conn, provider: provider, tracer: provider.Tracer("sallyport"), sender: sender}
}

// Recorder takes the spans to be sent; nil where nothing is.
func (e *Exporter) Recorder() trace.Recorder {
	if e == nil {
		return nil
	}
	return e.record
}

// Close sends what waits, for a second at most.
func (e *Exporter) Close() error {
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopBound)
	defer cancel()
	if e.sender.failing.Load() {
		cancel()
	}
	_ = e.provider.Shutdown(ctx) // what it could not send has been logged
	return e.conn.Close()
}

var kinds = map[trace.Kind]oteltrace.SpanKind{
	trace.Internal: oteltrace.SpanKindInternal, trace.Server: oteltrace.SpanKindServer,
	trace.Client: oteltrace.SpanKindClient, trace.Consumer: oteltrace.SpanKindConsumer,
}

func (e *Exporter) record(s trace.Span) {
	ctx := context.WithValue(context.Background(), givenKey{}, s.Link)
	if s.Parent != "" {
		ctx = oteltrace.ContextWithSpanContext(ctx, oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
			TraceID: traceID(s.Trace), SpanID: spanID(s.Parent), TraceFlags: oteltrace.FlagsSampled,
		}))
	}
	attrs := make([]attribute.KeyValue, len(s.Attributes))
	for i, a := range s.Attributes {
		attrs[i] = attribute.String(a.Key, strings.ToValidUTF8(a.Value, "?"))
	}
	_, span := e.tracer.Start(ctx, s.Name, oteltrace.WithTimestamp(s.Begun), oteltrace.WithSpanKind(kinds[s.Kind]), oteltrace.WithAttributes(attrs...))
	if s.Failure != "" {
		span.SetStatus(codes.Error, s.Failure)
	}
	span.End(oteltrace.WithTimestamp(s.Ended))
}

func traceID(s string) oteltrace.TraceID {
	id, _ := oteltrace.TraceIDFromHex(s) // a Recorder gets well-formed ids only
	return id
}

func spanID(s string) oteltrace.SpanID {
	id, _ := oteltrace.SpanIDFromHex(s) // a Recorder gets well-formed ids only
	return id
}

type givenKey struct{}

// given has spans keep the ids they were given when they began.
type given struct{}

func (given) NewIDs(ctx context.Context) (oteltrace.TraceID, oteltrace.SpanID) {
	l, _ := ctx.Value(givenKey{}).(trace.Link)
	return traceID(l.Trace), spanID(l.Span)
}

func (given) NewSpanID(ctx context.Context, _ oteltrace.TraceID) oteltrace.SpanID {
	l, _ := ctx.Value(givenKey{}).(trace.Link)
	return spanID(l.Span)
}

// exporter logs that spans are lost, once a minute, and goes on.
type exporter struct {
	sdktrace.SpanExporter
	log *slog.Logger
	to  string

	failing atomic.Bool

	mu   sync.Mutex
	said time.Time
	lost int
}

func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.failing.Store(err != nil)
	if err == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += len(spans)
	if time.Since(e.said) >= sayEvery {
		e.said = time.Now()
		e.log.WarnContext(ctx, "spans are lost: the collector does not take them", "collector", e.to, "lost_since_start", e.lost, "error", err)
	}
	return nil
}
