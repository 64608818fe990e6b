// Package issuer decides what may be issued and obtains it from a CA: the company's own, or one that speaks ACME.
//
// It guarantees that a certificate is issued only for the names of its identity under the rules of its profile, whoever asks;
// that a request ends in exactly one certificate or in a reason; and that every step of it is stored, together with the event
// that tells of it, before anybody learns of it. It waits for no host: what a host has to do goes out as an event and comes
// back as a report.
package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/secret"
	"github.com/sallyport-pki/sallyport/services/internal/tracing"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/advice"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/api"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/catalogue"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/crl"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/intake"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/ordering"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// Name is the service's name in identities, event subjects and addresses.
const Name = "issuer"

// Deps are what the issuer stands on; all but Monitor and Now is required.
type Deps struct {
	// Source is the issuer's own identity.
	Source identity.Source
	// NATS is where events go.
	NATS *nats.Conn
	// Inventory answers what names an identity may have.
	Inventory grpc.ClientConnInterface
	Log       *slog.Logger
	// Monitor shows how the service does; nil shows nobody.
	Monitor *monitor.Service
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Service is a running issuer.
type Service struct {
	self      identity.Caller
	log       *slog.Logger
	store     *store.Store
	catalogue *catalogue.Catalogue
	api       *api.Server
	worker    *ordering.Worker
	adviser   *advice.Adviser
	lists     *crl.Maker
	publisher *crl.Publisher
	relay     *event.Relay
	traces    *tracing.Exporter
}

// Methods says which roles may call which method.
func Methods() map[string][]identity.Role { return maps.Clone(api.Methods()) }

// New opens the database and makes the service. Close it.
func New(ctx context.Context, c Config, d Deps) (*Service, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if d.Source == nil || d.NATS == nil || d.Inventory == nil || d.Log == nil {
		return nil, errors.New("issuer.New: Source, NATS, Inventory and Log are required")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	svid, err := d.Source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("reading the issuer's own identity: %w", err)
	}
	self, err := identity.CallerOf(svid.ID)
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, store.Config{Database: c.Database, Now: d.Now})
	if err != nil {
		return nil, err
	}
	s := &Service{self: self, log: d.Log, store: st}
	if s.traces, err = tracing.Open(ctx, c.Tracing, Name, d.Log); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	if err := s.build(ctx, c.filled(), d); err != nil {
		return nil, errors.Join(err, st.Close(), s.traces.Close())
	}
	return s, nil
}

