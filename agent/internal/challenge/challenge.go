// Package challenge answers ACME HTTP-01 challenges (RFC 8555 section 8.3) on
// this host for as long as the server asks for it.
//
// It guarantees that nothing listens while there is no challenge to answer,
// that only the exact paths of the challenges are answered, and that nothing
// but a well-formed key authorization is ever served or written.
package challenge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

const (
	// path is RFC 8555 section 8.3.
	path = "/.well-known/acme-challenge/"
	// retry is how soon a challenge that cannot be answered is tried again.
	retry       = 10 * time.Second
	maxAnswers  = 1000
	writtenName = "written"
	maxMessage  = 2 << 10
)

// token and keyAuthorization are RFC 8555 sections 8.3 and 8.1: base64url.
var (
	token            = regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}$`)
	keyAuthorization = regexp.MustCompile(`^[A-Za-z0-9_-]{22,128}\.[A-Za-z0-9_-]{43}$`)
)

// Config says how challenges are answered. At most one of Listen and Webroot
// is set; with neither, challenges are reported as not ready.
type Config struct {
	// Listen is the address to listen on while there is a challenge, such as ":80".
	Listen string
	// Webroot is the folder whose files another server serves on port 80.
	Webroot string
	// State is where it is noted which files lie in the webroot.
	State *disk.Folder
	// Challenges lists what is to be answered now.
	Challenges func() []*agentv1.Challenge
	// Report tells the server.
	Report func(ctx context.Context, r *agentv1.ReportChallengeRequest) error
	Log    *slog.Logger
	Now    func() time.Time
}

// Responder answers challenges. Run is its one goroutine.
type Responder struct {
	Config
	answers  answers // what Run serves them with
	wake     chan struct{}
	reported map[string]*state // by challenge
}

// answers is a way to make answers visible.
type answers interface {
	// serve makes exactly these answers visible, by token.
	serve(ctx context.Context, want map[string]string) error
	// stop ends it.
	stop(ctx context.Context) error
}

// state is what the server knows of a challenge.
type state struct {
	said    bool // anything
	ready   bool
	message string
	pace    pace.Pace
	until   time.Time // not before
}

// New makes a responder.
func New(cfg Config) (*Responder, error) {
	if cfg.State == nil || cfg.Challenges == nil || cfg.Report == nil || cfg.Log == nil || cfg.Now == nil || cfg.Listen != "" && cfg.Webroot != "" {
		return nil, errors.New("challenge: incomplete configuration")
	}
	r := &Responder{Config: cfg, wake: make(chan struct{}, 1), reported: map[string]*state{}}
	switch {
	case cfg.Listen != "":
		r.answers = &listener{address: cfg.Listen, log: cfg.Log}
	case cfg.Webroot != "":
		r.answers = &webroot{folder: cfg.Webroot, state: cfg.State}
	default:
		r.answers = nowhere{}
	}
	return r, nil
}

// Wake has it look again: the challenges have changed.
func (r *Responder) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run answers challenges until ctx ends.
func (r *Responder) Run(ctx context.Context) error {
	defer func() {
		if err := r.answers.stop(context.WithoutCancel(ctx)); err != nil {
			r.Log.WarnContext(ctx, "stopping to answer challenges", "error", err)
		}
	}()
	for {
		next := r.pass(ctx)
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(max(next.Sub(r.Now()), 0))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer:
		}
	}
}

// pass serves what is to be served, reports what has changed, and says when to
// look again by itself.
func (r *Responder) pass(ctx context.Context) (next time.Time) {
	want, wrong := map[string]string{}, map[string]string{}
	challenges := r.Challenges()
	for _, c := range challenges {
		switch {
		case !token.MatchString(c.GetToken()) || !keyAuthorization.MatchString(c.GetKeyAuthorization()) || !strings.HasPrefix(c.GetKeyAuthorization(), c.GetToken()+"."):
			wrong[c.GetId()] = "the challenge is malformed: token or key authorization is not as RFC 8555 has it"
		case len(want) >= maxAnswers:
			wrong[c.GetId()] = fmt.Sprintf("more than %d challenges at once", maxAnswers)
		default:
			want[c.GetToken()] = c.GetKeyAuthorization()
		}
	}
	served := r.answers.serve(ctx, want)
	if served != nil {
		r.Log.WarnContext(ctx, "challenges cannot be answered", "challenges", len(want), "error", served)
		if r.retries() {
			next = r.Now().Add(retry)
		}
	}
	current := map[string]bool{}
	for _, c := range challenges {
		id := c.GetId()
		current[id] = true
		message := wrong[id]
		if message == "" && served != nil {
			message = served.Error()
		}
		if due := r.tell(trace.Follow(ctx, c.GetTraceparent()), id, message); !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	for id := range r.reported {
		if !current[id] {
			delete(r.reported, id)
		}
	}
	return next
}

func (r *Responder) retries() bool { return r.answers != nowhere{} }

// tell reports a challenge unless the server knows; it says when to try again.
func (r *Responder) tell(ctx context.Context, id, message string) time.Time {
	s := r.reported[id]
	if s == nil {
		s = &state{pace: pace.New(time.Second, time.Minute)}
		r.reported[id] = s
	}
	ready := message == ""
	if s.said && s.ready == ready && s.message == message {
		return time.Time{}
	}
	if r.Now().Before(s.until) {
		return s.until
	}
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	crash.At(crash.ChallengeUp)
	ctx = trace.WithRequest(ctx, trace.NewRequest())
	err := r.Report(ctx, &agentv1.ReportChallengeRequest{Challenge: id, Ready: ready, Message: message})
	crash.At(crash.ChallengeTold)
	if err != nil && pace.Passing(err) {
		s.until = r.Now().Add(s.pace.After(err))
		return s.until
	}
	if err != nil { // the server's answer: it is no longer interested
		r.Log.InfoContext(ctx, "challenge is over", "challenge", id, "error", err)
	}
	s.said, s.ready, s.message = true, ready, message
	r.Log.InfoContext(ctx, "challenge reported", "challenge", id, "ready", ready, "message", message)
	return time.Time{}
}

// nowhere is a host that does not say how challenges are to be answered.
type nowhere struct{}

var errNowhere = errors.New("this host's configuration has neither http01.listen nor http01.webroot: set one of them, or use another way of validation")

func (nowhere) serve(_ context.Context, want map[string]string) error {
	if len(want) == 0 {
		return nil
	}
	return errNowhere
}

func (nowhere) stop(context.Context) error { return nil }

// written reads which files were put into a webroot, perhaps by an earlier process.
func written(ctx context.Context, state *disk.Folder) (map[string]bool, error) {
	data, err := state.Get(ctx, writtenName)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]bool{}, nil
	}
	if err != nil {
		return nil, err
	}
	var files map[string]bool
	err = json.Unmarshal(data, &files)
	if err == nil && files == nil {
		err = errors.New("no list of files")
	}
	if err != nil {
		state.SetAside(ctx, writtenName, err)
		return map[string]bool{}, nil
	}
	return files, nil
}
