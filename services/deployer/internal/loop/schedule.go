package loop

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
)

const (
	scheduleTTL   = 10 * time.Second
	startsEach    = 30 * time.Second // all deployments that have something waiting
	redecideEach  = 5 * time.Minute  // one part of all assignments
	redecidePart  = 500
	pruneEach     = time.Hour
	keepChallenge = 7 * 24 * time.Hour
	keepWindow    = 90 * 24 * time.Hour
	keepReport    = 180 * 24 * time.Hour // an agent that was away keeps what it has not sent; see agents.return_within
	pruneReports  = 5000                 // at once
	checkRetry    = time.Minute
)

// starts gives assignments their turn: at once where a hint says that a place is free, and everywhere from time to time.
func (l *Loops) starts(ctx context.Context) error {
	all := time.NewTimer(0)
	defer all.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.Hints.starts:
			for _, name := range l.Hints.takeDeployments() {
				l.start(ctx, name)
			}
		case <-all.C:
			names, err := l.Store.Waiting(ctx, "")
			l.trouble(ctx, "looking for deployments that wait", err)
			for _, name := range names {
				l.start(ctx, name)
			}
			all.Reset(startsEach)
		}
	}
}

func (l *Loops) start(ctx context.Context, name string) {
	l.trouble(ctx, "starting assignments of "+name, l.Store.Start(ctx, name))
}

// schedule begins what its time has come for. One replica does it.
func (l *Loops) schedule(ctx context.Context) error {
	return lease.Run(ctx, l.Store.DB(), "schedule", scheduleTTL, func(ctx context.Context) error {
		s := &schedule{Loops: l, renewals: rate.NewLimiter(rate.Limit(l.RenewalsPerSecond), max(1, int(l.RenewalsPerSecond)))}
		for s.pass(ctx); pause(ctx, lookEach, nil); {
			s.pass(ctx)
		}
		return nil
	})
}

type schedule struct {
	*Loops
	renewals *rate.Limiter
	after    string    // where the decisions are brought up to date
	redecide time.Time // when to go on with that
	prune    time.Time
}

func (s *schedule) pass(ctx context.Context) {
	s.retry(ctx)
	s.renew(ctx)
	s.check(ctx)
	now := time.Now() // how often is a matter of the machine's own clock
	if now.After(s.redecide) {
		s.redecide = now.Add(redecideEach)
		after, err := s.Store.Redecide(ctx, s.after, redecidePart)
		s.trouble(ctx, "deciding renewals anew", err)
		s.after = after
	}
	if now.After(s.prune) {
		s.prune = now.Add(pruneEach)
		s.trouble(ctx, "forgetting old challenges", s.Store.PruneChallenges(ctx, s.Now().Add(-keepChallenge)))
		s.trouble(ctx, "forgetting old reports", s.Store.PruneReports(ctx, s.Now().Add(-keepReport), pruneReports))
		s.trouble(ctx, "forgetting old advice", s.Store.PruneWindows(ctx, s.Now().Add(-keepWindow)))
	}
}

func (s *schedule) retry(ctx context.Context) {
	due, err := s.Store.DueRetries(ctx, perLook)
	s.trouble(ctx, "looking for attempts that are due", err)
	for _, a := range due {
		s.trouble(ctx, "trying "+a.ID+" again", s.Store.Retry(store.Trace(ctx, a), a))
	}
}

// renew begins due renewals, so many a second whatever the number that is due.
func (s *schedule) renew(ctx context.Context) {
	due, err := s.Store.DueRenewals(ctx, perLook)
	s.trouble(ctx, "looking for renewals that are due", err)
	for _, a := range due {
		if !s.renewals.Allow() {
			return
		}
		s.trouble(ctx, "renewing "+a.ID, s.Store.BeginRenewal(ctx, a))
	}
}

// check compares deployments with their identity and profile.
func (s *schedule) check(ctx context.Context) {
	list, err := s.Store.Unchecked(ctx, s.Now().Add(-s.CheckEvery), perLook)
	s.trouble(ctx, "looking for deployments to check", err)
	for _, u := range list {
		at := s.Now()
		wanted, err := s.Peers.Want(ctx, u.Deployment)
		switch {
		case ctx.Err() != nil:
			return
		case fault.KindOf(err) == fault.InvalidArgument && err != nil:
			// The deployment does not fit its identity or profile any more. What is served stays; the issuer refuses what is new.
			s.Log.WarnContext(ctx, "deployment does not fit any more", "deployment", u.Deployment.Name, "error", err)
			err = s.Store.PostponeCheck(ctx, u, at, fault.Of(err).Message)
		case err != nil:
			s.trouble(ctx, "checking deployment "+u.Deployment.Name, err)
			err = s.Store.PostponeCheck(ctx, u, at.Add(checkRetry-s.CheckEvery), u.Deployment.Problem)
		default:
			err = s.Store.Checked(ctx, u, at, wanted, why(u.Deployment.Wanted, wanted))
		}
		s.trouble(ctx, "noting a check", err)
	}
}

func why(was, is rollout.Wanted) string {
	if !was.Names.Equal(is.Names) {
		return "the identity's names changed"
	}
	return "the profile's key types changed"
}
