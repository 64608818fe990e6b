// Package deployer is the seam of the deployer service: deployments, the assignments they turn into, and the fleet of agents.
//
// It guarantees that a deployment's targets are brought to serve what was assigned and nothing else is called healthy; that
// agents act on themselves alone; and that after a stop anywhere the next start goes on from there. It never waits for a CA
// and never connects to a host. Everything but Config, Deps, New and what the server needs is internal.
package deployer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/api"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/loop"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/tracing"
)

// Name is the service's name in identities, event subjects and addresses.
const Name = "deployer"

// Deps are what the service stands on; all but Monitor and Now are required.
type Deps struct {
	// Source is the service's own SVID; its ID is the actor of what the service does by itself.
	Source identity.Source
	// NATS carries events.
	NATS *nats.Conn
	// AgentCA signs agents' SVIDs and is what join tokens name.
	AgentCA *identity.Authority
	// Issuer and Inventory are connections to those services.
	Issuer    grpc.ClientConnInterface
	Inventory grpc.ClientConnInterface
	Log       *slog.Logger
	// Monitor shows how the service does; nil shows nobody.
	Monitor *monitor.Service
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Service is one replica of the deployer.
type Service struct {
	cfg       Config
	deps      Deps
	self      identity.Caller
	store     *store.Store
	api       *api.API
	loops     *loop.Loops
	standing  *fleet.Standing
	lookups   *rate.Limiter // of agents that memory does not know
	adoptions *rate.Limiter // after a restore
	relay     *event.Relay
	consumer  *event.Consumer
	traces    *tracing.Exporter
}

// Methods says who may call what.
func Methods() map[string][]identity.Role { return api.Methods() }

// New opens the database and builds the service. Nothing moves until Run.
func New(ctx context.Context, cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.fill()
	if deps.Source == nil || deps.NATS == nil || deps.AgentCA == nil || deps.Issuer == nil || deps.Inventory == nil || deps.Log == nil {
		return nil, errors.New("deployer.New: Source, NATS, AgentCA, Issuer, Inventory and Log are required")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	svid, err := deps.Source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("reading the own SVID: %w", err)
	}
	self, err := identity.CallerOf(svid.ID)
	if err != nil {
		return nil, fmt.Errorf("reading the own SVID: %w", err)
	}
	if td := deps.AgentCA.TrustDomain(); !svid.ID.MemberOf(td) {
		return nil, fmt.Errorf("the authority for agents is of trust domain %q, the service's own SVID is %s: give the authority of the same trust domain", td.Name(), svid.ID)
	}
	s := &Service{cfg: cfg, deps: deps, self: self, standing: fleet.NewStanding(time.Now), lookups: rate.NewLimiter(100, 200), adoptions: rate.NewLimiter(500, 1000)}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Service) build(ctx context.Context) error {
	hub, hints := session.NewHub(), loop.NewHints()
	streams := session.NewStreams(s.cfg.Agents.MaxStreams)
	replica := uuid.NewString()
	peers := peer.New(s.deps.Issuer, s.deps.Inventory)
	granter, err := fleet.NewGranter(s.deps.AgentCA, s.cfg.Agents.SVIDTTL.Std(), s.deps.Now)
	if err != nil {
		return err
	}
	if s.traces, err = tracing.Open(ctx, s.cfg.Tracing, Name, s.deps.Log); err != nil {
		return err
	}
	s.store, err = store.Open(identity.WithCaller(ctx, s.self), store.Config{
		Lost:     s.cfg.Restored.lost(),
		Database: s.cfg.Database, Pause: s.cfg.pause, Away: s.cfg.Agents.AwayAfter.Std(), Claim: claim, Now: s.deps.Now, Log: s.deps.Log,
		OnChange: func(c store.Change) { spread(c, hub, hints, s.standing) },
	})
	if err != nil {
		return err
	}
	agents, err := s.store.AgentsChanged(ctx, time.Time{})
	if err != nil {
		return fmt.Errorf("reading the agents: %w", err)
	}
	s.standing.Update(agents)
	js, err := jetstream.New(s.deps.NATS)
	if err != nil {
		return fmt.Errorf("using JetStream: %w", err)
	}
	checker, err := check.New(check.Config{
		DB: s.store.DB(), Rules: store.Rules, Consumers: []check.Consumer{check.JetStream(js, Name)}, Now: s.deps.Now})
	if err != nil {
		return err
	}
	s.api, err = api.New(api.Config{
		Store: s.store, Peers: peers, Checker: checker, Hub: hub, Streams: streams, Standing: s.standing, Granter: granter, Replica: replica,
		Admission:    session.NewAdmission(s.cfg.Agents.StreamsPerSecond, s.cfg.Agents.StreamsBurst, s.deps.Now),
		ReturnWithin: s.cfg.returnWithin(), Heartbeat: s.cfg.Agents.HeartbeatInterval.Std(), Scan: s.cfg.Agents.ScanInterval.Std(),
		Start: hints.Deployment, Now: s.deps.Now, Log: s.deps.Log,
	})
	if err != nil {
		return err
	}
	s.loops, err = loop.New(loop.Config{
		Store: s.store, Peers: peers, Hub: hub, Streams: streams, Standing: s.standing, Hints: hints, Replica: replica,
		RenewalsPerSecond: s.cfg.Renewal.PerSecond, AskEvery: s.cfg.Rollout.AskIssuerEvery.Std(), CheckEvery: s.cfg.Rollout.CheckEvery.Std(),
		Now: s.deps.Now, Log: s.deps.Log,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(s.buildEvents(js), s.show(streams)); err != nil {
		return err
	}
	return event.Monitor(s.deps.Monitor, event.Monitored{
		DB: s.store.DB(), JS: js, Relay: s.relay, Consumers: map[string][]string{Name: heard},
	})
}

// heard are the subjects the deployer listens to.
var heard = []string{event.FactsOf("issuer"), event.FactsOf("inventory")}

func (s *Service) buildEvents(js jetstream.JetStream) error {
	var err error
	s.relay, err = event.NewRelay(event.RelayConfig{DB: s.store.DB(), JS: js, Service: Name, Restored: s.store.Lost().Until, Log: s.deps.Log})
	if err != nil {
		return err
	}
	s.consumer, err = event.NewConsumer(event.ConsumerConfig{
		DB: s.store.DB(), JS: js, Durable: Name, Filter: heard,
		Wanted: loop.Wanted, Handle: event.Each(s.loops.Handle), Log: s.deps.Log,
	})
	return err
}

// spread tells everybody concerned of a commit.
func spread(c store.Change, hub *session.Hub, hints *loop.Hints, standing *fleet.Standing) {
	standing.Update(c.Agents)
	for _, h := range c.Hosts {
		hub.Wake(session.HostKey(h))
	}
	for _, d := range c.Deployments {
		hub.Wake(session.DeploymentKey(d))
		hints.Deployment(d)
	}
	for _, id := range c.Requests {
		hints.Request(id)
	}
	if c.Intents {
		hints.Intent()
	}
}

// Register adds DeployerService and AgentService to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { s.api.Register(r) }

// Run does the work that nobody waits for, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(trace.WithRecorder(identity.WithCaller(ctx, s.self), s.traces.Recorder()))
	g.Go(func() error { return s.loops.Run(ctx) })
	g.Go(func() error { return s.store.DB().Watch(ctx) })
	g.Go(func() error { return s.relay.Run(ctx) })
	g.Go(func() error { return s.consumer.Run(ctx) })
	return g.Wait()
}

// Close closes the database, after Run has returned.
func (s *Service) Close() error {
	var err error
	if s.store != nil {
		err = s.store.Close()
	}
	return errors.Join(err, s.traces.Close())
}

// Traces takes the spans of calls to the service; nil where none are recorded.
func (s *Service) Traces() trace.Recorder { return s.traces.Recorder() }

// Deny refuses agents that are locked, removed, or come with a key that is not theirs any more. It answers from memory, but
// for an agent or key that another replica may just have let in: an agent gives up a new identity whose key is unknown, so that
// is said only of what the store does not know.
func (s *Service) Deny(c identity.Caller) error {
	err := s.standing.Check(c)
	if err == nil || fault.Of(err).Reason == fleet.ReasonAgentLocked || s.standing.Replaced(c) {
		return err
	}
	ctx, cancel := context.WithTimeout(identity.WithCaller(context.Background(), s.self), 2*time.Second)
	defer cancel()
	if s.adopt(ctx, c, err) {
		return s.standing.Check(c)
	}
	if !s.lookups.Allow() {
		return fault.New(fault.Exhausted, rpc.ReasonTooManyRequests, "many agents come with keys that must be looked up: wait for your turn").After(time.Second)
	}
	agents, err := s.store.AgentsOf(ctx, []string{c.Name})
	if err != nil {
		return fault.New(fault.Transient, fault.ReasonUnavailable, "the agent's key cannot be looked up now: %w", err)
	}
	s.standing.Update(agents)
	return s.standing.Check(c)
}

// adopt takes the key of an agent that got its identity in a time which the store has lost (decision 8). Who has no such SVID
// costs nothing.
func (s *Service) adopt(ctx context.Context, c identity.Caller, refused error) bool {
	if fault.Of(refused).Reason != fleet.ReasonKeyUnknown || !s.store.Lost().Covers(c.SVID) || !s.adoptions.Allow() {
		return false
	}
	if err := s.store.Adopt(ctx, c.Name, c.SVID); err != nil {
		s.deps.Log.WarnContext(ctx, "an identity from the time that was lost by the restore is not taken", "host", c.Name, "error", err)
		return false
	}
	s.deps.Log.InfoContext(ctx, "took an identity from the time that was lost by the restore", "host", c.Name, "serial", c.SVID.SerialNumber.Text(16))
	return true
}

// OnDenied records a denied call.
func (s *Service) OnDenied(ctx context.Context, d rpc.Denial) {
	event.Denied(ctx, s.store.DB(), Name, d, s.deps.Log)
}
