package loop

import (
	"context"
	"errors"
	"strings"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const (
	followEach = time.Second
	// overlap bears transactions that took long to commit, and clocks of replicas that differ.
	overlap   = 30 * time.Second
	beatEach  = 8 * time.Second
	agentsAll = 10 * time.Minute
)

// follow wakes those who wait for what other replicas, or the transactions of events, have changed, and keeps the standing of
// agents in memory.
func (l *Loops) follow(ctx context.Context) error {
	f := &follower{Loops: l, since: l.Now()}
	changed := l.Store.DB().Listen(store.TopicChanged)
	defer l.retire(ctx)
	for f.look(ctx); pause(ctx, followEach, changed); {
		f.look(ctx)
		l.Hints.Claim() // what changed may be an event's news of a request
	}
	return nil
}

func (l *Loops) retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := l.Store.Retire(ctx, l.Replica); err != nil {
		l.Log.WarnContext(ctx, "signing off", "error", err)
	}
}

type follower struct {
	*Loops
	since  time.Time
	beat   time.Time
	agents time.Time
	known  store.Movements
}

func (f *follower) look(ctx context.Context) {
	asked, now := time.Now(), f.Now()
	if asked.After(f.beat) {
		f.beat = asked.Add(beatEach)
		f.trouble(ctx, "beating", f.Store.Beat(ctx, f.Replica))
	}
	since := f.since.Add(-overlap)
	if err := errors.Join(f.lookAtAgents(ctx, asked, since), f.lookAtHosts(ctx, asked, since)); err != nil {
		f.trouble(ctx, "following", err)
		return
	}
	f.since = now
}

func (f *follower) lookAtHosts(ctx context.Context, asked, since time.Time) error {
	moved, err := f.Store.Moved(ctx, since)
	if err != nil {
		return err
	}
	for host, h := range moved.Hosts {
		if f.known.Hosts[host].Revision != h.Revision {
			f.Hub.Wake(session.HostKey(host))
		}
		f.Streams.Moved(host, h.Stream, asked)
	}
	for name, changed := range moved.Deployments {
		if !f.known.Deployments[name].Equal(changed) {
			f.Hub.Wake(session.DeploymentKey(name))
			f.Hints.Deployment(name)
		}
	}
	f.known = moved
	return nil
}

func (f *follower) lookAtAgents(ctx context.Context, asked, since time.Time) error {
	if asked.After(f.agents) {
		since = time.Time{}
	}
	agents, err := f.Store.AgentsChanged(ctx, since)
	if err != nil {
		return err
	}
	if since.IsZero() {
		f.agents = asked.Add(agentsAll)
	}
	f.Standing.Update(agents)
	return nil
}

// Handle does what an event asks for, in its transaction.
func (l *Loops) Handle(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
	switch p := e.GetPayload().(type) {
	case *eventv1.Event_RequestIssued:
		return l.Store.RequestMoved(ctx, tx, p.RequestIssued.GetRequestId())
	case *eventv1.Event_RequestEnded:
		return l.Store.RequestMoved(ctx, tx, p.RequestEnded.GetRequestId())
	case *eventv1.Event_ChallengePresented:
		c := p.ChallengePresented
		return l.Store.Present(ctx, tx, store.Challenge{ID: c.GetChallengeId(), Request: c.GetRequestId(), Domain: c.GetDomain(),
			Token: c.GetToken(), KeyAuthorization: c.GetKeyAuthorization()})
	case *eventv1.Event_ChallengeWithdrawn:
		return l.Store.WithdrawChallenge(ctx, tx, p.ChallengeWithdrawn.GetChallengeId(), p.ChallengeWithdrawn.GetRequestId())
	case *eventv1.Event_RenewalWindowChanged:
		w := p.RenewalWindowChanged
		if w.GetStart() == nil || w.GetEnd() == nil {
			return nil
		}
		return l.Store.SetWindow(ctx, tx, w.GetFingerprint(), renewal.Window{Start: w.GetStart().AsTime(), End: w.GetEnd().AsTime()})
	case *eventv1.Event_CertificateRevoked:
		if p.CertificateRevoked.GetRevoked() == nil {
			return nil
		}
		return l.Store.SetRevoked(ctx, tx, p.CertificateRevoked.GetFingerprint(), p.CertificateRevoked.GetRevoked().AsTime())
	}
	kind, name, _ := strings.Cut(e.GetSubject(), "/")
	switch {
	case strings.HasPrefix(e.GetType(), "inventory.identity.") && kind == "identities":
		return l.Store.Recheck(ctx, tx, name, "")
	case strings.HasPrefix(e.GetType(), "issuer.profile.") && kind == "profiles":
		return l.Store.Recheck(ctx, tx, "", name)
	}
	return nil
}
