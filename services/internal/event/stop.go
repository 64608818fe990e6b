package event

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// finishBound is how long a consumer that is told to stop may take for the message it has begun.
	finishBound = 5 * time.Second
	// handBackBound is how long it may take to hand back the others.
	handBackBound = 2 * time.Second
)

// Finishing is a context for work that has begun: it ends a little after ctx, so that the work can be finished at a stop.
func Finishing(ctx context.Context) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		late := time.AfterFunc(finishBound, cancel)
		context.AfterFunc(work, func() { late.Stop() })
	})
	return work, func() { stop(); cancel() }
}

// HandBack ends a subscription and gives what was fetched and not handled back to JetStream, so that another process, or the
// next start of this one, has it at once and not after the acknowledgement wait. taken are messages that were taken from it
// and not answered for. It gives the number of messages.
func HandBack(ctx context.Context, conn *nats.Conn, messages jetstream.MessagesContext, taken ...jetstream.Msg) int {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handBackBound)
	defer cancel()
	defer messages.Stop()
	n := 0
	for _, m := range taken {
		if m.Nak() == nil {
			n++
		}
	}
	messages.Drain()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			break
		}
		if m.Nak() == nil {
			n++
		}
	}
	if conn.IsConnected() {
		_ = conn.FlushWithContext(ctx) // what does not arrive comes again after the wait
	}
	return n
}
