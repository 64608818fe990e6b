// Package audit is the audit service: every fact and every denied call of all services becomes one record of an append-only log
// that anyone can verify offline with package auditlog.
//
// What it guarantees is said where it is made sure of: what a record holds in auditlog.Record, that the log only grows and only
// as its key signed in package ledger, that a fact is acknowledged only when it is recorded, once, in package ingest, that the
// stream of records has no gap in package feed.
//
// A log has one writer. Several replicas cannot share a directory; a second process on it is refused.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/audit/internal/api"
	"github.com/sallyport-pki/sallyport/services/audit/internal/feed"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ingest"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/tracing"
)

// Name is the service's name in SPIFFE IDs, subjects and databases.
const Name = "audit"

// Config is the audit service's part of a configuration file. It is read at start only.
type Config struct {
	// Database holds the search index, which is made from the log, and the service's own outbox. An empty one is filled from
	// the log at the next start.
	Database db.Config `yaml:"database"`
	// Directory holds the log and the key that signs it; required. It must be on a local file system and belongs to one
	// process. It is made, with a new log and a new key, if it does not exist; back it up as a whole. In it, log/ is what
	// auditors may copy and verifier is the public key they need; checkpoint.key is secret.
	Directory string `yaml:"directory"`
	// CheckpointInterval is the least time between two signed checkpoints while records come: until at most twice as long
	// after it was recorded, a record has no proof yet, and a proof of it waits. Default 200ms, at least 100ms.
	CheckpointInterval config.Duration `yaml:"checkpoint_interval"`
	// Tracing says where the service's spans go.
	Tracing tracing.Config `yaml:"tracing"`
}

const (
	defaultCheckpointInterval = 200 * time.Millisecond
	minCheckpointInterval     = 100 * time.Millisecond
	maxCheckpointInterval     = time.Minute
)

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	if err := c.Database.Validate(); err != nil {
		return err
	}
	if c.Directory == "" {
		return fault.Invalid("directory", "must not be empty: give the directory of the audit log")
	}
	if i := c.CheckpointInterval.Std(); i != 0 && (i < minCheckpointInterval || i > maxCheckpointInterval) {
		return fault.Invalid("checkpoint_interval", "%s: want %s to %s", c.CheckpointInterval, minCheckpointInterval, maxCheckpointInterval)
	}
	return c.Tracing.Validate()
}