func (s *Service) build(ctx context.Context, c Config, d Deps) error {
	box, err := openBox(ctx, c.KeyEncryptionKey, s.store)
	if err != nil {
		return err
	}
	if err := s.store.ReleaseLeftovers(ctx); err != nil {
		return err
	}
	s.catalogue, err = catalogue.New(catalogue.Config{
		Store: s.store, Box: box, SecretsDir: c.SecretsDir, CRLURL: c.CRL.URL, UserAgent: "sallyport/" + boot.Version().Version, Now: d.Now,
	})
	if err != nil {
		return err
	}
	identities, err := intake.NewIdentities(intake.IdentitiesConfig{
		Client: inventoryv1.NewInventoryServiceClient(d.Inventory), MaxAge: c.IdentityMaxAge.Std(), Now: d.Now,
	})
	if err != nil {
		return err
	}
	failures := authorityFailures()
	desk, err := intake.New(intake.Config{Store: s.store, Catalogue: s.catalogue, Identities: identities, Failed: failed(failures)})
	if err != nil {
		return err
	}
	s.worker, err = ordering.New(ordering.Config{Store: s.store, Authorities: s.catalogue, Rules: c.ordering(), Log: d.Log, Now: d.Now, Failed: failed(failures)})
	if err != nil {
		return err
	}
	s.adviser, err = advice.New(advice.Config{Store: s.store, Authorities: s.catalogue, Rules: c.advice(), Log: d.Log, Now: d.Now})
	if err != nil {
		return err
	}
	s.lists, err = crl.NewMaker(crl.MakerConfig{Store: s.store, Signers: s.catalogue, Log: d.Log, Now: d.Now, Above: c.CRL.NumberAbove})
	if err != nil {
		return err
	}
	s.publisher, err = crl.NewPublisher(crl.PublisherConfig{Store: s.store, Log: d.Log, Now: d.Now})
	if err != nil {
		return err
	}
	checker, err := check.New(check.Config{DB: s.store.DB(), Rules: store.Rules, Now: d.Now})
	if err != nil {
		return err
	}
	s.api, err = api.New(api.Config{Store: s.store, Catalogue: s.catalogue, Desk: desk, Worker: s.worker, Checker: checker})
	if err != nil {
		return err
	}
	js, err := jetstream.New(d.NATS)
	if err != nil {
		return err
	}
	s.relay, err = event.NewRelay(event.RelayConfig{DB: s.store.DB(), JS: js, Service: Name, Log: d.Log})
	if err != nil {
		return err
	}
	if err := s.show(d.Monitor, failures, d.Now); err != nil {
		return err
	}
	if err := event.Monitor(d.Monitor, event.Monitored{DB: s.store.DB(), JS: js, Relay: s.relay}); err != nil {
		return err
	}
	if c.CRL.Listen == "" {
		return nil
	}
	return s.publisher.Listen(ctx, c.CRL.Listen)
}

// sealedText proves that a key file is the one this database is used with.
const sealedText = "sallyport issuer"

// openBox opens the key file, or makes it as long as nothing can be lost by that.
func openBox(ctx context.Context, path string, st *store.Store) (*secret.Box, error) {
	sealed, err := st.Sealed(ctx)
	if err != nil {
		return nil, err
	}
	var box *secret.Box
	if sealed {
		box, err = secret.Open(path)
	} else if box, err = secret.Create(path); secret.Refused(err) {
		box, err = secret.Open(path) // it is there: another replica, or an operator, was first
	}
	if err != nil {
		return nil, err
	}
	aad := secret.AAD("check", "1")
	mine, err := box.Seal(aad, []byte(sealedText))
	if err != nil {
		return nil, err
	}
	first, err := st.Seal(ctx, mine)
	if err != nil {
		return nil, err
	}
	if _, err := box.Open(aad, first); err != nil {
		return nil, fault.New(fault.Precondition, "KEY_FILE_REFUSED", "key file %s is not the one this database was used with: restore that one", path)
	}
	return box, nil
}

// Register adds the issuer's gRPC service to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { s.api.Register(r) }

// Run does what goes on without being called: orders, accounts, renewal windows, revocation lists, and telling events. It ends
// with ctx.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(trace.WithRecorder(identity.WithCaller(ctx, s.self), s.traces.Recorder()))
	g.Go(func() error { return s.store.DB().Watch(ctx) })
	g.Go(func() error { return s.relay.Run(ctx) })
	g.Go(func() error { return s.worker.Run(ctx) })
	g.Go(func() error { return s.worker.KeepAccounts(ctx) })
	g.Go(func() error { return s.adviser.Run(ctx) })
	g.Go(func() error { return s.lists.Run(ctx) })
	g.Go(func() error { return s.publisher.Run(ctx) })
	return g.Wait()
}

// Close closes the database, after Run has returned and the server has stopped.
func (s *Service) Close() error {
	s.publisher.Close()
	s.catalogue.Close()
	return errors.Join(s.store.Close(), s.traces.Close())
}

// Traces takes the spans of calls to the service; nil where none are recorded.
func (s *Service) Traces() trace.Recorder { return s.traces.Recorder() }

// OnDenied makes a denied call an event.
func (s *Service) OnDenied(ctx context.Context, d rpc.Denial) {
	event.Denied(ctx, s.store.DB(), "issuer", d, s.log)
}
