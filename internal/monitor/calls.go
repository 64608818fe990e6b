package monitor

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// calls counts the calls of a server. Methods are those that are registered, so their number is bounded.
type calls struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	open     *prometheus.GaugeVec
	denied   *prometheus.CounterVec
}

func newCalls() *calls {
	return &calls{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_rpc_calls_total", Help: "Calls and streams that ended, by gRPC code, denied calls included.",
		}, []string{"api", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sallyport_rpc_call_duration_seconds", Help: "Time to answer a call; streams are not counted.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"api", "method"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_rpc_streams_open", Help: "Streams that are open.",
		}, []string{"api", "method"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_rpc_denied_calls_total", Help: "Calls that were refused because of who the caller is, by reason.",
		}, []string{"reason"}),
	}
}

// Begin implements rpc.Meter.
func (c *calls) Begin(method string, stream bool) func(codes.Code) {
	api, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if stream {
		open := c.open.WithLabelValues(api, name)
		open.Inc()
		return func(code codes.Code) {
			open.Dec()
			c.total.WithLabelValues(api, name, code.String()).Inc()
		}
	}
	begun := time.Now()
	return func(code codes.Code) {
		c.duration.WithLabelValues(api, name).Observe(time.Since(begun).Seconds())
		c.total.WithLabelValues(api, name, code.String()).Inc()
	}
}

// Denied implements rpc.Meter.
func (c *calls) Denied(reason string) { c.denied.WithLabelValues(reason).Inc() }
