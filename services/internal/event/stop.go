package event

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// finishBound is how long a consumer that is told to stop may take for the messages it has fetched.
	finishBound = 5 * time.Second
	// handBackBound is how long it may take to hand back the others.
	handBackBound = 2 * time.Second
)

// Finishing has a subscription fetch no more once ctx ends, and gives a context for the work on what it has fetched, which
// ends a little later. Next then gives what was fetched, and at the end jetstream.ErrMsgIteratorClosed.
func Finishing(ctx context.Context, conn *nats.Conn, messages jetstream.MessagesContext) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if !conn.IsConnected() { // nothing could be acknowledged
			cancel()
			return
		}
		messages.Drain()
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
