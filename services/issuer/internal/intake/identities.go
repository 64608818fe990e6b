package intake

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Identities asks the inventory what an identity may be called. An answer is used for MaxAge and no longer: so old, at most,
// is what a certificate is judged by. What is not there, and errors, are not kept.
type Identities struct {
	client inventoryv1.InventoryServiceClient
	maxAge time.Duration
	now    func() time.Time
	asking singleflight.Group

	mu   sync.Mutex
	kept map[string]kept
}

type kept struct {
	names pki.Names
	until time.Time
}

// IdentitiesConfig is what Identities needs; all of it is required.
type IdentitiesConfig struct {
	Client inventoryv1.InventoryServiceClient
	MaxAge time.Duration
	Now    func() time.Time
}

const (
	maxKept = 4096
	// askingFor bounds one question: several submitters may wait for it, whose own patience differs.
	askingFor = 5 * time.Second
)

// NewIdentities validates c.
func NewIdentities(c IdentitiesConfig) (*Identities, error) {
	if c.Client == nil || c.MaxAge <= 0 || c.Now == nil {
		return nil, errors.New("intake.NewIdentities: Client, MaxAge and Now are required")
	}
	return &Identities{client: c.Client, maxAge: c.MaxAge, now: c.Now, kept: map[string]kept{}}, nil
}

// Names gives the names of an identity; fault.NotFound when there is none.
func (i *Identities) Names(ctx context.Context, identity string) (pki.Names, error) {
	i.mu.Lock()
	k, ok := i.kept[identity]
	i.mu.Unlock()
	if ok && i.now().Before(k.until) {
		return k.names, nil
	}
	answer := i.asking.DoChan(identity, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askingFor)
		defer cancel()
		return i.ask(ctx, identity)
	})
	select {
	case <-ctx.Done():
		return pki.Names{}, ctx.Err()
	case a := <-answer:
		if a.Err != nil {
			return pki.Names{}, a.Err
		}
		return a.Val.(pki.Names), nil
	}
}

func (i *Identities) ask(ctx context.Context, identity string) (pki.Names, error) {
	asked := i.now() // the answer is at least as young as the question
	resp, err := i.client.GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: identity})
	if err != nil {
		f := *fault.Of(err)
		if f.Kind != fault.NotFound {
			// The submitter can do nothing about what is between us and the inventory but come again.
			return pki.Names{}, fault.New(fault.Transient, ReasonInventory, "the inventory cannot be asked about the identity: %s", f.Message)
		}
		return pki.Names{}, &f
	}
	n := resp.GetIdentity().GetNames()
	names, err := pki.ParseNames(n.GetDns(), n.GetIp())
	if err != nil {
		return pki.Names{}, fmt.Errorf("the inventory's names of identity %s: %w", identity, err)
	}
	i.keep(identity, kept{names: names, until: asked.Add(i.maxAge)})
	return names, nil
}

func (i *Identities) keep(identity string, k kept) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.kept) >= maxKept {
		clear(i.kept) // all of it is a second old
	}
	i.kept[identity] = k
}

// ReasonInventory is given while the inventory cannot be asked.
const ReasonInventory = "INVENTORY_UNAVAILABLE"
