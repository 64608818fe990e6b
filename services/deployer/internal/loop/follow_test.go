package loop

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

// woken says whether a signal came.
func woken(s *session.Signal) bool {
	select {
	case <-s.C:
		return true
	default:
		return false
	}
}

// TestFollow has another replica change things: each is seen at the next look, even if its transaction took long or its clock is
// behind, and once.
func TestFollow(t *testing.T) {
	f := setUp(t, 1)
	f.serve(t, 1) // its commits tell nobody here, as another replica's do not
	ctx := t.Context()
	follow := f.follower()
	host, deployment := f.Hub.Wait(session.HostKey("web-1")), f.Hub.Wait(session.DeploymentKey("d0"))
	agent := identity.Caller{Role: identity.RoleAgent, Name: "web-1", Key: "k"}
	follow.look(ctx)
	if !woken(host) || !woken(deployment) || f.Standing.Check(agent) != nil {
		t.Fatal("what was there at first was not seen")
	}
	for range 5 {
		f.advance(time.Second)
		follow.look(ctx)
		if woken(host) || woken(deployment) {
			t.Fatal("nothing changed, and somebody was woken")
		}
	}
	for _, late := range []time.Duration{0, time.Second, 10 * time.Second, 20 * time.Second} {
		f.advance(time.Minute)
		follow.look(ctx)
		f.advance(-late)
		if err := f.Store.Hear(ctx, store.Heard{Host: "web-1"}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Store.Renew(ctx, "d0", "", "", ""); err != nil {
			t.Fatal(err)
		}
		_, err := f.Store.Lock(ctx, "web-1", "late by "+late.String())
		if err != nil {
			t.Fatal(err)
		}
		f.advance(late)
		follow.look(ctx)
		if h, d, err := woken(host), woken(deployment), f.Standing.Check(agent); !h || !d || err == nil {
			t.Errorf("changes that came %s late were not seen: host %v, deployment %v, lock %v", late, h, d, err)
		}
		follow.look(ctx)
		if woken(host) || woken(deployment) {
			t.Errorf("changes that came %s late were seen twice", late)
		}
		if _, err := f.Store.Unlock(ctx, "web-1", ""); err != nil {
			t.Fatal(err)
		}
		follow.look(ctx)
		if f.Standing.Check(agent) != nil {
			t.Errorf("a change in the same second was not seen")
		}
	}
	f.advance(time.Minute)
	follow.look(ctx)
	follow.look(ctx)
	if len(follow.known.Hosts)+len(follow.known.Deployments)+len(follow.digests) > 0 {
		t.Errorf("long past changes are kept: %+v %v", follow.known, follow.digests)
	}
}

// TestFollowStream ends a stream that was opened at another replica just as it was being opened here.
func TestFollowStream(t *testing.T) {
	f := setUp(t, 1)
	f.serve(t, 1)
	follow := f.follower()
	ctx, here, err := f.Streams.Open(t.Context(), "web-1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Streams.Close(here)
	if err := f.Store.OpenStream(t.Context(), "web-1", "r", here.ID, fleet.Info{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Store.OpenStream(t.Context(), "web-1", "other", "there", fleet.Info{}); err != nil {
		t.Fatal(err)
	}
	follow.look(t.Context())
	if ctx.Err() != nil {
		t.Fatal("it ended although it may have been opened last")
	}
	f.Streams.Recorded(here)
	f.advance(time.Second)
	follow.look(t.Context())
	if ctx.Err() == nil {
		t.Error("the stream goes on beside another one of the same agent")
	}
}
