package loop

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const (
	followEach = time.Second
	// overlap bears transactions that took long to commit, and clocks of replicas that differ.
	overlap = 30 * time.Second
	// settled is after how long what is read for the first time need not be read once more: a stream that was being opened
	// meanwhile is known by then.
	settled   = 2 * time.Second
	beatEach  = 8 * time.Second
	agentsAll = 10 * time.Minute
)

// follow wakes those who wait for what other replicas, or the transactions of events, have changed, and keeps the standing of
// agents in memory.
func (l *Loops) follow(ctx context.Context) error {
	f := l.follower()
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

func (l *Loops) follower() *follower {
	return &follower{Loops: l, since: l.Now(), known: store.Movements{Hosts: map[string]store.HostState{}, Deployments: map[string]time.Time{}}}
}

type follower struct {
	*Loops
	since   time.Time
	beat    time.Time
	agents  time.Time
	digests map[int64]store.Digest // by second
	known   store.Movements
}

func (f *follower) look(ctx context.Context) {
	asked, now := time.Now(), f.Now()
	if asked.After(f.beat) {
		f.beat = asked.Add(beatEach)
		f.trouble(ctx, "beating", f.Store.Beat(ctx, f.Replica))
	}
	if err := f.read(ctx, asked, f.since.Add(-overlap).Truncate(time.Second)); err != nil {
		f.trouble(ctx, "following", err)
		return
	}
	f.since = now
}

// read takes over what is not as it was at the last look. After a storm all agents have changed within the overlap: who read
// them all again each time would do nothing else.
func (f *follower) read(ctx context.Context, asked, since time.Time) error {
	digests, err := f.Store.Digests(ctx, since)
	if err != nil {
		return err
	}
	if from, ok := different(f.digests, digests); ok {
		if err := errors.Join(f.lookAtAgents(ctx, from), f.lookAtHosts(ctx, asked, from)); err != nil {
			return err
		}
	}
	unsettled := f.Now().Add(-settled).Unix()
	maps.DeleteFunc(digests, func(second int64, _ store.Digest) bool { return second >= unsettled })
	f.digests = digests
	f.forget(since)
	if asked.Before(f.agents) {
		return nil
	}
	if err := f.lookAtAgents(ctx, time.Time{}); err != nil {
		return err
	}
	f.agents = asked.Add(agentsAll)
	return nil
}

// different is the first second with another digest than it had, if there is any.
func different(was, is map[int64]store.Digest) (time.Time, bool) {
	first, found := int64(0), false
	for second, d := range is {
		if was[second] != d && (!found || second < first) {
			first, found = second, true
		}
	}
	return time.Unix(first, 0), found
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
		f.known.Hosts[host] = h
	}
	for name, changed := range moved.Deployments {
		if !f.known.Deployments[name].Equal(changed) {
			f.Hub.Wake(session.DeploymentKey(name))
			f.Hints.Deployment(name)
		}
		f.known.Deployments[name] = changed
	}
	return nil
}

// forget keeps no more than what can be read again.
func (f *follower) forget(before time.Time) {
	maps.DeleteFunc(f.known.Hosts, func(_ string, h store.HostState) bool { return h.Changed.Before(before) })
	maps.DeleteFunc(f.known.Deployments, func(_ string, changed time.Time) bool { return changed.Before(before) })
}

func (f *follower) lookAtAgents(ctx context.Context, since time.Time) error {
	agents, err := f.Store.AgentsChanged(ctx, since)
	if err != nil {
		return err
	}
	f.Standing.Update(agents)
	return nil
}

// Wanted says whether an event may ask for something here. Most that happens to requests of others does not.
func Wanted(kind, subject string) bool {
	id, ofRequest := strings.CutPrefix(subject, "requests/")
	if !ofRequest || !strings.HasPrefix(kind, "issuer.request.") {
		return true
	}
	_, _, _, ours := rollout.ParseRequestID(id)
	return ours
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
