// Package crl makes the certificate revocation lists of internal authorities and publishes them.
//
// It guarantees that every CA has a list that is good, that a revocation is on it within seconds, that numbers of lists only
// grow, and that one replica at a time makes them. A list is stored before anybody sees it; one that was signed when the
// process died is made again, and nobody has seen the first.
package crl

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/lease"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/internalca"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// Signers gives what signs the lists of an authority.
type Signers interface {
	CRLSigner(ctx context.Context, uid string, root bool) (*internalca.CA, error)
}

// MakerConfig is what a Maker needs; all but Above is required.
type MakerConfig struct {
	Store   *store.Store
	Signers Signers
	Log     *slog.Logger
	Now     func() time.Time
	// Above is what the number of every list is greater than.
	Above int64
}

// Maker makes lists.
type Maker struct{ MakerConfig }

// NewMaker validates c.
func NewMaker(c MakerConfig) (*Maker, error) {
	if c.Store == nil || c.Signers == nil || c.Log == nil || c.Now == nil {
		return nil, errors.New("crl.NewMaker: Store, Signers, Log and Now are required")
	}
	return &Maker{c}, nil
}

const (
	leaseTTL = 30 * time.Second
	look     = 5 * time.Second // for what another replica has revoked
	gather   = time.Second     // what is revoked meanwhile comes on one list
	retry    = time.Minute     // after a failure
)

// Run makes what is due until ctx ends.
func (m *Maker) Run(ctx context.Context) error {
	revoked, made := m.Store.DB().Listen(store.TopicRevocations), m.Store.DB().Listen(store.TopicAuthorities)
	return lease.Run(ctx, m.Store.DB(), "crl", leaseTTL, func(ctx context.Context) error {
		t := newTurn()
		for ctx.Err() == nil {
			m.pass(ctx, t)
			select {
			case <-ctx.Done():
			case <-time.After(gather):
			}
			select {
			case <-ctx.Done():
			case <-revoked:
			case <-made:
			case <-time.After(look):
			}
		}
		return nil
	})
}

// turn is what is known since the lease is held, by authority.
type turn struct {
	made   map[string]bool
	failed map[string]time.Time
}

func newTurn() turn { return turn{made: map[string]bool{}, failed: map[string]time.Time{}} }

// pass makes the lists that are due, the failed ones not too often. The first of each turn is always made: the store may have
// been restored from a backup, and what is published then must not be older than what was.
func (m *Maker) pass(ctx context.Context, t turn) {
	all, err := m.Store.Standings(ctx)
	if err != nil && ctx.Err() == nil {
		m.Log.WarnContext(ctx, "CRLs cannot be looked at", "error", err)
	}
	for _, s := range all {
		first := !s.Root && !t.made[s.AuthorityUID]
		if !first && !s.Due(m.Now()) || time.Since(t.failed[s.AuthorityUID]) < retry {
			continue
		}
		err := m.make(ctx, s)
		switch {
		case err == nil:
			t.made[s.AuthorityUID] = t.made[s.AuthorityUID] || !s.Root
			delete(t.failed, s.AuthorityUID)
		case ctx.Err() == nil && fault.KindOf(err) != fault.NotFound: // deleted meanwhile
			t.failed[s.AuthorityUID] = time.Now()
			m.Log.ErrorContext(ctx, "a CRL is not made", "authority", s.Authority, "root", s.Root, "retry_in", retry, "error", err)
		}
	}
}

// make signs and stores the list that follows.
func (m *Maker) make(ctx context.Context, s revocation.Standing) error {
	ca, err := m.Signers.CRLSigner(ctx, s.AuthorityUID, s.Root)
	if err != nil {
		return err
	}
	var revoked []revocation.Revocation
	var fresh, last []pki.Fingerprint
	if !s.Root {
		if revoked, fresh, err = m.Store.Revoked(ctx, s.AuthorityUID); err != nil {
			return err
		}
	}
	c := store.CRL{KeyID: ca.KeyID(), AuthorityUID: s.AuthorityUID, Authority: s.Authority, Root: s.Root, Entries: len(revoked)}
	c.Number, c.ThisUpdate, c.NextUpdate = s.Next(m.Now(), m.Above)
	for _, r := range revoked {
		if r.Last(c.ThisUpdate) {
			last = append(last, r.Fingerprint)
		}
	}
	c.DER, err = ca.SignList(internalca.List{Number: c.Number, ThisUpdate: c.ThisUpdate, NextUpdate: c.NextUpdate, Revoked: revoked})
	if err != nil {
		return err
	}
	crash.At(crash.CRLSigned)
	if err := m.Store.SaveCRL(ctx, c, fresh, last); err != nil {
		return err
	}
	crash.At(crash.CRLStored)
	m.Log.InfoContext(ctx, "CRL made", "authority", c.Authority, "root", c.Root, "number", c.Number, "entries", c.Entries, "next_update", c.NextUpdate)
	return nil
}
