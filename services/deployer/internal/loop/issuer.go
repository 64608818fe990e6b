package loop

import (
	"context"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

const (
	callers  = 16          // calls to the issuer at once
	lookEach = time.Second // for what was not hinted at
	perLook  = 64          // rows claimed at once

	releaseTime  = 2 * time.Second
	reasonReused = "REQUEST_ID_REUSED" // the issuer's
	maxConflicts = 5
)

// requests speaks to the issuer about stored CSRs: at once about those this replica has stored, and about all that are due.
func (l *Loops) requests(ctx context.Context) error {
	var left leftovers
	defer left.release(ctx, l)
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan string)
	for range callers {
		g.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case id := <-l.Hints.requests: // stored, and so claimed, by this replica
					l.request(ctx, id, &left)
				case id := <-queue:
					l.request(ctx, id, &left)
				}
			}
		})
	}
	g.Go(func() error {
		for pause(ctx, lookEach, l.Hints.claim) {
			ids, err := l.Store.ClaimRequests(ctx, perLook)
			l.trouble(ctx, "claiming requests", err)
			for _, id := range ids {
				select {
				case queue <- id:
				case <-ctx.Done():
					left.add(id)
				}
			}
		}
		return nil
	})
	return g.Wait()
}

// leftovers are requests that are claimed and not done with when this process stops.
type leftovers struct {
	mu  sync.Mutex
	ids []string
}

func (f *leftovers) add(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids = append(f.ids, id)
}

// release lets another process go on with them at once. What it cannot release is free when the claim runs out.
func (f *leftovers) release(ctx context.Context, l *Loops) {
	for len(l.Hints.requests) > 0 {
		f.add(<-l.Hints.requests)
	}
	if len(f.ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	if err := l.Store.ReleaseRequests(ctx, f.ids); err != nil {
		l.Log.InfoContext(ctx, "leaving requests to whoever comes next", "requests", len(f.ids), "error", err)
	}
}

// request brings one assignment's request forward: hands it in, or asks where it stands.
func (l *Loops) request(ctx context.Context, id string, left *leftovers) {
	defer func() {
		if ctx.Err() != nil {
			left.add(id)
		}
	}()
	q, ok, err := l.Store.Request(ctx, id)
	if err != nil || !ok {
		l.trouble(ctx, "reading a request", err)
		return
	}
	ctx = store.Trace(ctx, q.Assignment)
	answer, err := l.ask(ctx, q)
	crash.At(crash.IssuerAsked)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil && final(err, q.Tries):
		f := fault.Of(err)
		err = l.Store.FailRequest(ctx, q.Assignment, f.Reason, clip(f.Message))
	case err != nil:
		l.trouble(ctx, "asking the issuer", err)
		wait := max(backOff(q.Tries), fault.Of(err).RetryAfter)
		err = l.Store.PostponeRequest(ctx, q, l.Now().Add(wait), q.Sent)
	case answer.Ended:
		err = l.Store.FailRequest(ctx, q.Assignment, orElse(answer.Reason, "REFUSED"), clip(answer.Message))
	case answer.Certificate.Fingerprint != "":
		err = l.Store.Issue(ctx, q.Assignment, answer.Certificate, answer.Chain)
		crash.At(crash.AnswerStored)
	default:
		err = l.Store.PostponeRequest(ctx, q, l.Now().Add(l.AskEvery), true)
	}
	l.trouble(ctx, "storing the issuer's answer", err)
}

// ask prefers the question to a second hand-in, but a request that the issuer does not know is handed in again.
func (l *Loops) ask(ctx context.Context, q store.Request) (peer.Answer, error) {
	if q.Sent {
		answer, err := l.Peers.Ask(ctx, q.Assignment)
		if err == nil || fault.KindOf(err) != fault.NotFound {
			return answer, err
		}
	}
	return l.Peers.Submit(ctx, q.Assignment)
}

// final says that the same call will get the same answer. Trouble with our own standing at the issuer is not the request's, and
// a conflict is final only if the issuer says in which state it is, or that the id stands for something else, or again and again.
func final(err error, tries int) bool {
	f := fault.Of(err)
	switch f.Kind {
	case fault.InvalidArgument, fault.NotFound, fault.AlreadyExists, fault.Precondition, fault.Permanent:
		return true
	case fault.Conflict:
		return f.Reason == reasonReused || f.Meta["state"] != "" || tries >= maxConflicts
	case fault.Internal, fault.Unauthenticated, fault.Denied, fault.Exhausted, fault.Transient:
	}
	return false
}

// intents tells the issuer what agents said about challenges, and which requests are given up.
func (l *Loops) intents(ctx context.Context) error {
	for pause(ctx, lookEach, l.Hints.intents) {
		list, err := l.Store.ClaimIntents(ctx, perLook)
		l.trouble(ctx, "claiming intents", err)
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(callers)
		for _, in := range list {
			g.Go(func() error {
				l.intent(ctx, in)
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loops) intent(ctx context.Context, in store.Intent) {
	ctx = trace.With(ctx, in.Trace)
	var err error
	if in.Challenge != "" {
		err = l.Peers.ReportChallenge(ctx, in.Challenge, in.Ready, in.Message)
	} else {
		err = l.Peers.Cancel(ctx, in.Request, in.Message)
	}
	crash.At(crash.IntentTold)
	switch {
	case err == nil:
		err = l.Store.FinishIntent(ctx, in)
	case ctx.Err() != nil:
		return
	case final(err, in.Tries):
		l.Log.InfoContext(ctx, "the issuer does not want to know", "challenge", in.Challenge, "request", in.Request, "error", err)
		err = l.Store.FinishIntent(ctx, in)
	default:
		l.trouble(ctx, "telling the issuer", err)
		err = l.Store.PostponeIntent(ctx, in, l.Now().Add(backOff(in.Tries)))
	}
	l.trouble(ctx, "storing that the issuer was told", err)
}

func orElse(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// clip keeps what is stored and shown of a message within bounds, and without control characters.
func clip(s string) string {
	const limit = 2 << 10
	s = strings.ToValidUTF8(s[:min(len(s), limit)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
