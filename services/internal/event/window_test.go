package event

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// dumb is a broker that takes publications and answers no questions while it is to be so.
type dumb struct {
	jetstream.JetStream
	mute  atomic.Bool
	asked atomic.Int64
}

func (d *dumb) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	d.asked.Add(1)
	if d.mute.Load() {
		return nil, errors.New("no answer")
	}
	return d.JetStream.Stream(ctx, name)
}

func (w outboxOf) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

// beginAnew has the stream begin anew at that time, as a relay does.
func (w outboxOf) beginAnew(at time.Time) {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), StreamName)
	if err == nil {
		_, err = setStreamBack(w.t.Context(), w.js, s, at)
	}
	if err != nil {
		w.t.Error(err)
	}
}

func (w outboxOf) begunAnew() string {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), StreamName)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.CachedInfo().Config.Metadata[metaSetBack]
}

// silent runs a relay at a broker that answers no questions until two were asked, and then does.
func (w outboxOf) silent(messages uint64) {
	w.t.Helper()
	d := &dumb{JetStream: w.js}
	d.mute.Store(true)
	r, err := NewRelay(RelayConfig{DB: w.db, JS: d, Service: "issuer", Log: servicetest.Log(w.t)})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	w.eventually("the broker is asked twice", func() bool { return d.asked.Load() >= 2 })
	d.mute.Store(false)
	w.eventually("all is published", func() bool {
		return w.count(`SELECT count(*) FROM outbox WHERE published_at IS NULL`) == 0 && w.count(`SELECT count(*) FROM event_mark WHERE name = 'stream made'`) == 1
	})
	if n := w.messages(); n != messages {
		w.t.Errorf("%d messages in the stream, want %d", n, messages)
	}
}

// TestKilledWhenSetBack: a relay has marked what is to come again, and is killed. The next finds a broker that takes publications and
// answers no questions; what comes again is not dropped as a double all the same.
func TestKilledWhenSetBack(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.leased(func(ctx context.Context) {
			r := w.relay(w.js, time.Now)
			if err := turn(ctx, r); err != nil {
				t.Error(err)
			}
			w.beginAnew(time.Now())
			if err := r.examine(ctx); err != nil {
				t.Error(err)
			}
		})
		w.silent(2)
	})
}

// TestSetBackAndSilent: a relay whose store was set back finds a broker that takes publications and answers no questions. It finds what
// its store has lost all the same.
func TestSetBackAndSilent(t *testing.T) {
	t.Parallel()
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newOutbox(t, c)
		w.leased(func(ctx context.Context) {
			if err := turn(ctx, w.relay(w.js, time.Now)); err != nil {
				t.Error(err)
			}
		})
		w.write(func(ctx context.Context, tx db.Tx) error {
			for _, table := range []string{"outbox", "event_mark"} {
				if _, err := tx.Exec(ctx, `DELETE FROM `+table); err != nil {
					return err
				}
			}
			return Emit(ctx, tx, &eventv1.Event{Type: "issuer.request.issued", Subject: "requests/2"})
		})
		w.silent(2) // the new one comes with what tells of it
		if w.begunAnew() == "" || w.count(`SELECT count(*) FROM event_mark WHERE name = 'foreign'`) != 1 {
			t.Error("that the store was set back was not noticed")
		}
	})
}

// TestStreamThatForgets that it began anew, because a daemon that started meanwhile, or one of the version before, wrote over it.
func TestStreamThatForgets(t *testing.T) {
	t.Parallel()
	for what, forget := range map[string]func(w outboxOf, begin func()){
		"a daemon that starts": func(w outboxOf, begin func()) {
			begun := false
			js := interruptedStream{w.js, func() {
				if !begun {
					begun = true
					begin()
				}
			}}
			if err := EnsureStreams(w.t.Context(), js, StreamLimits{}); err != nil {
				w.t.Error(err)
			}
		},
		"the version before": func(w outboxOf, begin func()) {
			begin()
			s, err := w.js.Stream(w.t.Context(), StreamName)
			if err != nil {
				w.t.Fatal(err)
			}
			older := s.CachedInfo().Config
			older.Metadata = nil
			if _, err := w.js.UpdateStream(w.t.Context(), older); err != nil {
				w.t.Error(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			servicetest.EachStore(t, func(t *testing.T, c db.Config) {
				w := newOutbox(t, c)
				at := time.Now()
				w.leased(func(ctx context.Context) {
					r := w.relay(w.js, time.Now)
					forget(w, func() {
						w.beginAnew(at)
						if err := turn(ctx, r); err != nil {
							t.Error(err)
						}
					})
					if got := w.begunAnew(); got != "" {
						t.Fatalf("the stream still says that it began anew at %s: the test shows nothing", got)
					}
					if err := r.examine(ctx); err != nil {
						t.Error(err)
					}
				})
				if got := w.begunAnew(); got != strconv.FormatInt(at.UnixMicro(), 10) {
					t.Errorf("the stream began anew at %q, want %d", got, at.UnixMicro())
				}
				// One that was made anew by a clock that was behind is another.
				if err := w.js.DeleteStream(t.Context(), StreamName); err != nil {
					t.Fatal(err)
				}
				w.ensure()
				w.write(func(ctx context.Context, tx db.Tx) error {
					return setMarkIn(ctx, tx, markStream, time.Now().Add(time.Hour))
				})
				w.leased(func(ctx context.Context) {
					if err := turn(ctx, w.relay(w.js, time.Now)); err != nil {
						t.Error(err)
					}
				})
				if got := w.begunAnew(); got != "" || w.messages() != 1 {
					t.Errorf("a new stream: it began anew at %q, and has %d messages", got, w.messages())
				}
			})
		})
	}
}

// interruptedStream is a broker behind which something happens as soon as it has told what it knows of a stream.
type interruptedStream struct {
	jetstream.JetStream
	then func()
}

func (i interruptedStream) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := i.JetStream.Stream(ctx, name)
	i.then()
	return s, err
}
