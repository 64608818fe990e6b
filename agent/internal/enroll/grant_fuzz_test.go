package enroll

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// FuzzGrant takes whatever a server grants: what is used is an agent's, for the own key, and renewed in time.
func FuzzGrant(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ca, err := identity.CreateAuthority(td, nil)
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	for path, renew := range map[string]*timestamppb.Timestamp{
		"/agent/web-1": timestamppb.New(time.Now().Add(time.Minute)), "/agent/web-2": nil, "/operator/ann": timestamppb.Now(),
		"/agent/web-3": {Seconds: 1 << 60, Nanos: -5},
	} {
		chain, err := ca.Mint(spiffeid.RequireFromPath(td, path), key.Public(), time.Hour)
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(&agentv1.IdentityGrant{Chain: [][]byte{chain[0].Raw}, Bundle: [][]byte{ca.Bundle().X509Authorities()[0].Raw}, RenewAt: renew})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &agentv1.IdentityGrant{}
		if proto.Unmarshal(b, g) != nil {
			return
		}
		r := &record{Host: "web-1", Key: der}
		id, err := r.grant(g, key)
		if err != nil {
			return
		}
		caller, err := identity.CallerOf(id.SVID.ID)
		if err != nil || caller.Role != identity.RoleAgent || !key.PublicKey.Equal(id.SVID.Certificates[0].PublicKey) {
			t.Fatalf("%v was taken, %v", id.SVID.ID, err)
		}
		if id.RenewAt.IsZero() || id.RenewAt.After(id.Expires()) || !id.RenewAt.Equal(r.RenewAt) {
			t.Fatalf("to be renewed at %s, of %s", id.RenewAt, id.Expires())
		}
	})
}
