// Package loop holds the work that nobody waits for: speaking to the issuer, giving assignments their turn, beginning renewals
// and new attempts, and following what other replicas and services do.
//
// It guarantees that whatever is due gets done while one replica runs, because everything is read from the store again from
// time to time and hints only make it sooner; that work is claimed row by row or by lease, so that several replicas may run;
// and that each loop ends, and has ended when Run returns. What is to be done is decided in packages rollout and renewal.
package loop

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

// Config is what the loops need; all of it is required.
type Config struct {
	Store    *store.Store
	Peers    *peer.Peers
	Hub      *session.Hub
	Streams  *session.Streams
	Standing *fleet.Standing
	Hints    *Hints
	Replica  string
	// RenewalsPerSecond bounds the renewals begun over all deployments.
	RenewalsPerSecond float64
	// AskEvery is the pause between questions to the issuer about a request it works on.
	AskEvery time.Duration
	// CheckEvery is how often a deployment is compared with its identity and profile without an event.
	CheckEvery time.Duration
	Now        func() time.Time
	Log        *slog.Logger
}

// Loops runs them.
type Loops struct {
	Config
}

// New validates c.
func New(c Config) (*Loops, error) {
	if c.Store == nil || c.Peers == nil || c.Hub == nil || c.Streams == nil || c.Standing == nil || c.Hints == nil || c.Replica == "" ||
		c.RenewalsPerSecond <= 0 || c.AskEvery <= 0 || c.CheckEvery <= 0 || c.Now == nil || c.Log == nil {
		return nil, errors.New("loop.New: every field is required")
	}
	return &Loops{Config: c}, nil
}

// Run runs all loops until ctx ends.
func (l *Loops) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{l.follow, l.requests, l.intents, l.starts, l.schedule} {
		g.Go(func() error { return run(ctx) })
	}
	return g.Wait()
}

// Hints carries what a commit of this process touched to the loops. What does not fit is found by looking.
type Hints struct {
	requests chan string
	intents  chan struct{}
	claim    chan struct{}
	starts   chan struct{} // deployments is not empty

	mu          sync.Mutex
	deployments map[string]bool
}

// NewHints are empty.
func NewHints() *Hints {
	return &Hints{requests: make(chan string, 1024), intents: make(chan struct{}, 1), claim: make(chan struct{}, 1), starts: make(chan struct{}, 1),
		deployments: map[string]bool{}}
}

// Request tells that an assignment waits for the issuer to be spoken to.
func (h *Hints) Request(id string) { offer(h.requests, id) }

// Deployment tells that a place in a rollout may have become free. Told often, it is looked at once.
func (h *Hints) Deployment(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deployments[name] = true
	offer(h.starts, struct{}{})
}

func (h *Hints) takeDeployments() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := slices.Sorted(maps.Keys(h.deployments))
	clear(h.deployments)
	return names
}

// Intent tells that there is something to tell the issuer.
func (h *Hints) Intent() { offer(h.intents, struct{}{}) }

// Claim tells that the issuer may have news of a request.
func (h *Hints) Claim() { offer(h.claim, struct{}{}) }

func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// pause waits about d, or until a hint or the end of ctx; it says whether ctx goes on.
func pause(ctx context.Context, d time.Duration, hint <-chan struct{}) bool {
	t := time.NewTimer(d*3/4 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-hint:
	}
	return ctx.Err() == nil
}

// backOff grows from a second to a minute.
func backOff(tries int) time.Duration {
	d := time.Second << min(max(tries, 0), 6)
	d = min(d, time.Minute)
	return d*3/4 + rand.N(d/2)
}

// trouble logs an error of a loop that goes on.
func (l *Loops) trouble(ctx context.Context, doing string, err error) {
	if err != nil && ctx.Err() == nil {
		l.Log.WarnContext(ctx, "deployer loop", "doing", doing, "error", err)
	}
}
