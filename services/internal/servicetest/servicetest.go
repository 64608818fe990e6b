// Package servicetest gives tests the real parts a service stands on: SQLite and a real PostgreSQL, NATS with JetStream, and
// a trust domain. Everything is thrown away when the test ends. A part that is not installed fails the test.
package servicetest

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Domain is a trust domain with its signing key.
type Domain struct {
	Authority *identity.Authority
	t         testing.TB
}

// TrustDomain makes the trust domain "test.example".
func TrustDomain(t testing.TB) *Domain {
	t.Helper()
	ca, err := identity.CreateAuthority(spiffeid.RequireTrustDomainFromString("test.example"), time.Now)
	if err != nil {
		t.Fatalf("making a trust domain: %v", err)
	}
	return &Domain{Authority: ca, t: t}
}

// Service is the identity of a service, such as "issuer".
func (d *Domain) Service(name string) identity.Source {
	return d.mint(identity.ServiceID(d.Authority.TrustDomain(), name))
}

// Operator is the identity of an operator.
func (d *Domain) Operator(name string) identity.Source {
	return d.mint(identity.OperatorID(d.Authority.TrustDomain(), name))
}

// Agent is the identity of an agent.
func (d *Domain) Agent(id string) identity.Source {
	return d.mint(identity.AgentID(d.Authority.TrustDomain(), id))
}

// Caller is who the source's SVID names: what handlers get from identity.FromContext.
func (d *Domain) Caller(source identity.Source) identity.Caller {
	d.t.Helper()
	svid, err := source.GetX509SVID()
	if err != nil {
		d.t.Fatalf("asking for the SVID: %v", err)
	}
	c, err := identity.CallerOf(svid.ID)
	if err != nil {
		d.t.Fatalf("reading the SVID: %v", err)
	}
	return c
}

func (d *Domain) mint(id spiffeid.ID, err error) identity.Source {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("making an identity: %v", err)
	}
	s, err := identity.NewMinted(d.Authority, id, time.Hour)
	if err != nil {
		d.t.Fatalf("minting %s: %v", id, err)
	}
	d.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			d.t.Errorf("closing the identity of %s: %v", id, err)
		}
	})
	return s
}
