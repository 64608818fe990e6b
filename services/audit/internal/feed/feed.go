// Package feed publishes the records of the log on a NATS subject, for whoever cannot keep a gRPC stream open.
//
// Each message of subject event.AuditSubject on stream event.AuditStream holds consecutive records as JSON lines. Its header
// Sallyport-First-Position is the position of the first, Sallyport-Count says how many. It guarantees that the messages of the
// stream, in its order, hold every record once and in the order of the log: the next position follows from the stream's last
// message, and a message is stored only right behind the one it was made to follow. A stream that was deleted begins again at
// position 0; one whose messages have all expired goes on where it was; one that ends with a record that the log does not have
// there, because the log was restored from a backup, is left as it is.
package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/transparency-dev/tessera/api/layout"
)

// The headers of a message.
const (
	HeaderFirst = "Sallyport-First-Position"
	HeaderCount = "Sallyport-Count"
)

const (
	maxRecords = 1024
	maxBytes   = 512 << 10 // well below the broker's limit of 1 MiB, and few messages, each of which is synced
	// A message that is half full ends where an entry bundle of the log does, so that each bundle is read once.
	bundle     = layout.EntryBundleWidth
	ackTimeout = 10 * time.Second
	// noteEvery is how often it is noted how far records were published while there are more: it is asked for only where the
	// stream has no message left to tell.
	noteEvery  = time.Second
	firstPause = 100 * time.Millisecond
	longPause  = 10 * time.Second
)

// Config is what a feed needs; all of it is required.
type Config struct {
	Ledger *ledger.Ledger
	Store  *store.Store
	JS     jetstream.JetStream
	Log    *slog.Logger
}

// Feed publishes records.
type Feed struct {
	c     Config
	lines []byte // of the last message; the memory is kept while there are more
}

// New validates c.
func New(c Config) (*Feed, error) {
	if c.Ledger == nil || c.Store == nil || c.JS == nil || c.Log == nil {
		return nil, errors.New("feed.New: Ledger, Store, JS and Log are required")
	}
	return &Feed{c: c}, nil
}

// Run publishes until ctx ends. While NATS is away, or the stream full, it tries again, for ever.
func (f *Feed) Run(ctx context.Context) error {
	for failures := 0; ctx.Err() == nil; failures++ {
		published, err := f.publish(ctx)
		if ctx.Err() != nil {
			break
		}
		if published {
			failures = 0
		}
		pause := min(firstPause<<min(failures, 10), longPause)
		f.c.Log.WarnContext(ctx, "records are not being published", "attempt", failures+1, "retry_in", pause, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
	return nil
}

// place is where the stream ends.
type place struct {
	next     uint64 // position of the next record
	sequence uint64 // of the last message
}

// publish publishes what the log gets until something fails. It says whether anything was published before that.
func (f *Feed) publish(ctx context.Context) (published bool, err error) {
	at, err := f.resume(ctx)
	if err != nil {
		return false, err
	}
	for {
		size, err := f.c.Ledger.Await(ctx, at.next)
		if err != nil {
			return published, err
		}
		for noted := time.Now(); at.next < size; {
			if at, err = f.send(ctx, at, size); err != nil {
				return published, err
			}
			published = true
			if at.next < size && time.Since(noted) < noteEvery {
				continue
			}
			if err := f.c.Store.SetPublished(ctx, at.next); err != nil {
				return published, err
			}
			noted = time.Now()
		}
		f.lines = nil
	}
}

// resume finds where the stream ends.
func (f *Feed) resume(ctx context.Context) (place, error) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	stream, err := f.c.JS.Stream(ctx, event.AuditStream)
	if err != nil {
		return place{}, fmt.Errorf("looking up stream %s: %w", event.AuditStream, err)
	}
	at := place{sequence: stream.CachedInfo().State.LastSeq}
	if at.sequence == 0 {
		return at, nil // a new stream gets the whole log
	}
	last, err := stream.GetLastMsgForSubject(ctx, event.AuditSubject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		at.next, err = f.c.Store.Published(ctx)
		// With no message left there is none to follow: the broker then expects sequence 0 on the subject.
		at.sequence = 0
	} else if err == nil {
		at.sequence = last.Sequence
		at.next, err = after(last.Header)
	}
	if err != nil {
		return at, fmt.Errorf("reading where stream %s ends: %w", event.AuditStream, err)
	}
	if size := f.c.Ledger.Size(); at.next > size {
		return at, fmt.Errorf("stream %s has records up to position %d, the log has only %d: %s", event.AuditStream, at.next, size, notPublished)
	}
	if last == nil || at.next == 0 {
		return at, nil
	}
	return at, f.c.Ledger.Read(ctx, at.next-1, at.next, func(position uint64, record []byte) error {
		before, ends := bytes.CutSuffix(last.Data, slices.Concat(record, []byte{'\n'}))
		if !ends || len(before) > 0 && before[len(before)-1] != '\n' {
			return fmt.Errorf("stream %s has another record at position %d than the log: %s", event.AuditStream, position, notPublished)
		}
		return nil
	})
}

const notPublished = "the log is not the one that was published; restore it, or, if it is right, delete the stream"

// after is the position that follows a message.
func after(h nats.Header) (uint64, error) {
	first, err := position(h)
	if err != nil {
		return 0, err
	}
	count, err := strconv.ParseUint(h.Get(HeaderCount), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("header %s: %w", HeaderCount, err)
	}
	if count == 0 || first+count < first {
		return 0, fmt.Errorf("headers %s and %s: %d records cannot begin at %d: %s", HeaderFirst, HeaderCount, count, first, notPublished)
	}
	return first + count, nil
}

// position is that of a message's first record.
func position(h nats.Header) (uint64, error) {
	first, err := strconv.ParseUint(h.Get(HeaderFirst), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("header %s: %w", HeaderFirst, err)
	}
	return first, nil
}

// send publishes one message and gives the place behind it.
func (f *Feed) send(ctx context.Context, at place, size uint64) (place, error) {
	lines := bytes.NewBuffer(f.lines[:0])
	count := uint64(0)
	err := f.c.Ledger.Read(ctx, at.next, min(size, at.next+maxRecords), func(position uint64, record []byte) error {
		if count > 0 && (lines.Len()+len(record) >= maxBytes || lines.Len() >= maxBytes/2 && position%bundle == 0) {
			return io.EOF
		}
		lines.Write(record)
		lines.WriteByte('\n')
		count++
		return nil
	})
	f.lines = lines.Bytes()
	if err != nil {
		return at, err
	}
	first := strconv.FormatUint(at.next, 10)
	msg := nats.NewMsg(event.AuditSubject)
	msg.Data = lines.Bytes()
	msg.Header.Set(HeaderFirst, first)
	msg.Header.Set(HeaderCount, strconv.FormatUint(count, 10))
	attempt, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	ack, err := f.c.JS.PublishMsg(attempt, msg,
		jetstream.WithMsgID("audit-"+first+"-"+strconv.FormatUint(count, 10)),
		jetstream.WithExpectStream(event.AuditStream),
		jetstream.WithExpectLastSequencePerSubject(at.sequence))
	if err != nil {
		return at, fmt.Errorf("publishing records from position %d: %w", at.next, err)
	}
	if ack.Duplicate {
		// Stored before, and its answer lost: the stream's last message says where to go on.
		return at, fmt.Errorf("records from position %d were published already", at.next)
	}
	crash.At(crash.FeedPublished)
	return place{at.next + count, ack.Sequence}, nil
}
