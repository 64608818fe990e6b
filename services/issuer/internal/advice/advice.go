// Package advice asks CAs when their certificates should be renewed (RFC 9773).
//
// It guarantees that a live certificate is asked about at least twice a day, no sooner than the CA wishes, and that only a
// window that makes sense, from a plain answer, becomes advice: a CA that is away, or talks nonsense, changes nothing.
package advice

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/acme"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// Rules are the times the asking keeps to.
type Rules struct {
	// Every is the pause after an answer without Retry-After (RFC 9773 section 4.3.3 suggests 6 hours).
	Every time.Duration
	// Least and Most bound what a CA can wish for.
	Least, Most time.Duration
	// Retry is the first pause after a failure; it doubles up to Every.
	Retry time.Duration
	// Pass is how often all is looked at without being woken.
	Pass time.Duration
}

// Check reports the first value that is wrong.
func (r Rules) Check() error {
	switch {
	case r.Least <= 0 || r.Most < r.Least:
		return errors.New("the least pause must be positive and not longer than the most")
	case r.Every < r.Least || r.Every > r.Most:
		return errors.New("the usual pause must lie between the least and the most")
	case r.Retry <= 0 || r.Retry > r.Every:
		return errors.New("the pause after a failure must be positive and not longer than the usual one")
	case r.Pass <= 0:
		return errors.New("pass must be positive")
	}
	return nil
}

// Authorities gives the authority that issued a certificate.
type Authorities interface {
	LiveByUID(ctx context.Context, uid string) (authority.Authority, error)
}

// adviser is an authority that knows when to renew.
type adviser interface {
	RenewalWindow(ctx context.Context, id string) (acme.Window, error)
}

// Config is what an Adviser needs; all of it is required.
type Config struct {
	Store       *store.Store
	Authorities Authorities
	Rules       Rules
	Log         *slog.Logger
	Now         func() time.Time
}

// Adviser asks.
type Adviser struct {
	Config
	holder string
}

// New validates c.
func New(c Config) (*Adviser, error) {
	if c.Store == nil || c.Authorities == nil || c.Log == nil || c.Now == nil {
		return nil, errors.New("advice.New: Store, Authorities, Log and Now are required")
	}
	if err := c.Rules.Check(); err != nil {
		return nil, err
	}
	return &Adviser{Config: c, holder: uuid.NewString()}, nil
}

const (
	atOnce     = 8 // questions under way
	claimFor   = 2 * time.Minute
	questionIn = 45 * time.Second // one question with its directory
)

// Run asks until ctx ends.
func (a *Adviser) Run(ctx context.Context) error {
	wake := a.Store.DB().Listen(store.TopicWindows)
	for ctx.Err() == nil {
		n, err := a.pass(ctx)
		if err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "renewal windows cannot be read", "error", err)
		}
		if n > 0 && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-time.After(a.pause(ctx)):
		}
	}
	return nil
}

func (a *Adviser) pause(ctx context.Context) time.Duration {
	next, err := a.Store.NextWindow(ctx)
	if err != nil || next.IsZero() {
		return a.Rules.Pass
	}
	return max(min(next.Sub(a.Now()), a.Rules.Pass), time.Millisecond)
}

// pass asks about what is due, as much as fits at once.
func (a *Adviser) pass(ctx context.Context) (int, error) {
	claims, err := a.Store.ClaimWindows(ctx, a.holder, a.Now().Add(claimFor), atOnce)
	if err != nil {
		return 0, err
	}
	var g errgroup.Group
	for _, c := range claims {
		g.Go(func() error { return a.ask(ctx, c) })
	}
	return len(claims), g.Wait()
}

func (a *Adviser) ask(ctx context.Context, c *store.WindowClaim) error {
	asking, cancel := context.WithTimeout(ctx, questionIn)
	defer cancel()
	got, err := a.window(asking, c)
	if ctx.Err() != nil {
		return nil
	}
	w, next, fails := settle(c, got, err, a.Rules, a.Now())
	if err != nil && !next.IsZero() {
		a.Log.WarnContext(ctx, "no renewal window", "fingerprint", string(c.Fingerprint), "next", next, "error", err)
	}
	err = a.Store.SaveWindow(context.WithoutCancel(ctx), c, w, next, fails)
	crash.At(crash.AdviceStored)
	return err
}

func (a *Adviser) window(ctx context.Context, c *store.WindowClaim) (acme.Window, error) {
	live, err := a.Authorities.LiveByUID(ctx, c.AuthorityUID)
	if err != nil {
		return acme.Window{}, err
	}
	adviser, ok := live.(adviser)
	if !ok {
		return acme.Window{}, fault.New(fault.Permanent, acme.ReasonNoRenewalInfo, "this kind of authority gives no advice")
	}
	return adviser.RenewalWindow(ctx, c.RenewalID)
}

// settle says what is known after a question and when to ask again; zero: never. Without an answer that makes sense what was
// known stays.
func settle(c *store.WindowClaim, got acme.Window, err error, rules Rules, now time.Time) (store.Window, time.Time, int) {
	w, fails, pause := c.Window, 0, rules.Every
	switch f := fault.Of(err); {
	case f == nil:
		w.Start, w.End, w.Explanation = got.Start, got.End, got.Explanation
		if got.After > 0 {
			pause = got.After
		}
	case f.Kind == fault.Permanent:
		return w, time.Time{}, c.Fails + 1
	case f.Kind == fault.NotFound:
		fails, pause = c.Fails+1, rules.Most // it may learn to
	default:
		fails = c.Fails + 1
		pause = rules.Retry << min(c.Fails, 20)
		if pause > rules.Every || pause <= 0 {
			pause = rules.Every
		}
		pause = max(pause, f.RetryAfter)
	}
	pause = min(max(pause, rules.Least), rules.Most)
	// Not all at the same time, and never later than Most.
	next := now.Add(min(pause+rand.N(pause/10+1), rules.Most))
	if !next.Before(c.NotAfter) {
		return w, time.Time{}, fails
	}
	return w, next, fails
}
