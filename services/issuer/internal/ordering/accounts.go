package ordering

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// problems keeps what is wrong with authorities stored, without asking the database after every step.
type problems struct {
	store *store.Store
	log   *slog.Logger

	mu    sync.Mutex
	noted map[string]string // by the authority's uid; absent: not known
}

func newProblems(s *store.Store, log *slog.Logger) *problems {
	return &problems{store: s, log: log, noted: map[string]string{}}
}

// after draws from one step what it says about the authority, if anything.
func (p *problems) after(ctx context.Context, uid string, ch store.Change, failure error) {
	switch f := fault.Of(failure); {
	case f == nil && (ch.Event == issuance.HaveOrder || ch.Event == issuance.Issue):
		p.note(ctx, uid, "")
	case f != nil && f.Kind != fault.Permanent && strings.HasPrefix(f.Reason, "CA_"):
		p.note(ctx, uid, text(f))
	}
}

func (p *problems) note(ctx context.Context, uid, problem string) {
	p.mu.Lock()
	old, known := p.noted[uid]
	p.noted[uid] = problem
	p.mu.Unlock()
	if known && old == problem {
		return
	}
	if err := p.store.NoteProblem(ctx, uid, problem); err != nil && ctx.Err() == nil {
		p.log.WarnContext(ctx, "an authority's problem is not stored", "error", err)
	}
}

// registrar is an authority with an account to keep.
type registrar interface{ Register(context.Context) error }

// KeepAccounts makes the accounts of ACME authorities, and brings their contacts up to date, without waiting for a request.
// It runs until ctx ends. Several replicas may do it at once: a key has one account, whoever asks for it.
func (w *Worker) KeepAccounts(ctx context.Context) error {
	wake := w.Store.DB().Listen(store.TopicAuthorities)
	tries := map[string]*try{}
	for {
		pause := w.keepAccounts(ctx, tries)
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(pause):
		}
	}
}

// try is one authority's turn: when, and for what etag it went well.
type try struct {
	next     time.Time
	failures int
	done     string
}

const authoritiesAtOnce = 100

func (w *Worker) keepAccounts(ctx context.Context, tries map[string]*try) time.Duration {
	pause := w.Rules.Pass
	after := ""
	for ctx.Err() == nil {
		page, err := w.Store.Authorities(ctx, after, authoritiesAtOnce)
		if err != nil || len(page) == 0 {
			return pause
		}
		after = page[len(page)-1].Spec.Name
		for _, a := range page {
			if a.Spec.ACME == nil {
				continue
			}
			t := tries[a.UID]
			if t == nil {
				t = &try{}
				tries[a.UID] = t
			}
			pause = min(pause, w.keepAccount(ctx, a, t))
		}
	}
	return pause
}

// keepAccount gives how long to leave this one alone.
func (w *Worker) keepAccount(ctx context.Context, a store.Authority, t *try) time.Duration {
	now := w.Now()
	if t.done == a.ETag {
		return w.Rules.Pass
	}
	if now.Before(t.next) {
		return t.next.Sub(now)
	}
	err := w.register(ctx, a)
	if err == nil {
		t.done, t.failures = a.ETag, 0
		w.problems.note(ctx, a.UID, "")
		return w.Rules.Pass
	}
	if ctx.Err() != nil {
		return 0
	}
	f := fault.Of(err)
	w.problems.note(ctx, a.UID, text(f))
	pause := w.Rules.Retry.AfterTrouble(t.failures, f.RetryAfter)
	t.failures++
	t.next = now.Add(pause)
	w.Log.WarnContext(ctx, "account not ready", "authority", a.Spec.Name, "reason", f.Reason, "retry_in", pause, "error", err)
	return pause
}

func (w *Worker) register(ctx context.Context, a store.Authority) error {
	ctx, cancel := context.WithTimeout(ctx, w.Rules.Claim)
	defer cancel()
	live, err := w.Authorities.LiveByUID(ctx, a.UID)
	if err != nil {
		return err
	}
	if r, ok := live.(registrar); ok {
		return r.Register(ctx)
	}
	return nil
}
