package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The streams. StreamName holds what services tell each other; AuditStream the audit records, for whoever tails them.
const (
	StreamName   = "SALLYPORT"
	AuditStream  = "SALLYPORT_AUDIT"
	AuditSubject = "sallyport.v1.audit.records"
)

// StreamLimits bounds the streams. Both streams discard new messages at a limit: outboxes then wait and nothing is lost.
type StreamLimits struct {
	// Replicas is 1 for one NATS server, 3 for a cluster. Default 1.
	Replicas int
	// MaxAge is how long SALLYPORT keeps a message. A consumer that was away for longer has missed events, notices it, and
	// gets again what outboxes still hold. Default 30 days.
	MaxAge time.Duration
	// MaxBytes bounds each stream. Default 0: only the server's own limit for JetStream counts.
	MaxBytes int64
}

// dedupWindow is how long JetStream drops a message it has already; consumers drop events they have for ever.
const dedupWindow = 10 * time.Minute

// EnsureStreams creates both streams or brings them up to date. While JetStream is not ready it tries again until ctx ends.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, limits StreamLimits) error {
	if limits.MaxAge == 0 {
		limits.MaxAge = keepStream
	}
	if limits.MaxBytes == 0 {
		limits.MaxBytes = -1
	}
	base := jetstream.StreamConfig{
		Storage:    jetstream.FileStorage,
		Retention:  jetstream.LimitsPolicy,
		Discard:    jetstream.DiscardNew,
		Replicas:   max(limits.Replicas, 1),
		MaxBytes:   limits.MaxBytes,
		Duplicates: min(dedupWindow, limits.MaxAge),
	}
	work, audit := base, base
	work.Name = StreamName
	work.Description = "facts and observations of the Sallyport services"
	work.Subjects = []string{FactsOf("*"), ObservationsOf("*")}
	work.MaxAge = limits.MaxAge
	audit.Name = AuditStream
	audit.Description = "audit records of Sallyport"
	audit.Subjects = []string{AuditSubject}
	audit.MaxAge = limits.MaxAge
	for _, c := range []jetstream.StreamConfig{work, audit} {
		err := insist(ctx, func(ctx context.Context) error { return ensureStream(ctx, js, c) })
		if err != nil {
			return fmt.Errorf("creating stream %s: %w", c.Name, err)
		}
	}
	return nil
}

// KeepStreams is EnsureStreams, and makes the streams again whenever the broker has lost them, with all it had, until ctx ends. It
// looks twice: brokers that are just choosing who leads them may not know them yet.
func KeepStreams(ctx context.Context, js jetstream.JetStream, limits StreamLimits) error {
	if err := EnsureStreams(ctx, js, limits); err != nil {
		return err
	}
	for before := false; ; {
		sleep(ctx, lookEvery)
		if ctx.Err() != nil {
			return nil
		}
		now := lost(ctx, js)
		if now && before {
			_ = EnsureStreams(ctx, js, limits) // relays say that events wait, and why; the next look tries again
		}
		before = now
	}
}

// lost says whether a stream is not there. A broker that does not answer has lost nothing yet.
func lost(ctx context.Context, js jetstream.JetStream) bool {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	for _, name := range []string{StreamName, AuditStream} {
		if _, err := js.Stream(ctx, name); errors.Is(err, jetstream.ErrStreamNotFound) {
			return true
		}
	}
	return false
}

// ensureStream leaves a stream alone that is as it should be: every daemon comes here at its start, while others use it.
func ensureStream(ctx context.Context, js jetstream.JetStream, c jetstream.StreamConfig) error {
	known, err := js.Stream(ctx, c.Name)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	if err == nil {
		c.Metadata = known.CachedInfo().Config.Metadata // what relays tell one another
	}
	_, err = js.CreateStream(ctx, c)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // and is otherwise
		_, err = js.UpdateStream(ctx, c)
	}
	return err
}

// noPeers is what a cluster says while too few of its servers are up (nats-server, JSClusterNoPeersErrF).
const noPeers = 10005

// final is an answer of JetStream that will not change by asking again.
func final(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.Code != 503 && api.ErrorCode != noPeers
}

// insist repeats fn until it succeeds, the server refuses for good, or ctx ends.
func insist(ctx context.Context, fn func(context.Context) error) error {
	for delay := 50 * time.Millisecond; ; delay = min(delay*2, 5*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := fn(attempt)
		cancel()
		if err == nil || final(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(delay):
		}
	}
}
