package tracing

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sallyport-pki/sallyport/internal/trace"
)

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		c    Config
		want string // "" when it is right
	}{
		{Config{}, ""},
		{Config{Endpoint: "https://collector.example.com:4317"}, ""},
		{Config{Endpoint: "https://collector.example.com:4317", CA: "/x", Sample: 0.1}, ""},
		{Config{Endpoint: "http://127.0.0.1:4317", Sample: 1}, ""},
		{Config{Endpoint: "http://[::1]:4317"}, ""},
		{Config{Endpoint: "http://collector.example.com:4317"}, "TLS only"},
		{Config{Endpoint: "http://10.0.0.1:4317"}, "TLS only"},
		{Config{Endpoint: "http://localhost:4317"}, "TLS only"}, // a name may mean anything
		{Config{Endpoint: "http://127.0.0.1:4317", CA: "/x"}, "tracing.ca"},
		{Config{Endpoint: "collector:4317"}, "tracing.endpoint"},
		{Config{Endpoint: "https://collector"}, "tracing.endpoint"},
		{Config{Endpoint: "https://user:secret@collector:4317"}, "tracing.endpoint"},
		{Config{Endpoint: "https://user:secret@%zz:4317"}, "tracing.endpoint"},
		{Config{Endpoint: "https://collector:4317/v1/traces"}, "tracing.endpoint"},
		{Config{CA: "/x"}, "tracing.endpoint"},
		{Config{Endpoint: "https://collector:4317", Sample: 1.5}, "tracing.sample"},
		{Config{Endpoint: "https://collector:4317", Sample: -1}, "tracing.sample"},
	} {
		err := tt.c.Validate()
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%+v: %v, want %q", tt.c, err, tt.want)
		}
	}
	if e, err := Open(t.Context(), Config{}, "issuer", slog.New(slog.DiscardHandler)); e != nil || err != nil || e.Recorder() != nil || e.Close() != nil {
		t.Errorf("off: %v, %v", e, err)
	}
}

type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracev1.Span
}

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			c.spans = append(c.spans, ss.GetSpans()...)
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// collect starts a collector under TLS and gives its address and the file with its CA.
func collect(t *testing.T) (c *collector, endpoint, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "collector"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})))
	c = &collector{}
	collectorv1.RegisterTraceServiceServer(s, c)
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, "https://" + lis.Addr().String(), ca
}

// settle waits for the first handshake, in good or bad: at the end nobody waits for it.
func settle(t *testing.T, e *Exporter) {
	t.Helper()
	e.conn.Connect()
	for {
		state := e.conn.GetState()
		if state == connectivity.Ready || state == connectivity.TransientFailure {
			return
		}
		if !e.conn.WaitForStateChange(t.Context(), state) {
			t.Fatal(t.Context().Err())
		}
	}
}

// TestTLS: spans arrive with the ids they were given, at a collector whose certificate is right and at no other.
func TestTLS(t *testing.T) {
	c, endpoint, ca := collect(t)
	link := trace.Link{Trace: trace.New().Trace, Span: trace.NewSpan()}
	now := time.Now()
	send := func(conf Config) string {
		t.Helper()
		var log bytes.Buffer
		e, err := Open(t.Context(), conf, "issuer", slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		settle(t, e)
		e.Recorder().Record(trace.Span{Link: link, Parent: "00f067aa0ba902b7", Name: "request", Kind: trace.Consumer, Begun: now.Add(-time.Second), Ended: now,
			Failure: "REFUSED", Attributes: []trace.Attribute{{Key: "sallyport.host", Value: "web\xff" + strings.Repeat("x", 1000)}}})
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		return log.String()
	}
	send(Config{Endpoint: endpoint}) // the system knows no such CA
	if len(c.spans) != 0 {
		t.Fatal("spans were sent to a collector that nobody vouches for")
	}
	if said := send(Config{Endpoint: endpoint, CA: ca}); len(c.spans) != 1 {
		t.Fatalf("%d spans, %s", len(c.spans), said)
	}
	s := c.spans[0]
	if hex.EncodeToString(s.GetTraceId()) != link.Trace || hex.EncodeToString(s.GetSpanId()) != link.Span || hex.EncodeToString(s.GetParentSpanId()) != "00f067aa0ba902b7" ||
		s.GetKind() != tracev1.Span_SPAN_KIND_CONSUMER || s.GetStatus().GetMessage() != "REFUSED" || s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano() != uint64(time.Second) {
		t.Errorf("%v", s)
	}
	if v := s.GetAttributes()[0].GetValue().GetStringValue(); len(v) > maxValue || !strings.HasPrefix(v, "web?x") {
		t.Errorf("attribute %q", v)
	}
	for _, l := range []trace.Link{{}, {Trace: "x", Span: link.Span}, {Trace: link.Trace}} {
		e, err := Open(t.Context(), Config{Endpoint: endpoint, CA: ca}, "issuer", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		settle(t, e)
		e.Recorder().Record(trace.Span{Link: l, Name: "x", Begun: now, Ended: now})
		if err := e.Close(); err != nil || len(c.spans) != 1 {
			t.Fatalf("%d spans, %v", len(c.spans), err)
		}
	}
}

// hung is a collector that answers nothing, not even that its time is over.
type hung struct {
	asked, release chan struct{}
}

func (h hung) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	h.asked <- struct{}{}
	<-h.release
	return errors.New("too late")
}

func (hung) Shutdown(context.Context) error { return nil }

// TestHung: neither who records a span nor who closes waits for a collector that answers nothing. Both would wait here for ever.
func TestHung(t *testing.T) {
	conn, err := grpc.NewClient("passthrough:///nowhere", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	h := hung{asked: make(chan struct{}, 1000), release: make(chan struct{})}
	defer close(h.release)
	e := start(h, conn, Config{}, "nowhere", "issuer", slog.New(slog.DiscardHandler))
	record := func() {
		e.Recorder().Record(trace.Span{Link: trace.Link{Trace: trace.New().Trace, Span: trace.NewSpan()}, Name: "x", Begun: time.Now(), Ended: time.Now()})
	}
	done := make(chan error)
	go func() {
		record()
		<-h.asked
		for range 2 * queue {
			record()
		}
		done <- e.Close()
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the work waits for the collector")
	}
}

// TestSample keeps a share of the traces, the same of every service.
func TestSample(t *testing.T) {
	c, endpoint, ca := collect(t)
	for _, service := range []string{"issuer", "deployer"} {
		e, err := Open(t.Context(), Config{Endpoint: endpoint, CA: ca, Sample: 0.25}, service, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		settle(t, e)
		for i := range 400 {
			id := hex.EncodeToString([]byte{1, 2, 3, 4, 5, 6, 7, 8, byte(i * 167), byte(i * 13), 1, 1, 1, 1, 1, byte(i + 1)})
			e.Recorder().Record(trace.Span{Link: trace.Link{Trace: id, Span: trace.NewSpan()}, Name: service, Begun: time.Now(), Ended: time.Now()})
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	by := map[string]int{}
	for _, s := range c.spans {
		by[string(s.GetTraceId())]++
	}
	for id, n := range by {
		if n%2 != 0 {
			t.Errorf("trace %x is kept by one service only", id)
		}
	}
	if len(c.spans) < 2*60 || len(c.spans) > 2*140 {
		t.Errorf("%d of 800 spans kept, want about a quarter", len(c.spans))
	}
}
