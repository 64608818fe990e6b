// Package enroll gets the agent its identity and keeps it: first contact with a
// join token, renewal with a new key, and return after a long absence.
//
// It guarantees that the server is known by the token's root hash before
// anything is sent, that a key is on disk before the server hears of it, and
// that an identity is given up only for one that has been seen to work.
package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// The records of the identity folder.
const (
	recordCurrent = "current" // the identity in use
	recordNext    = "next"    // the one to take its place: its key, then all of it
	recordPending = "pending" // the key of an enrolment that has not come to its end
)

// Identity is an SVID with its key and what it trusts.
type Identity struct {
	Host    string
	SVID    *x509svid.SVID
	Bundle  *x509bundle.Bundle
	RenewAt time.Time
}

// Expires is when the SVID ends.
func (id *Identity) Expires() time.Time { return id.SVID.Certificates[0].NotAfter }

// record is an identity on disk, whole in one file, or its key alone.
type record struct {
	Host    string    `json:"host"`
	Key     []byte    `json:"key"`             // PKCS#8
	Token   string    `json:"token,omitempty"` // id of the join token
	Chain   [][]byte  `json:"chain,omitempty"`
	Bundle  [][]byte  `json:"bundle,omitempty"`
	RenewAt time.Time `json:"renew_at,omitzero"`
}

// Store keeps the identity. It is the identity.Source of the agent's own
// connections. Changes come from one goroutine.
type Store struct {
	folder  *disk.Folder
	current atomic.Pointer[Identity]
}

var _ identity.Source = (*Store)(nil)

// ErrNotEnrolled says that there is no identity yet.
var ErrNotEnrolled = errors.New("this host is not enrolled yet: run \"sallyport-agent enroll\" with a join token")

// OpenStore reads the identity kept in the folder, if there is one.
func OpenStore(ctx context.Context, folder *disk.Folder) (*Store, error) {
	s := &Store{folder: folder}
	id, err := s.load(ctx, recordCurrent)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		s.current.Store(id)
	}
	return s, nil
}

// Current is the identity in use, nil if there is none.
func (s *Store) Current() *Identity { return s.current.Load() }

// GetX509SVID gives the SVID in use.
func (s *Store) GetX509SVID() (*x509svid.SVID, error) {
	if id := s.Current(); id != nil {
		return id.SVID, nil
	}
	return nil, ErrNotEnrolled
}

// GetX509BundleForTrustDomain gives the trust bundle.
func (s *Store) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if id := s.Current(); id != nil {
		return id.Bundle.GetX509BundleForTrustDomain(td)
	}
	return nil, ErrNotEnrolled
}

// Close does nothing.
func (s *Store) Close() error { return nil }

// fixed is one identity as a source, for trying it.
type fixed struct{ *Identity }

func (f fixed) GetX509SVID() (*x509svid.SVID, error) { return f.SVID, nil }
func (f fixed) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return f.Bundle.GetX509BundleForTrustDomain(td)
}
func (f fixed) Close() error { return nil }

func (s *Store) read(ctx context.Context, name string) (*record, *ecdsa.PrivateKey, error) {
	data, err := s.folder.Get(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		s.folder.SetAside(ctx, name, errors.New("the record of an identity cannot be read"))
		return nil, nil, disk.ErrDamaged
	}
	key, err := x509.ParsePKCS8PrivateKey(r.Key)
	ec, ok := key.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		s.folder.SetAside(ctx, name, errors.New("the record of an identity holds no readable key"))
		return nil, nil, disk.ErrDamaged
	}
	return r, ec, nil
}

func (s *Store) load(ctx context.Context, name string) (*Identity, error) {
	r, key, err := s.read(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(r.Chain) == 0 {
		return nil, fmt.Errorf("the identity has no certificate yet: %w", fs.ErrNotExist)
	}
	id, err := r.identity(key)
	if err != nil {
		s.folder.SetAside(ctx, name, err)
		return nil, disk.ErrDamaged
	}
	return id, nil
}

func (s *Store) write(name string, r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding identity: %w", err)
	}
	return s.folder.Put(name, data)
}

// identity checks that SVID, key and bundle belong together. Whether the SVID
// is still valid is not its question.
func (r *record) identity(key *ecdsa.PrivateKey) (*Identity, error) {
	svid, err := x509svid.ParseRaw(concat(r.Chain), r.Key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if !key.PublicKey.Equal(svid.Certificates[0].PublicKey) {
		return nil, errors.New("identity: the certificate is for another key")
	}
	bundle, err := x509bundle.ParseRaw(svid.ID.TrustDomain(), concat(r.Bundle))
	if err != nil {
		return nil, fmt.Errorf("identity: trust bundle: %w", err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(svid.Certificates[0].NotAfter)); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	caller, err := identity.CallerOf(svid.ID)
	if err != nil || caller.Role != identity.RoleAgent {
		return nil, fmt.Errorf("identity: %q is not an agent", svid.ID)
	}
	return &Identity{Host: r.Host, SVID: svid, Bundle: bundle, RenewAt: r.RenewAt}, nil
}

func concat(ders [][]byte) []byte {
	var all []byte
	for _, d := range ders {
		all = append(all, d...)
	}
	return all
}

// grant completes a record with what the server has granted.
func (r *record) grant(g *agentv1.IdentityGrant, key *ecdsa.PrivateKey) (*Identity, error) {
	r.Chain, r.Bundle = g.GetChain(), g.GetBundle()
	if g.GetRenewAt() != nil {
		r.RenewAt = g.GetRenewAt().AsTime()
	}
	id, err := r.identity(key)
	if err != nil {
		return nil, fmt.Errorf("the server has granted what cannot be used: %w", err)
	}
	if leaf := id.SVID.Certificates[0]; r.RenewAt.IsZero() || r.RenewAt.After(leaf.NotAfter) {
		r.RenewAt = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
		id.RenewAt = r.RenewAt
	}
	return id, nil
}

// newKey makes a record with a key and nothing else, durable before it is used.
func (s *Store) newKey(name, host, token string) (*record, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	r := &record{Host: host, Key: der, Token: token}
	return r, key, s.write(name, r)
}

// request makes a CSR. Its names are ignored: who we are is the server's to say.
func request(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a CSR: %w", err)
	}
	return der, nil
}

// adopt makes an identity the one in use, also where that cannot be kept now: what it came from is on disk still.
func (s *Store) adopt(r *record, id *Identity, from string) error {
	s.current.Store(id)
	if err := s.write(recordCurrent, r); err != nil {
		return err
	}
	return s.folder.Remove(from)
}
