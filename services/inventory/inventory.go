// Package inventory is the inventory service: which identities there are, which certificates exist, where they are seen, and
// what is wrong.
//
// It guarantees that identities change only with an event, that everything else it knows can be built again from events in any
// order, and that its findings rest on what was observed alone: it asks neither the deployer nor the issuer.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/tracing"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/api"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/intake"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/watch"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// Name is the service's name, as in its SPIFFE ID and its subjects.
const Name = string(identity.RoleInventory)

// gather lets a flood of certificates share a commit: each is entered into several indexes at random, and so fewer pages are written.
const gather = 250 * time.Millisecond

// Config is the service's configuration. All of it is read at start only.
type Config struct {
	// Database is where the service keeps its data; required. Losing it loses the identities; the rest comes back with the
	// events that the broker still keeps.
	Database db.Config `yaml:"database"`
	// Findings are the thresholds of the rules.
	Findings Findings `yaml:"findings"`
	// Tracing says where the service's spans go.
	Tracing tracing.Config `yaml:"tracing"`
}

// Findings are the thresholds of the rules by which something is found wrong.
type Findings struct {
	// Expiring is how long before its end a certificate counts as expiring, in days or hours; default 30d. For one that lives
	// less than five times as long it is a fifth of its life, so a certificate of 90 days is expiring 18 days before its end:
	// after the renewal at a third has had its time. CA certificates of our own authorities get six times as long.
	Expiring config.Duration `yaml:"expiring"`
	// Critical is how long before its end that becomes critical; default 7d, or a twentieth of the life. It must be shorter
	// than expiring.
	Critical config.Duration `yaml:"critical"`
	// HostSilent is how long a host may report nothing; default 3m, three heartbeats at the deployer's default of one a
	// minute. Raise it together with the deployer's heartbeat interval, else every host is found silent between two of them.
	HostSilent config.Duration `yaml:"host_silent"`
	// Review is the time between two passes over everything, which find what no event and no clock has pointed at; default
	// 15m. Shorter costs processor time: a pass reads every certificate in use.
	Review config.Duration `yaml:"review"`
}

// withDefaults fills what is absent.
func (f Findings) withDefaults() Findings {
	for field, value := range map[*config.Duration]time.Duration{
		&f.Expiring: 30 * 24 * time.Hour, &f.Critical: 7 * 24 * time.Hour, &f.HostSilent: 3 * time.Minute, &f.Review: 15 * time.Minute,
	} {
		if *field == 0 {
			*field = config.Duration(value)
		}
	}
	return f
}

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	if err := c.Database.Validate(); err != nil {
		return err
	}
	f := c.Findings.withDefaults()
	if f.Critical >= f.Expiring {
		return fault.Invalid("findings.critical", "%s: must be shorter than findings.expiring, %s", f.Critical, f.Expiring)
	}
	for name, value := range map[string]config.Duration{"findings.critical": f.Critical, "findings.host_silent": f.HostSilent, "findings.review": f.Review} {
		if value < config.Duration(time.Second) {
			return fault.Invalid(name, "%s: must be at least 1s", value)
		}
	}
	return c.Tracing.Validate()
}

