// Package ordering moves requests whose authority does not answer at once, from accepted to the end.
//
// It guarantees that one worker at a time stores a request's progress, that the worker stores what it is about to do before it does
// what cannot be undone, and that a request left behind by a crash is taken up again from what is stored. It waits for
// nobody: a request that waits for a host or for a CA waits in the database.
package ordering

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// Rules are the times and numbers the work keeps to.
type Rules struct {
	Retry issuance.Retry
	// HostPatience is how long a request waits for a host's report before it asks the CA whether the order still stands.
	HostPatience time.Duration
	// Workers bounds how many requests are moved at once.
	Workers int
	// Claim is how long a request stays with a process that has died.
	Claim time.Duration
	// Pass is how often all is looked at without being woken.
	Pass time.Duration
}

// Authorities gives the authority of a request, ready to work; fault.Permanent for one that was deleted.
type Authorities interface {
	LiveByUID(ctx context.Context, uid string) (authority.Authority, error)
}

// Config is what a Worker needs; all but Failed and Crash is required.
type Config struct {
	Store       *store.Store
	Authorities Authorities
	Rules       Rules
	Log         *slog.Logger
	Now         func() time.Time
	// Failed, if set, is told of each step that failed and of each order that ended without a certificate.
	Failed func(authority string, why error)
	// Crash, in tests, is asked between any two steps whether the process has just died.
	Crash func(point string) bool
}

// Worker moves requests.
type Worker struct {
	Config
	holder   string
	problems *problems
}

// New validates c.
func New(c Config) (*Worker, error) {
	if c.Store == nil || c.Authorities == nil || c.Log == nil || c.Now == nil {
		return nil, errors.New("ordering.New: Store, Authorities, Log and Now are required")
	}
	if c.Rules.Workers < 1 || c.Rules.Claim <= 0 || c.Rules.Pass <= 0 || c.Rules.HostPatience <= 0 {
		return nil, errors.New("ordering.New: Workers, Claim, Pass and HostPatience must be positive")
	}
	if err := c.Rules.Retry.Check(); err != nil {
		return nil, err
	}
	if c.Failed == nil {
		c.Failed = func(string, error) {}
	}
	if c.Crash == nil {
		c.Crash = func(string) bool { return false }
	}
	return &Worker{Config: c, holder: uuid.NewString(), problems: newProblems(c.Store, c.Log)}, nil
}

// Run moves requests until ctx ends, then lets those under way come to a point where they can be left.
func (w *Worker) Run(ctx context.Context) error {
	wake := w.Store.DB().Listen(store.TopicRequests)
	var working sync.WaitGroup
	defer working.Wait()
	free := make(chan struct{}, w.Rules.Workers)
	for range w.Rules.Workers {
		free <- struct{}{}
	}
	left := make(chan struct{}, 1) // a request was left until later: when that is was not known before
	for {
		more := w.dispatch(ctx, free, left, &working)
		pause := w.pause(ctx)
		if more { // all workers are busy: the next that is free wakes us
			select {
			case <-ctx.Done():
				return nil
			case t := <-free:
				free <- t
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-left:
		case <-time.After(pause):
		}
	}
}

// dispatch claims as much as there are free workers, and reports whether more may wait.
func (w *Worker) dispatch(ctx context.Context, free, left chan struct{}, working *sync.WaitGroup) bool {
	n := len(free) // only this goroutine takes from it
	if n == 0 {
		return true
	}
	claims, err := w.Store.Claim(ctx, w.holder, w.Now().Add(w.Rules.Claim), n)
	if err != nil {
		if ctx.Err() == nil {
			w.Log.WarnContext(ctx, "requests cannot be read", "error", err)
		}
		return false
	}
	for _, c := range claims {
		<-free
		working.Go(func() {
			defer func() { free <- struct{}{} }()
			w.work(ctx, c)
			select {
			case left <- struct{}{}:
			default:
			}
		})
	}
	return len(claims) == n
}

// pause is how long there will be nothing to do.
func (w *Worker) pause(ctx context.Context) time.Duration {
	due, err := w.Store.NextDue(ctx)
	if err != nil || due.IsZero() {
		return w.Rules.Pass
	}
	return max(min(due.Sub(w.Now()), w.Rules.Pass), time.Millisecond)
}

// work moves one request as far as it will go. Half the claim is kept for the last answer to come in and be stored.
func (w *Worker) work(ctx context.Context, c *store.Claim) {
	bounded, cancel := context.WithTimeout(trace.With(ctx, trace.Link{Trace: c.Request.TraceID, Span: c.Request.Span}), w.Rules.Claim/2)
	defer cancel()
	log := w.Log.With("request", c.Request.ID, "authority", c.Request.Authority)
	fresh := false
	for !c.Request.State.Ended() {
		if w.Crash("before " + string(c.Request.State)) {
			return
		}
		crash.In(crash.CAAsked, string(c.Request.State))
		step, span := trace.Begin(bounded, "authority "+string(c.Request.State), trace.Attribute{Key: "sallyport.authority", Value: c.Request.Authority})
		p, failure := w.step(step, c, fresh)
		span.End(trace.Failure(failure))
		crash.In(crash.CAAnswered, string(c.Request.State))
		if w.Crash("after " + string(c.Request.State)) {
			return
		}
		if failure != nil && ctx.Err() != nil { // stopped, not failed: the next to claim it asks the CA
			w.release(bounded, log, c)
			return
		}
		from := c.Request.State
		switch {
		case failure != nil:
			w.Failed(c.Request.Authority, failure)
		case p.Event == issuance.Reorder:
			w.Failed(c.Request.Authority, p.Trouble)
		}
		ch := decide(c.Request, c.Polls, p, failure, w.Rules, w.Now())
		err := w.apply(bounded, c, ch)
		if f := fault.Of(err); f != nil && f.Reason == store.ReasonOrderTaken { // wait until it is over, then ask for another
			failure = err
			ch = decide(c.Request, c.Polls, p, failure, w.Rules, w.Now())
			err = w.apply(bounded, c, ch)
		}
		if err != nil {
			log.WarnContext(ctx, "the request's progress is not stored", "state", string(c.Request.State), "error", err)
			w.release(bounded, log, c)
			return
		}
		crash.In(crash.StepStored, string(from))
		w.tell(ctx, log, c, ch, failure)
		w.problems.after(bounded, c.AuthorityUID, ch, failure)
		if !ch.Keep {
			return
		}
		fresh = ch.Event == issuance.BeginOrder || ch.Event == issuance.BeginFinalize || ch.Dropped != ""
		if ctx.Err() != nil {
			w.release(bounded, log, c)
			return
		}
	}
}

func (w *Worker) release(ctx context.Context, log *slog.Logger, c *store.Claim) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.Rules.Claim/4)
	defer cancel()
	if err := w.Store.Release(ctx, c); err != nil {
		log.WarnContext(ctx, "the claim is left to run out", "error", err)
	}
}

