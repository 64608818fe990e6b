package session

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// The reasons this package gives.
const (
	ReasonReplaced       = "STREAM_REPLACED"
	ReasonTooManyStreams = "TOO_MANY_AGENT_STREAMS"
	ReasonBusy           = "BUSY"
)

// Streams holds the agents' open streams of this replica: one per host.
type Streams struct {
	max int

	mu   sync.Mutex
	open map[string]*Stream
}

// Stream is an agent's open stream.
type Stream struct {
	ID       string
	Host     string
	end      context.CancelCauseFunc
	recorded time.Time // when the store had it for certain
}

// NewStreams allows at most max at once.
func NewStreams(max int) *Streams {
	return &Streams{max: max, open: map[string]*Stream{}}
}

// Open begins a stream, which ends the host's stream before. Its context ends when it is replaced. The caller ends it with
// Close.
func (s *Streams) Open(ctx context.Context, host string) (context.Context, *Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.open[host]
	if old == nil && len(s.open) >= s.max {
		return nil, nil, fault.New(fault.Exhausted, ReasonTooManyStreams, "%d agents have a stream here already", s.max).After(time.Minute)
	}
	if old != nil {
		old.end(replaced())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	st := &Stream{ID: uuid.NewString(), Host: host, end: cancel}
	s.open[host] = st
	return ctx, st, nil
}

// Len is how many are open.
func (s *Streams) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func replaced() error {
	return fault.New(fault.Conflict, ReasonReplaced, "another stream of this agent has taken the place of this one")
}

// Close ends a stream.
func (s *Streams) Close(st *Stream) {
	st.end(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[st.Host] == st {
		delete(s.open, st.Host)
	}
}

// Recorded notes that the store has the stream.
func (s *Streams) Recorded(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.recorded = time.Now()
}

// Moved says which stream a host had by the store, when it was asked at that moment: one that was opened at another replica
// ends the one here.
func (s *Streams) Moved(host, stream string, asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.open[host]
	if st == nil || stream == "" || stream == st.ID || st.recorded.IsZero() || !st.recorded.Before(asked) {
		return
	}
	st.end(replaced())
}

// Admission paces streams: so many a second, with a burst. Who comes too early is given a time of his own, one after the
// other, so that a fleet that lost its server comes back in an orderly queue.
type Admission struct {
	rate  float64
	burst float64
	now   func() time.Time

	mu     sync.Mutex
	tokens float64
	filled time.Time
	next   time.Time // the last place given away in the queue
}

// maxQueue bounds how long anybody is asked to stay away.
const maxQueue = 5 * time.Minute

// NewAdmission admits perSecond streams, and burst at once.
func NewAdmission(perSecond float64, burst int, now func() time.Time) *Admission {
	return &Admission{rate: perSecond, burst: float64(burst), now: now, tokens: float64(burst), filled: now()}
}

// Admit gives nil or a fault of kind Exhausted that says when to come again.
func (a *Admission) Admit() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if passed := now.Sub(a.filled); passed > 0 {
		a.tokens = min(a.burst, a.tokens+passed.Seconds()*a.rate)
	}
	a.filled = now
	if a.tokens >= 1 {
		a.tokens--
		return nil
	}
	if a.next.Before(now) || a.next.Sub(now) > maxQueue {
		a.next = now
	}
	a.next = a.next.Add(time.Duration(float64(time.Second) / a.rate))
	return fault.New(fault.Exhausted, ReasonBusy, "many agents are connecting: wait for your turn").After(max(a.next.Sub(now), 100*time.Millisecond))
}
