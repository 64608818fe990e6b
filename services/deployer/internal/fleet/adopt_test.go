package fleet

import (
	"crypto/elliptic"
	"crypto/x509"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// TestAdopt: the store was backed up at noon and restored two hours later.
func TestAdopt(t *testing.T) {
	clock := noon.Add(-24 * time.Hour)
	ca, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("test.example"), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.AgentID(ca.TrustDomain(), "web-1")
	if err != nil {
		t.Fatal(err)
	}
	const ttl = 24 * time.Hour
	at := func(when time.Duration, life time.Duration) *x509.Certificate {
		clock = noon.Add(when)
		k, _ := key(t, elliptic.P256())
		chain, err := ca.Mint(id, k.Public(), life)
		if err != nil {
			t.Fatal(err)
		}
		return chain[0]
	}
	lost := Lost{From: noon, Until: noon.Add(2 * time.Hour)}
	remembered := &Agent{Host: "web-1", State: Enrolled, Key: Key{Hash: "k0"}, Pending: Key{Hash: "k1"}, SVIDExpires: noon.Add(-time.Hour + ttl)}
	with := func(change func(*Agent)) *Agent {
		a := *remembered
		change(&a)
		return &a
	}
	latest := at(time.Hour, ttl)
	for _, c := range []struct {
		what string
		lost Lost
		a    *Agent
		svid *x509.Certificate
		want string
	}{
		{"renewed after the backup", lost, remembered, latest, ""},
		{"renewed in the second of the backup", lost, remembered, at(300*time.Millisecond, ttl), ""},
		{"renewed just before the restore", lost, remembered, at(2*time.Hour-time.Second, ttl), ""},
		{"a store that was never restored", Lost{}, remembered, latest, ReasonKeyUnknown},
		{"granted before the backup: stolen, and replaced since", lost, remembered, at(-2*time.Hour, ttl), ReasonKeyUnknown},
		{"granted before the backup, when SVIDs lived longer", lost, remembered, at(-2*time.Hour, 10*ttl), ReasonKeyUnknown},
		{"granted after the restore, by whomever", lost, remembered, at(3*time.Hour, ttl), ReasonKeyUnknown},
		{"older than the one adopted", lost, with(func(a *Agent) { a.SVIDExpires = latest.NotAfter }), at(30*time.Minute, ttl), ReasonKeyUnknown},
		{"the one adopted, when it was renewed since", lost, with(func(a *Agent) { a.SVIDExpires = noon.Add(14*time.Hour + ttl) }), latest, ReasonKeyUnknown},
		{"no certificate", lost, remembered, nil, ReasonKeyUnknown},
		{"locked", lost, with(func(a *Agent) { a.State = Locked }), latest, ReasonAgentLocked},
		{"removed", lost, with(func(a *Agent) { a.State = Removed }), latest, ReasonAgentUnknown},
		{"enrolled after the backup", lost, nil, latest, ReasonAgentUnknown},
	} {
		got, err := c.lost.Adopt(c.a, c.svid)
		if reason(err) != c.want {
			t.Errorf("%s: got %q, want %q", c.what, reason(err), c.want)
		}
		if err == nil && (got.Key.Hash != pki.SPKIHash(c.svid.PublicKey) || got.Pending.Hash != "" || !got.SVIDExpires.Equal(c.svid.NotAfter)) {
			t.Errorf("%s: became %+v", c.what, got)
		}
		if err == nil {
			if pub, err := got.Key.public(); err != nil || pki.SPKIHash(pub) != got.Key.Hash {
				t.Errorf("%s: a key that cannot be used again: %v", c.what, err)
			}
		}
	}
}
