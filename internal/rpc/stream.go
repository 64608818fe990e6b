package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// openStream is a stream under way. Its context ends when the caller loses its
// standing or the server stops.
type openStream struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelCauseFunc
	call   *call
	lost   bool // the caller's standing; for watchStreams alone
}

func (s *openStream) Context() context.Context { return s.ctx }

func (s *Server) openStream(ctx context.Context, c *call, ss grpc.ServerStream) (*openStream, error) {
	limit := s.cfg.Limits.StreamsPerCaller
	if c.info.caller.Role == identity.RoleAgent {
		limit = s.cfg.Limits.StreamsPerAgent
	}
	st := &openStream{ServerStream: ss, call: c}
	st.ctx, st.cancel = context.WithCancelCause(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		st.cancel(nil)
		return nil, errShuttingDown
	}
	if s.perKey[c.key] >= limit {
		st.cancel(nil)
		return nil, fault.New(fault.Exhausted, ReasonTooManyStreams, "%d streams are open already", limit).After(5 * time.Second)
	}
	s.perKey[c.key]++
	s.streams[st] = struct{}{}
	return st, nil
}

func (s *Server) closeStream(st *openStream) {
	st.cancel(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if s.perKey[st.call.key]--; s.perKey[st.call.key] == 0 {
		delete(s.perKey, st.call.key)
	}
}

func (s *Server) open() []*openStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*openStream, 0, len(s.streams))
	for st := range s.streams {
		out = append(out, st)
	}
	return out
}

// endStreams ends all streams and lets no new one open. Each caller is given a
// time of its own, so that not all of them come back at once.
func (s *Server) endStreams() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	for i, st := range s.open() {
		f := *errShuttingDown
		f.RetryAfter += time.Duration(i) * time.Second / returnRate
		st.cancel(&f)
	}
}

// watchStreams ends the streams of callers that have lost their standing. A
// handler that is stuck in sending or receiving does not see its context end:
// at the next look its connection is closed.
func (s *Server) watchStreams(ctx context.Context) {
	t := time.NewTicker(streamCheck)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, st := range s.open() {
			if st.lost {
				_ = st.call.info.conn.Close() // broken off: nothing to do about an error
				continue
			}
			if err := s.standing(st.call.info); err != nil {
				st.lost = true
				st.call.denied(st.ctx, err)
				st.cancel(err)
			}
		}
	}
}