// Deps are what the service stands on.
type Deps struct {
	// Source gives the service its own identity, under which it acts alone.
	Source identity.Source
	NATS   *nats.Conn
	Log    *slog.Logger
	// Monitor shows how the service does; nil shows nobody.
	Monitor *monitor.Service
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Service is the inventory.
type Service struct {
	store     *store.Store
	relay     *event.Relay
	consumers []*event.Consumer
	watch     *watch.Watch
	checker   *check.Checker
	source    identity.Source
	log       *slog.Logger
	now       func() time.Time
	traces    *tracing.Exporter
}

// New opens the database and makes the service; Run starts it.
func New(ctx context.Context, c Config, d Deps) (*Service, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if d.Source == nil || d.NATS == nil || d.Log == nil {
		return nil, errors.New("inventory.New: Source, NATS and Log are required")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	js, err := jetstream.New(d.NATS)
	if err != nil {
		return nil, fmt.Errorf("using JetStream: %w", err)
	}
	st, err := store.Open(ctx, c.Database, d.Now)
	if err != nil {
		return nil, err
	}
	s, err := build(c, d, js, st)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	if s.traces, err = tracing.Open(ctx, c.Tracing, Name, d.Log); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return s, nil
}

func build(c Config, d Deps, js jetstream.JetStream, st *store.Store) (*Service, error) {
	relay, err := event.NewRelay(event.RelayConfig{DB: st.DB(), JS: js, Service: Name, Log: d.Log})
	if err != nil {
		return nil, err
	}
	var consumers []*event.Consumer
	var progress []check.Consumer
	// A fleet that scans must not hold up what the other services tell: observations are consumed apart.
	heard := map[string][]string{"inventory-facts": intake.Facts(), "inventory-observations": intake.Observations()}
	for durable, filter := range heard {
		consumer, err := event.NewConsumer(event.ConsumerConfig{
			DB: st.DB(), JS: js, Durable: durable, Filter: filter, Handle: intake.Intake{Store: st, Log: d.Log}.Handle, Log: d.Log,
			Repeatable: true, // a row for every heartbeat and certificate would be most of the database
			Gather:     gather,
		})
		if err != nil {
			return nil, err
		}
		consumers = append(consumers, consumer)
		progress = append(progress, check.JetStream(js, durable))
	}
	f := c.Findings.withDefaults()
	w, err := watch.New(watch.Config{
		Store: st, Review: f.Review.Std(), Now: d.Now, Log: d.Log,
		Limits: finding.Limits{Expiring: f.Expiring.Std(), Critical: f.Critical.Std(), HostSilent: f.HostSilent.Std()},
	})
	if err != nil {
		return nil, err
	}
	checker, err := check.New(check.Config{DB: st.DB(), Rules: store.Rules, Consumers: progress, Now: d.Now})
	if err != nil {
		return nil, err
	}
	if err := show(d.Monitor, st, d.Now); err != nil {
		return nil, err
	}
	if err := event.Monitor(d.Monitor, event.Monitored{DB: st.DB(), JS: js, Relay: relay, Consumers: heard}); err != nil {
		return nil, err
	}
	return &Service{store: st, relay: relay, consumers: consumers, watch: w, checker: checker, source: d.Source, log: d.Log, now: d.Now}, nil
}

// Methods gives each gRPC method the roles that may call it.
func Methods() map[string][]identity.Role { return api.Methods() }

// Register adds the service's gRPC API to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	inventoryv1.RegisterInventoryServiceServer(r, &api.Server{Store: s.store, Checker: s.checker, Now: s.now})
}

// Run publishes, consumes and watches until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	svid, err := s.source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("reading the own SVID: %w", err)
	}
	self, err := identity.CallerOf(svid.ID)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(trace.WithRecorder(identity.WithCaller(ctx, self), s.traces.Recorder()))
	g.Go(func() error { return s.store.DB().Watch(ctx) })
	g.Go(func() error { return s.relay.Run(ctx) })
	for _, c := range s.consumers {
		g.Go(func() error { return c.Run(ctx) })
	}
	g.Go(func() error { return s.watch.Run(ctx) })
	return g.Wait()
}

// Close closes the database; Run must have returned.
func (s *Service) Close() error { return errors.Join(s.store.Close(), s.traces.Close()) }

// Traces takes the spans of calls to the service; nil where none are recorded.
func (s *Service) Traces() trace.Recorder { return s.traces.Recorder() }

// OnDenied records a refused call.
func (s *Service) OnDenied(ctx context.Context, d rpc.Denial) {
	event.Denied(ctx, s.store.DB(), "inventory", d, s.log)
}
