package serve

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

// A look at the broker for which the machine had no time is no failure of its store; a stream that cannot be written is, and a
// store that is closed.
func TestBrokerHealth(t *testing.T) {
	late := server.HealthzError{Type: server.HealthzErrorConn, Error: "failed to be ready for connections after 1ms: "}
	if err := judge(&server.HealthStatus{Status: "error", StatusCode: 500, Errors: []server.HealthzError{late}}); err != nil {
		t.Errorf("a late look: %v", err)
	}
	failed := server.HealthzError{Type: server.HealthzErrorStream, Stream: "SALLYPORT", Error: "JetStream stream write error: input/output error"}
	if err := judge(&server.HealthStatus{Status: "error", StatusCode: 503, Errors: []server.HealthzError{failed}}); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a stream that cannot be written: %v", err)
	}
	b, err := startBroker(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	must(t, err)
	if err := b.health(); err != nil {
		t.Errorf("a sound one: %v", err)
	}
	must(t, b.server.DisableJetStream())
	if err := b.health(); err == nil {
		t.Error("a broker without its store is sound")
	}
	b.stop()
}
