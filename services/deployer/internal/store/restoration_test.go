package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
)

func TestRestoration(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.must(f.CreateToken(ctx, fleet.Token{ID: "unused", Host: "web-2", Expires: f.now().Add(48 * time.Hour), CreatedBy: "ann", Created: f.now()}))
		mint := minter(t, f.now())
		epoch, backup := f.Epoch(), f.now().Add(time.Minute)
		svid := mint("web-1", backup.Add(time.Hour))
		f.advance(3 * time.Hour)
		f.refused(f.Adopt(ctx, "web-1", svid), fleet.ReasonKeyUnknown) // it was not restored
		f.cfg.Lost = fleet.Lost{From: backup, Until: f.now()}
		f.reopen()
		if f.Epoch() == epoch {
			t.Error("agents that know more than the store would be told less than they need")
		}
		if e := f.events("store.restored"); len(e) != 1 || e[0].GetFacts()["tokens_revoked"] != "1" {
			t.Fatalf("recorded %v", e)
		}
		epoch = f.Epoch()
		f.must(f.CreateToken(ctx, fleet.Token{ID: "new", Host: "web-2", Expires: f.now().Add(48 * time.Hour), CreatedBy: "ann", Created: f.now()}))
		f.reopen() // once is enough
		if e := f.events("store.restored"); len(e) != 1 || f.Epoch() != epoch {
			t.Fatalf("taken in again: %v", e)
		}
		f.must(f.Adopt(ctx, "web-1", svid))
		f.must(f.Adopt(ctx, "web-1", mint("web-1", backup.Add(2*time.Hour)))) // the newest wins
		f.refused(f.Adopt(ctx, "web-1", svid), fleet.ReasonKeyUnknown)
		f.happened("agent.key_adopted", 2)
		f.refused(f.Adopt(ctx, "web-9", svid), fleet.ReasonAgentUnknown)
		a, err := f.Agent(ctx, "web-1")
		f.must(err)
		if a.Key.Hash == pki.SPKIHash(svid.PublicKey) || !a.SVIDExpires.Equal(backup.Add(26*time.Hour).Truncate(time.Second)) {
			t.Errorf("the agent is %+v", a)
		}
	})
}

// minter grants agents their identities at any time.
func minter(t *testing.T, from time.Time) func(host string, at time.Time) *x509.Certificate {
	t.Helper()
	clock := from
	ca, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("test.example"), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	return func(host string, at time.Time) *x509.Certificate {
		clock = at
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.AgentID(ca.TrustDomain(), host)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.Mint(id, key.Public(), 24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return chain[0]
	}
}

func TestPruneReports(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		f.must(f.Start(ctx, "shop"))
		a := f.served(fingerprintOf(1))
		old := f.now().Add(time.Second)
		f.advance(time.Hour)
		f.must(f.report(a, rollout.OutcomeServed, fingerprintOf(1)))
		f.must(f.PruneReports(ctx, old, 10))
		var n int
		f.must(f.read(ctx, func(ctx context.Context, t *txn) error {
			return t.QueryRow(ctx, `SELECT count(*) FROM report`).Scan(&n)
		}))
		if n != 1 {
			t.Errorf("%d reports are left", n)
		}
	})
}
