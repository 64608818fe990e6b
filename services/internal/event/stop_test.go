package event_test

import (
	"context"
	"sync"
	"testing"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// TestStopHandsBack: at a stop the message under way is finished, and those that were fetched with it come to the next
// process at once, not after JetStream has given this one up for dead.
func TestStopHandsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, servicetest.SQLite(t))
	defer w.relay()()
	subjects := names("m", 12)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	for _, s := range subjects { // one message each
		w.emit(s)
		var waiting int
		w.eventually("it is published", func() bool {
			w.query(w.from, &waiting, `SELECT count(*) FROM outbox WHERE published_at IS NULL`)
			return waiting == 0
		})
	}
	stop := w.consume(func(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
		once.Do(func() { close(begun) })
		<-goOn
		return note(ctx, tx, e)
	})
	<-begun
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	time.AfterFunc(200*time.Millisecond, func() { close(goOn) })
	<-stopped
	if n := len(w.noted()); n == 0 || n == len(subjects) {
		t.Fatalf("%d of %d events were handled: want the one under way, and not all", n, len(subjects))
	}
	again := time.Now()
	w.consume(note)
	w.arrives(subjects...)
	if took := time.Since(again); took > 8*time.Second {
		t.Errorf("the others came after %s", took)
	}
}