// apply stores the outcome even when we are told to stop meanwhile: it has happened.
func (w *Worker) apply(ctx context.Context, c *store.Claim, ch store.Change) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.Rules.Claim/4)
	defer cancel()
	return w.Store.Apply(ctx, c, ch)
}

func (w *Worker) step(ctx context.Context, c *store.Claim, fresh bool) (authority.Progress, error) {
	live, err := w.Authorities.LiveByUID(ctx, c.AuthorityUID)
	if err != nil {
		return authority.Progress{}, err
	}
	csr, err := pki.CheckCSR(c.CSR)
	if err != nil {
		return authority.Progress{}, fault.New(fault.Permanent, fault.ReasonInternal, "the stored CSR cannot be read any more: %w", err)
	}
	work := authority.Work{Request: c.Request, CSR: csr, Usages: c.Usages, Lifetime: c.Lifetime, Challenges: c.Challenges, Fresh: fresh}
	if c.Request.Replaces != "" && c.Request.State == issuance.Ordering {
		if work.Replaces, err = w.predecessor(ctx, c); err != nil {
			return authority.Progress{}, err
		}
	}
	return live.Step(ctx, work)
}

// predecessor is the certificate to be renewed, if this authority issued it: another CA knows nothing of it, and would
// refuse the order.
func (w *Worker) predecessor(ctx context.Context, c *store.Claim) (*x509.Certificate, error) {
	old, known, err := w.Store.CertificateByFingerprint(ctx, c.Request.Replaces)
	if err != nil || !known || old.AuthorityUID != c.AuthorityUID {
		return nil, err
	}
	return x509.ParseCertificate(old.DER)
}

func (w *Worker) tell(ctx context.Context, log *slog.Logger, c *store.Claim, ch store.Change, failure error) {
	switch {
	case failure != nil && fault.KindOf(failure) == fault.Internal:
		log.ErrorContext(ctx, "request step failed", "state", string(c.Request.State), "error", failure)
	case ch.Delayed || ch.Event == issuance.Refuse:
		log.WarnContext(ctx, "request in trouble", "state", string(c.Request.State), "reason", ch.Reason, "message", ch.Message, "next_attempt", ch.Next)
	case ch.Event != "":
		log.InfoContext(ctx, "request moved", "state", string(c.Request.State))
	}
}

// Report notes what a host says about a challenge.
func (w *Worker) Report(ctx context.Context, challenge string, ready bool, message string) error {
	return w.Store.ReportChallenge(ctx, challenge, ready, message, func(failures int) time.Duration {
		return w.Rules.Retry.AfterTrouble(failures, 0)
	})
}
