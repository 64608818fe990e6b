package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
)

// TestAgentsIdentity: an agent's identity lives for a minute here. It is renewed with a new key while the agent works, and an
// agent that was away for longer than that comes back without a person.
func TestAgentsIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	must(t, w.plane.Stop())
	edit(t, filepath.Join(w.Dir, "control.yaml"), "agents: {", "agents: {svid_ttl: 1m, ")
	must(t, w.plane.Start(t.Context()))
	awake, away := w.nginx(t, "awake", ""), w.nginx(t, "away", "")
	for _, h := range []*host{awake, away} {
		h.deploy(t, "corp")
		h.healthy(t, 1)
	}
	must(t, away.Stop())
	left := time.Now()
	first := awake.identityOnDisk(t)
	expires := func(h *host) time.Time {
		got := ok(w.deployer.GetAgent(t.Context(), &deployerv1.GetAgentRequest{Host: h.Name}))(t)
		return got.GetAgent().GetSvidExpires().AsTime()
	}
	gone := expires(away)
	if life := gone.Sub(left); life > time.Minute {
		t.Fatalf("identities live for %s", life)
	}
	// What is wanted changes while it is away.
	away.renew(t)

	w.await(t, "the identity to be renewed", func() error {
		if awake.identityOnDisk(t) == first {
			return fmt.Errorf("it is the first one, until %s", expires(awake))
		}
		return nil
	})
	awake.renew(t)
	awake.healthy(t, 2)
	w.awaitRecord(t, "deployer.agent.", awake.Name, "")

	time.Sleep(time.Until(gone.Add(2 * time.Second))) // until the identity has run out
	must(t, away.Start())
	away.healthy(t, 2)
	if !expires(away).After(gone) {
		t.Error("it works with an identity that has run out")
	}
	awake.renew(t) // with an identity renewed twice
	awake.healthy(t, 3)
}

// identityOnDisk is a hash of the agent's identity, its key included.
func (h *host) identityOnDisk(t *testing.T) string {
	t.Helper()
	sum := sha256.Sum256(ok(os.ReadFile(filepath.Join(h.State, "identity", "current")))(t))
	return hex.EncodeToString(sum[:])
}
