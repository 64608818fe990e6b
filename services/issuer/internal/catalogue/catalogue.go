// Package catalogue keeps the authorities and profiles: it applies what operators want of them, and has them ready to work,
// with their keys opened.
//
// It guarantees that a CA or account key is sealed before it is stored and never leaves the process, that a key is made once
// for an authority, and that whatever is kept in memory is told apart by its etag: the store refuses a decision that was
// made by something older.
package catalogue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/secret"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/acme"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/internalca"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// Config is what a Catalogue needs; all but SecretsDir and CRLURL is required.
type Config struct {
	Store *store.Store
	Box   *secret.Box
	// SecretsDir holds the MAC keys of external account bindings, one file each.
	SecretsDir string
	// CRLURL is where CRLs are published, without a slash at its end; empty for nowhere.
	CRLURL string
	// UserAgent names us to CAs.
	UserAgent string
	Now       func() time.Time
}

// Catalogue may be used concurrently.
type Catalogue struct {
	Config

	mu    sync.Mutex
	rules map[string]*Rule // by profile
	live  map[string]*live // by the authority's uid
}

// Rule is a profile with its authority, ready to work.
type Rule struct {
	Profile   profile.Profile
	Authority store.Authority
	Live      authority.Authority
}

type live struct {
	etag  string
	ready authority.Authority
}

// New validates c.
func New(c Config) (*Catalogue, error) {
	if c.Store == nil || c.Box == nil || c.UserAgent == "" || c.Now == nil {
		return nil, errors.New("catalogue.New: Store, Box, UserAgent and Now are required")
	}
	return &Catalogue{Config: c, rules: map[string]*Rule{}, live: map[string]*live{}}, nil
}

// The purposes keys are sealed for.
const (
	purposeRoot    = "ca-root-key"
	purposeIssuing = "ca-issuing-key"
	purposeAccount = "acme-account-key"
)

// ApplyAuthority makes an authority or changes it. etag, if not empty, must be the one it has. With validateOnly everything
// is checked and nothing is changed.
func (c *Catalogue) ApplyAuthority(ctx context.Context, spec authority.Spec, etag string, validateOnly bool) (store.Authority, bool, error) {
	if err := spec.Check(); err != nil {
		return store.Authority{}, false, err
	}
	old, err := c.Store.Authority(ctx, spec.Name)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		if err := matchEtag("authority.etag", "", etag); err != nil {
			return store.Authority{}, false, err
		}
		return c.createAuthority(ctx, spec, validateOnly)
	case err != nil:
		return store.Authority{}, false, err
	}
	if err := matchEtag("authority.etag", old.ETag, etag); err != nil {
		return store.Authority{}, false, err
	}
	if err := old.Spec.CheckChange(spec); err != nil {
		return store.Authority{}, false, err
	}
	if old.Spec.Same(spec) {
		return old, false, nil
	}
	changed := old
	changed.Spec = spec
	if validateOnly {
		return changed, true, nil
	}
	stored, err := c.Store.ChangeAuthority(ctx, changed, old.ETag)
	c.forget()
	return stored, err == nil, err
}

// matchEtag compares the etag wanted, empty for any, with the one there is, empty for nothing there.
func matchEtag(field, have, want string) error {
	if want == "" || want == have {
		return nil
	}
	e := fault.New(fault.Conflict, store.ReasonEtag, "it was changed, or deleted, since it was read: read it again")
	e.Field = field
	return e
}

func (c *Catalogue) createAuthority(ctx context.Context, spec authority.Spec, validateOnly bool) (store.Authority, bool, error) {
	a := store.Authority{Spec: spec, UID: uuid.NewString()}
	if validateOnly {
		return a, true, nil
	}
	var err error
	if spec.Internal != nil {
		err = c.makeCA(&a)
	} else {
		err = c.makeAccountKey(&a)
	}
	if err != nil {
		return store.Authority{}, false, fmt.Errorf("making authority %s: %w", spec.Name, err)
	}
	crash.At(crash.CAMade)
	stored, err := c.Store.CreateAuthority(ctx, a)
	crash.At(crash.CAStored)
	return stored, err == nil, err
}

func (c *Catalogue) makeCA(a *store.Authority) error {
	m, err := internalca.Create(*a.Spec.Internal, c.Now())
	if err != nil {
		return err
	}
	a.Chain = m.Chain
	if a.Key, err = c.Box.Seal(secret.AAD(purposeIssuing, a.UID), m.IssuingKey); err != nil {
		return err
	}
	a.RootKey, err = c.Box.Seal(secret.AAD(purposeRoot, a.UID), m.RootKey)
	return err
}

// makeAccountKey comes before the CA hears of us: with the key stored the account can never be lost.
func (c *Catalogue) makeAccountKey(a *store.Authority) error {
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		return err
	}
	text, err := pki.EncodeKeyPEM(key)
	if err != nil {
		return err
	}
	a.Key, err = c.Box.Seal(secret.AAD(purposeAccount, a.UID), text)
	return err
}

// DeleteAuthority removes an authority that nothing names any more.
func (c *Catalogue) DeleteAuthority(ctx context.Context, name string) error {
	defer c.forget()
	return c.Store.DeleteAuthority(ctx, name)
}

