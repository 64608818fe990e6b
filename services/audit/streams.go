package audit

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sallyport-pki/sallyport/services/internal/event"
)

// EnsureStreams makes the streams that all services share, on a single broker. It is for whoever runs all services in one
// process; a daemon does it for itself.
func EnsureStreams(ctx context.Context, broker *nats.Conn) error {
	js, err := jetstream.New(broker)
	if err != nil {
		return fmt.Errorf("using JetStream: %w", err)
	}
	return event.EnsureStreams(ctx, js, event.StreamLimits{})
}
