// Package session is the agent's conversation with the server: the stream that
// says what is wanted, and the reports that wait to be sent.
//
// It guarantees that a message of the stream is on disk before it is acted on,
// that a broken or silent stream is opened again where it left off, with
// growing pauses and full jitter (but for a network that answers nothing: that
// is tried all the time, to be there when it is), and that reports are sent in order, each with
// its own id, until the server has confirmed them.
package session

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	"github.com/sallyport-pki/sallyport/agent/internal/plan"
	"github.com/sallyport-pki/sallyport/agent/internal/spool"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

const (
	firstPause   = time.Second
	longestPause = 5 * time.Minute
	// silentPause is the longest while nobody answers: such a try costs a few packets that reach nobody.
	silentPause = 5 * time.Second
)

// Config is what a Session needs. All fields must be set.
type Config struct {
	Client  agentv1.AgentServiceClient
	Info    *agentv1.AgentInfo
	Desired *plan.Desired
	Spool   *spool.Spool
	// Contact is told how the agent stands with the server.
	Contact *Contact
	// Connect is called before the stream is opened: a connection that waits to be
	// tried again is tried now. How long to wait is decided here alone, or two
	// pauses that grow would come on top of each other.
	Connect func(context.Context)
	// Unanswered says whether the connection tried last was not answered at all, not even with a refusal.
	Unanswered func() bool
	// Back is called when a stream begins to speak: what waits to be tried again may be tried now.
	Back func()
	// Changed is called after the desired state has changed.
	Changed func()
	// Refused is called when the server is there and refuses the identity in use.
	Refused func()
	// Silence is how long the stream may say nothing before it is opened again.
	// A connection that is dead is noticed sooner, by the transport.
	Silence time.Duration
	Log     *slog.Logger
}

// Session talks to the server.
type Session struct {
	Config
	listenAgain, sendAgain chan struct{}
}

// New makes a session.
func New(cfg Config) (*Session, error) {
	if cfg.Client == nil || cfg.Info == nil || cfg.Desired == nil || cfg.Spool == nil || cfg.Contact == nil || cfg.Connect == nil || cfg.Unanswered == nil || cfg.Back == nil || cfg.Changed == nil || cfg.Refused == nil || cfg.Silence <= 0 || cfg.Log == nil {
		return nil, errors.New("session: incomplete configuration")
	}
	return &Session{Config: cfg, listenAgain: make(chan struct{}, 1), sendAgain: make(chan struct{}, 1)}, nil
}

// TryAgain ends the pauses, and they begin anew: what was refused may be let in
// now. The next try may still meet the connection that is being broken off.
func (s *Session) TryAgain() {
	again(s.listenAgain)
	again(s.sendAgain)
}

func again(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

var errSilent = errors.New("the stream has said nothing for too long")

// Listen keeps the stream open until ctx ends.
func (s *Session) Listen(ctx context.Context) error {
	wait, silent := pace.New(firstPause, longestPause), pace.New(firstPause, silentPause)
	var said string
	for {
		call := trace.WithRequest(ctx, trace.NewRequest())
		heard, err := s.subscribe(call)
		if ctx.Err() != nil {
			s.Contact.Stop(context.WithoutCancel(ctx))
			return nil
		}
		if heard {
			wait.Reset()
			silent.Reset()
			said = ""
		}
		next := &wait
		if s.Unanswered() {
			next = &silent
		}
		pause := next.After(err)
		s.Contact.Failed(ctx, err, pause)
		if text := err.Error(); text != said && !errors.Is(err, errSilent) && !errors.Is(err, io.EOF) {
			said = text
			s.Log.WarnContext(call, "no stream from the server, trying again", "pause", pause.Round(time.Millisecond), "reason", pace.Reason(err), "error", err)
		}
		if pace.Refused(err) {
			s.Refused()
		}
		if fault.KindOf(err) == fault.Conflict && !heard {
			s.Desired.Forget() // it knows no such session: begin with everything
		}
		select {
		case <-ctx.Done():
			s.Contact.Stop(context.WithoutCancel(ctx))
			return nil
		case <-time.After(pause):
		case <-s.listenAgain:
			wait.Reset()
		}
	}
}

// subscribe reads one stream to its end, which always has a reason. heard says
// whether the server has said anything.
func (s *Session) subscribe(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(s.Silence, func() { cancel(errSilent) })
	defer silence.Stop()
	session, revision := s.Desired.Resume()
	s.Connect(ctx)
	stream, err := s.Client.Subscribe(ctx, &agentv1.SubscribeRequest{Session: session, Revision: revision, Info: s.Info})
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
				err = cause
			}
			return heard, err
		}
		silence.Reset(s.Silence)
		if !heard {
			s.Log.InfoContext(ctx, "connected to the server", "session", m.GetSession(), "revision", m.GetRevision(), "snapshot", m.GetSnapshot())
			again(s.sendAgain)
			s.Back()
		}
		heard = true
		s.Contact.Opened(ctx)
		if err := s.Desired.Apply(ctx, m); err != nil {
			s.Log.ErrorContext(ctx, "desired state cannot be kept on disk; going on with what is in memory", "error", err)
		}
		s.Changed()
	}
}

// Send sends reports until ctx ends.
func (s *Session) Send(ctx context.Context) error {
	wait := pace.New(firstPause, longestPause)
	for {
		report, confirm, err := s.Spool.Next(ctx)
		switch {
		case err != nil:
			s.Log.ErrorContext(ctx, "reports cannot be read", "error", err)
		case report == nil:
			select {
			case <-ctx.Done():
				return nil
			case <-s.Spool.Wake():
			}
			continue
		default:
			err = s.send(ctx, report)
		}
		if err == nil {
			wait.Reset()
			crash.At(crash.ReportSent)
			err = confirm()
			crash.At(crash.ReportConfirmed)
		}
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.After(err)):
		case <-s.sendAgain:
			wait.Reset()
		}
	}
}

// send gives nil when the report is the server's, or will never be.
func (s *Session) send(ctx context.Context, r *agentv1.ReportAssignmentRequest) error {
	ctx = trace.WithRequest(trace.Follow(ctx, r.GetTraceparent()), trace.NewRequest())
	_, err := s.Client.ReportAssignment(ctx, r)
	switch {
	case err == nil:
		s.Log.DebugContext(ctx, "report confirmed", "report_id", r.GetReportId(), "assignment", r.GetAssignment())
		return nil
	case ctx.Err() != nil || pace.Passing(err):
		return err
	}
	s.Log.WarnContext(ctx, "the server does not take a report: dropped", "report_id", r.GetReportId(), "assignment", r.GetAssignment(),
		"reason", pace.Reason(err), "error", err)
	return nil
}