// ApplyProfile makes a profile or changes it, under the same terms as ApplyAuthority.
func (c *Catalogue) ApplyProfile(ctx context.Context, p profile.Profile, etag string, validateOnly bool) (profile.Profile, bool, error) {
	if err := profile.CheckName("profile.authority", p.Authority); err != nil {
		return p, false, err
	}
	a, err := c.Store.Authority(ctx, p.Authority)
	if fault.KindOf(err) == fault.NotFound {
		return p, false, fault.Invalid("profile.authority", "there is no authority %q: apply it first", p.Authority)
	}
	if err != nil {
		return p, false, err
	}
	if err := p.Check(a.Spec.ProfileKind()); err != nil {
		return p, false, err
	}
	old, err := c.Store.Profile(ctx, p.Name)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return p, false, err
	}
	if err := matchEtag("profile.etag", old.ETag, etag); err != nil {
		return p, false, err
	}
	p.Created, p.ETag = old.Created, old.ETag
	if err == nil && old.Same(p) {
		return old, false, nil
	}
	if validateOnly {
		return p, true, nil
	}
	stored, err := c.Store.PutProfile(ctx, p, old.ETag)
	c.forget()
	return stored, err == nil, err
}

// DeleteProfile removes a profile.
func (c *Catalogue) DeleteProfile(ctx context.Context, name string) error {
	defer c.forget()
	return c.Store.DeleteProfile(ctx, name)
}

// forget drops the rules, after a change made here. Changes made by another process show when the store refuses what was
// decided by the old.
func (c *Catalogue) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.rules)
}

// Rule gives the rule of a profile, from memory if it is there. With again it is read anew.
func (c *Catalogue) Rule(ctx context.Context, name string, again bool) (*Rule, error) {
	c.mu.Lock()
	r := c.rules[name]
	c.mu.Unlock()
	if r != nil && !again {
		return r, nil
	}
	p, a, err := c.Store.Rule(ctx, name)
	if err != nil {
		return nil, err
	}
	ready, err := c.open(a)
	if err != nil {
		return nil, err
	}
	r = &Rule{Profile: p, Authority: a, Live: ready}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rules[name] = r
	return r, nil
}

// LiveByUID gives the authority that issued a certificate. One that was deleted is fault.Permanent.
func (c *Catalogue) LiveByUID(ctx context.Context, uid string) (authority.Authority, error) {
	a, err := c.Store.AuthorityByUID(ctx, uid)
	if fault.KindOf(err) == fault.NotFound {
		return nil, fault.New(fault.Permanent, store.ReasonAuthorityNotFound, "the authority was deleted")
	}
	if err != nil {
		return nil, err
	}
	return c.open(a)
}

// CRLSigner gives what signs the lists of an internal authority: its issuing CA or, opened for this alone, its root.
func (c *Catalogue) CRLSigner(ctx context.Context, uid string, root bool) (*internalca.CA, error) {
	a, err := c.Store.AuthorityByUID(ctx, uid)
	if err != nil {
		return nil, err
	}
	if !root {
		ready, err := c.open(a)
		if err != nil {
			return nil, err
		}
		ca, ok := ready.(*internalca.CA)
		if !ok {
			return nil, fmt.Errorf("authority %s is not an internal one", a.Spec.Name)
		}
		return ca, nil
	}
	key, err := c.Box.Open(secret.AAD(purposeRoot, uid), a.RootKey)
	if err != nil {
		return nil, fmt.Errorf("the root of authority %s: %w", a.Spec.Name, err)
	}
	return internalca.Open(a.Chain[len(a.Chain)-1:], key, "", c.Now)
}

// open gives the authority at work, made once for each etag.
func (c *Catalogue) open(a store.Authority) (authority.Authority, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.live[a.UID]; l != nil && l.etag == a.ETag {
		return l.ready, nil
	}
	ready, err := c.make(a)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", a.Spec.Name, err)
	}
	if l := c.live[a.UID]; l != nil {
		closeLive(l.ready)
	}
	c.live[a.UID] = &live{etag: a.ETag, ready: ready}
	return ready, nil
}

func (c *Catalogue) make(a store.Authority) (authority.Authority, error) {
	if a.Spec.Internal != nil {
		key, err := c.Box.Open(secret.AAD(purposeIssuing, a.UID), a.Key)
		if err != nil {
			return nil, err
		}
		return internalca.Open(a.Chain, key, c.CRLURL, c.Now)
	}
	text, err := c.Box.Open(secret.AAD(purposeAccount, a.UID), a.Key)
	if err != nil {
		return nil, err
	}
	key, err := pki.ParseKeyPEM(text)
	if err != nil {
		return nil, err
	}
	return acme.New(acme.Config{
		Settings: *a.Spec.ACME,
		Key:      key,
		Account:  a.Account,
		Save: func(ctx context.Context, account authority.Account) error {
			return c.Store.SaveAccount(ctx, a.UID, account)
		},
		Taken:     c.Store.Taken,
		Secrets:   c.secret,
		UserAgent: c.UserAgent,
		Now:       c.Now,
	})
}

func closeLive(a authority.Authority) {
	if ca, ok := a.(*acme.CA); ok {
		ca.Close()
	}
}

// Close lets go of connections.
func (c *Catalogue) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.live {
		closeLive(l.ready)
	}
}

const maxSecret = 4 << 10

// secret reads a file of the secrets folder. The name was checked to be one; errors never repeat what is in it.
func (c *Catalogue) secret(name string) ([]byte, error) {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.Precondition, acme.ReasonSecret, format, args...)
	}
	if c.SecretsDir == "" {
		return nil, refuse("the MAC key %s cannot be read: the issuer is configured without secrets_dir", name)
	}
	root, err := os.OpenRoot(c.SecretsDir)
	if err != nil {
		return nil, refuse("secrets_dir cannot be opened: %v", err)
	}
	defer func() { _ = root.Close() }()
	f, err := root.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, refuse("there is no file %s in secrets_dir: put the MAC key there", name)
	case err != nil:
		return nil, refuse("the file %s in secrets_dir cannot be opened", filepath.Base(name))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil || len(data) > maxSecret {
		return nil, refuse("the file %s in secrets_dir cannot be read, or is larger than %d bytes", name, maxSecret)
	}
	return data, nil
}