// Deps are what the service stands on. All but Monitor and Now are required.
type Deps struct {
	// Source is the service's identity; its trust domain names the log.
	Source identity.Source
	NATS   *nats.Conn
	Log    *slog.Logger
	// Monitor shows how the service does; nil shows nobody.
	Monitor *monitor.Service
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Methods says who may call what.
func Methods() map[string][]identity.Role {
	operators := []identity.Role{identity.RoleOperator}
	return map[string][]identity.Role{
		auditv1.AuditService_ListRecords_FullMethodName:         operators,
		auditv1.AuditService_GetRecord_FullMethodName:           operators,
		auditv1.AuditService_TailRecords_FullMethodName:         operators,
		auditv1.AuditService_ExportRecords_FullMethodName:       operators,
		auditv1.AuditService_GetCheckpoint_FullMethodName:       operators,
		auditv1.AuditService_GetConsistencyProof_FullMethodName: operators,
		auditv1.AuditService_CheckStore_FullMethodName:          operators,
		auditv1.AuditService_FindEvents_FullMethodName:          operators,
	}
}

// Service is the audit service.
type Service struct {
	deps     Deps
	caller   identity.Caller
	db       *db.DB
	ledger   *ledger.Ledger
	recorder *ingest.Recorder
	relay    *event.Relay
	ingest   *ingest.Ingest
	feed     *feed.Feed
	api      *api.Server
	traces   *tracing.Exporter
}

// New opens log and index and brings the index up to the log, which takes about a second for 50,000 records that are missing
// from it. It refuses, saying what to do, a log and an index that do not belong together.
func New(ctx context.Context, c Config, d Deps) (*Service, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if d.Source == nil || d.NATS == nil || d.Log == nil {
		return nil, errors.New("audit.New: Source, NATS and Log are required")
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if c.CheckpointInterval == 0 {
		c.CheckpointInterval = config.Duration(defaultCheckpointInterval)
	}
	s := &Service{deps: d}
	if err := s.open(ctx, c); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Service) open(ctx context.Context, c Config) (err error) {
	if s.traces, err = tracing.Open(ctx, c.Tracing, Name, s.deps.Log); err != nil {
		return err
	}
	svid, err := s.deps.Source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("reading the own SVID: %w", err)
	}
	if s.caller, err = identity.CallerOf(svid.ID); err != nil {
		return err
	}
	s.ledger, err = ledger.Open(ctx, ledger.Config{
		Dir:                c.Directory,
		Origin:             "sallyport." + svid.ID.TrustDomain().Name() + "/audit",
		CheckpointInterval: c.CheckpointInterval.Std(),
		Log:                s.deps.Log,
	})
	if err != nil {
		return err
	}
	if s.db, err = db.Open(ctx, c.Database, store.Migrations(), Name); err != nil {
		return err
	}
	index := store.New(s.db)
	if s.recorder, err = ingest.NewRecorder(ctx, s.ledger, index, s.deps.Log); err != nil {
		return err
	}
	js, err := jetstream.New(s.deps.NATS)
	if err != nil {
		return err
	}
	if s.relay, err = event.NewRelay(event.RelayConfig{DB: s.db, JS: js, Service: Name, Log: s.deps.Log}); err != nil {
		return err
	}
	if s.ingest, err = ingest.New(ingest.Config{Recorder: s.recorder, DB: s.db, JS: js, Log: s.deps.Log}); err != nil {
		return err
	}
	if s.feed, err = feed.New(feed.Config{Ledger: s.ledger, Store: index, JS: js, Log: s.deps.Log}); err != nil {
		return err
	}
	checker, err := check.New(check.Config{
		DB: s.db, Rules: store.Rules(s.ledger.Size), Now: s.deps.Now,
		Consumers: []check.Consumer{check.JetStream(js, ingest.Durable), {Name: "audit-feed", Progress: func(ctx context.Context) (uint64, uint64, error) {
			size := s.ledger.Size()
			published, err := index.Published(ctx)
			return size - min(published, size), published, err
		}}},
	})
	if err != nil {
		return err
	}
	if s.api, err = api.New(api.Config{Ledger: s.ledger, Store: index, Recorder: s.recorder, Checker: checker}); err != nil {
		return err
	}
	if err := errors.Join(show(s.deps.Monitor, s.ledger, index), s.deps.Monitor.Register(s.recorder.Metrics()...)); err != nil {
		return err
	}
	return event.Monitor(s.deps.Monitor, event.Monitored{
		DB: s.db, JS: js, Relay: s.relay, Consumers: map[string][]string{ingest.Durable: {event.FactsOf("*")}},
	})
}

// Register adds AuditService to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) { auditv1.RegisterAuditServiceServer(r, s.api) }

// Run records and publishes until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx = trace.WithRecorder(identity.WithCaller(ctx, s.caller), s.traces.Recorder())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.db.Watch(ctx) })
	g.Go(func() error { return s.relay.Run(ctx) })
	g.Go(func() error { return s.ingest.Run(ctx) })
	g.Go(func() error { return s.feed.Run(ctx) })
	return g.Wait()
}

// Close waits for the checkpoint over the last record and closes everything. Run must have returned, and the server must have
// stopped.
func (s *Service) Close() error {
	var errs []error
	if s.recorder != nil {
		errs = append(errs, s.recorder.Close())
	}
	if s.ledger != nil {
		errs = append(errs, s.ledger.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(append(errs, s.traces.Close())...)
}

// Traces takes the spans of calls to the service; nil where none are recorded.
func (s *Service) Traces() trace.Recorder { return s.traces.Recorder() }

// OnDenied records a call to this service that was denied, the way other services' denied calls come: as a fact.
func (s *Service) OnDenied(ctx context.Context, d rpc.Denial) {
	event.Denied(ctx, s.db, Name, d, s.deps.Log)
}
