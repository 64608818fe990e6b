package fleet

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/sallyport-pki/sallyport/internal/identity"
)

// Grant is an SVID and what it must trust.
type Grant struct {
	Chain   [][]byte // DER, leaf first
	Bundle  [][]byte // DER
	Expires time.Time
	RenewAt time.Time
}

// Granter makes agents' SVIDs.
type Granter struct {
	authority *identity.Authority
	ttl       time.Duration
	now       func() time.Time
}

// NewGranter takes the trust domain's signing key and the life of an SVID.
func NewGranter(authority *identity.Authority, ttl time.Duration, now func() time.Time) (*Granter, error) {
	if authority == nil || ttl <= 0 || now == nil {
		return nil, errors.New("fleet.NewGranter: authority, ttl and now are required")
	}
	return &Granter{authority: authority, ttl: ttl, now: now}, nil
}

// Expires is when an SVID granted now ends.
func (g *Granter) Expires() time.Time { return g.now().Add(g.ttl) }

// Grant signs an SVID for the key. It is to be renewed at half its life, spread by a tenth of it.
func (g *Granter) Grant(host string, k Key) (Grant, error) {
	id, err := identity.AgentID(g.authority.TrustDomain(), host)
	if err != nil {
		return Grant{}, err
	}
	pub, err := k.public()
	if err != nil {
		return Grant{}, err
	}
	certs, err := g.authority.Mint(id, pub, g.ttl)
	if err != nil {
		return Grant{}, err
	}
	var out Grant
	for _, c := range certs {
		out.Chain = append(out.Chain, c.Raw)
	}
	for _, c := range g.authority.Bundle().X509Authorities() {
		out.Bundle = append(out.Bundle, c.Raw)
	}
	out.Expires = certs[0].NotAfter
	out.RenewAt = g.now().Add(g.ttl/2 + rand.N(g.ttl/10+1))
	return out, nil
}

// Token makes a join token's text with a fresh secret, and what is to be stored of it.
func (g *Granter) Token(id string) (text string, stored Token, err error) {
	t, err := identity.NewJoinToken(g.authority.TrustDomain(), id, g.authority.RootHash())
	if err != nil {
		return "", Token{}, err
	}
	return t.String(), Token{ID: id, SecretHash: t.SecretHash()}, nil
}
