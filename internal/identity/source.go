package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// workloadWait bounds the wait for the first SVID: go-spiffe itself would wait for ever.
const workloadWait = 30 * time.Second

// NewWorkload gives the identity that a SPIFFE Workload API at addr (such as
// unix:///run/spire/agent.sock) hands out, and follows its rotation. It waits
// at most 30 seconds for the first SVID.
func NewWorkload(ctx context.Context, addr string) (Source, error) {
	ctx, cancel := context.WithTimeout(ctx, workloadWait)
	defer cancel()
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		return nil, fmt.Errorf("asking the Workload API at %s for an SVID: %w", addr, err)
	}
	return src, nil
}

// NewMinted gives an identity held in memory and signed by ca. It is renewed
// when it is asked for after half its life.
func NewMinted(ca *Authority, id spiffeid.ID, ttl time.Duration) (Source, error) {
	if ca == nil {
		return nil, errors.New("minting: no authority")
	}
	m := &minted{ca: ca, id: id, ttl: ttl}
	if _, err := m.GetX509SVID(); err != nil {
		return nil, err
	}
	return m, nil
}

type minted struct {
	ca  *Authority
	id  spiffeid.ID
	ttl time.Duration

	mu    sync.Mutex
	svid  *x509svid.SVID
	renew time.Time
}

func (m *minted) GetX509SVID() (*x509svid.SVID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.ca.now()
	if m.svid != nil && now.Before(m.renew) && !now.Before(m.svid.Certificates[0].NotBefore) {
		return m.svid, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("minting %q: %w", m.id, err)
	}
	chain, err := m.ca.Mint(m.id, key.Public(), m.ttl)
	if err != nil {
		return nil, err
	}
	m.svid = &x509svid.SVID{ID: m.id, Certificates: chain, PrivateKey: key}
	m.renew = now.Add(m.ttl / 2)
	return m.svid, nil
}

func (m *minted) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return m.ca.Bundle().GetX509BundleForTrustDomain(td)
}

func (m *minted) Close() error { return nil }
