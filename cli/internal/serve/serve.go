// Package serve runs all services of Sallyport in one process, on one port,
// with everything they need: event broker, databases, trust domain. It is the
// daemons' own code behind the same seams, the same mutual TLS and the same
// authorization; only who starts whom is different.
//
// It guarantees that state is kept over restarts, that surroundings in which it
// cannot work end in one line that says what to do, and that a stop loses
// nothing: calls under way end first, then the services, then the broker.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/heap"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/deployer"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

const (
	// svidLifetime is that of the services' own identities, which renew themselves.
	svidLifetime = 24 * time.Hour
	// keepInterval is between two looks at the disk, the clock and the credential.
	keepInterval = 5 * time.Second
	// readyBound is how long the services may take to answer after they started.
	readyBound = time.Minute
	// readyPoll is between two questions whether they are ready.
	readyPoll = 50 * time.Millisecond
	// crlLead is how far ahead of time the numbers of CRLs begin after a restore: those of the time that was lost were given
	// by a clock that may have been ahead of this one. Numbers need not be times, only grow (RFC 5280 section 5.2.3).
	crlLead = 24 * time.Hour
	// stopBound is how long an orderly stop may take.
	stopBound = 40 * time.Second
)

// Environment is what the process hands in.
type Environment struct {
	// Out gets the one line that says it is ready, Err the log.
	Out, Err io.Writer
	// Contexts is the user's file of contexts, "" for none.
	Contexts string
	Now      func() time.Time
}

// Run serves until ctx ends, then stops in good order. Errors carry exit codes.
func Run(ctx context.Context, cfg Config, env Environment) error {
	if err := cfg.complete(); err != nil {
		return exit.With(exit.Usage, err)
	}
	log, err := cfg.Log.New(env.Err)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	heap.Relax()
	s := &site{cfg: &cfg, env: env, log: log}
	err = s.start(ctx)
	if err == nil {
		err = s.run(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // told to stop while it was starting
	}
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	log.InfoContext(ctx, "stopped")
	return nil
}

// site is one installation in one process.
type site struct {
	cfg *Config
	env Environment
	log *slog.Logger

	dir      *datadir.Dir
	ca       *identity.Authority
	operator *operator
	lis      net.Listener
	address  string // where this process reaches itself
	broker   *broker
	sources  map[string]identity.Source
	services []running
	deny     func(identity.Caller) error
	server   *rpc.Server
	monitor  *monitor.Monitor
	closers  []func() error
}

// running is a service by its name.
type running struct {
	name string
	service
}

// service is the part of the services' seam that is the same for all.
type service interface {
	Register(grpc.ServiceRegistrar)
	Run(context.Context) error
	Close() error
	OnDenied(context.Context, rpc.Denial)
	Traces() trace.Recorder
}

// start opens everything in the order it depends on each other.
func (s *site) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		s.openDir, s.openMonitor, s.checkComplete, s.openTrust, s.listen, s.openOperator, s.openBroker, s.openServices, s.openServer,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	// All is made: from now on a missing file is a loss and no first start.
	crash.At(crash.DirComplete)
	if err := s.dir.Complete(); err != nil {
		return err
	}
	return s.dir.NoteClock()
}

// onClose remembers what is to be undone at the end, in reverse order.
func (s *site) onClose(fn func() error) { s.closers = append(s.closers, fn) }

func (s *site) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// openMonitor comes early and ends late, so that start and stop can be watched.
func (s *site) openMonitor(ctx context.Context) error {
	m, err := monitor.New(s.log)
	if err != nil {
		return err
	}
	s.monitor = m
	s.onClose(m.Close)
	if err := m.Listen(ctx, s.cfg.Metrics); err != nil {
		return exit.With(exit.Address, err)
	}
	return nil
}

func (s *site) openDir(context.Context) error {
	d, err := datadir.Open(datadir.Options{Path: s.cfg.Data, TrustDomain: s.cfg.TrustDomain, DefaultTrustDomain: DefaultTrustDomain, Now: s.env.Now})
	if err != nil {
		return err
	}
	s.dir = d
	s.onClose(d.Close)
	restored, err := d.Restored()
	if err != nil {
		return err
	}
	if restored != nil {
		s.cfg.Issuer.CRL.NumberAbove = max(s.cfg.Issuer.CRL.NumberAbove, restored.At.Add(crlLead).UnixMilli())
		s.cfg.Deployer.Restored = deployer.RestoredConfig{Backup: restored.Backup.Format(time.RFC3339Nano), At: restored.At.Format(time.RFC3339Nano)}
	}
	return nil
}

// checkComplete refuses a directory that has lost something: made anew, it
// would look as if it had never been.
func (s *site) checkComplete(context.Context) error {
	if !s.dir.Marker.Complete {
		return nil
	}
	const begin = "; to go on without it make an empty directory of that name"
	for _, need := range []struct{ path, what, instead string }{
		{s.dir.Join(datadir.DirNATS), "the event store", begin + ", and events that no service had taken yet are lost"},
		{s.cfg.Audit.Directory, "the audit log", begin + ", and a new log with a new key begins"},
		{sqliteFile(s.cfg.Inventory.Database.Driver, s.cfg.Inventory.Database.DSN), "the inventory's database", ""},
		{sqliteFile(s.cfg.Issuer.Database.Driver, s.cfg.Issuer.Database.DSN), "the issuer's database", ""},
		{sqliteFile(s.cfg.Deployer.Database.Driver, s.cfg.Deployer.Database.DSN), "the deployer's database", ""},
	} {
		if need.path == "" {
			continue
		}
		if _, err := os.Stat(need.path); errors.Is(err, os.ErrNotExist) {
			return exit.Errorf(exit.Data, "%s %s is missing: restore it from the backup%s", need.what, need.path, need.instead)
		}
	}
	return nil
}

// sqliteFile is the data file, "" for a server.
func sqliteFile(driver, dsn string) string {
	if driver != sqlite {
		return ""
	}
	return dsn
}

// openTrust opens the key-encryption key and the root, and makes them at the
// first start.
func (s *site) openTrust(ctx context.Context) error {
	box, err := s.openBox()
	if err != nil {
		return err
	}
	root := s.dir.Join(datadir.DirTrust)
	td, err := spiffeid.TrustDomainFromString(s.dir.Marker.TrustDomain)
	if err != nil {
		return exit.Errorf(exit.Data, "%s is damaged: restore the data directory from the backup", s.dir.Join(datadir.FileMarker))
	}
	_, err = os.Stat(filepath.Join(root, trust.FileRoot))
	if errors.Is(err, os.ErrNotExist) && !s.dir.Marker.Complete {
		// A key without its certificate is what a first start left that was cut off.
		if err := os.RemoveAll(root); err != nil {
			return trust.Disk(err)
		}
		s.ca, err = trust.Create(root, td, box, s.env.Now)
		crash.At(crash.TrustMade)
		if err == nil {
			s.log.InfoContext(ctx, "made a trust domain", "trust_domain", td.Name(), "dir", root)
		}
	} else {
		s.ca, err = trust.Open(root, box, s.env.Now)
	}
	if err != nil {
		return err
	}
	if s.ca.TrustDomain() != td {
		return exit.Errorf(exit.Data, "the root in %s is of the trust domain %q, the data directory of %q: restore both from the same backup", root, s.ca.TrustDomain().Name(), td.Name())
	}
	if now := s.env.Now(); now.Before(trust.NotBefore(s.ca)) {
		return exit.Errorf(exit.Clock, "the clock says %s, but the trust domain was made at %s: set the clock right, then start again",
			now.UTC().Format(time.RFC3339), trust.NotBefore(s.ca).UTC().Format(time.RFC3339))
	}
	return nil
}

func (s *site) openBox() (*trust.Box, error) {
	_, err := os.Stat(s.cfg.KEK)
	if errors.Is(err, os.ErrNotExist) && !s.dir.Marker.Complete {
		box, err := trust.CreateBox(s.cfg.KEK)
		crash.At(crash.KEKMade)
		return box, err
	}
	return trust.OpenBox(s.cfg.KEK)
}

func (s *site) listen(ctx context.Context) error {
	lis, err := rpc.Listen(ctx, s.cfg.Listen)
	if err != nil {
		return listenError(s.cfg.Listen, err)
	}
	s.lis = lis
	s.onClose(func() error {
		if err := lis.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	s.address, err = loopback(lis.Addr().String())
	return err
}

func listenError(address string, err error) error {
	what := "choose another by --listen"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		what = "another program listens there: stop it, or " + what
	case errors.Is(err, syscall.EACCES):
		what = "ports below 1024 need a privilege: " + what
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		what = "this machine has no such address: " + what
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return exit.Errorf(exit.Address, "cannot listen on %s: %w: %s", address, err, what)
}

// loopback is how this machine reaches a listener: as it is, but for those
// that listen on all addresses.
func loopback(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port), nil
}

func (s *site) openOperator(ctx context.Context) error {
	id, err := identity.OperatorID(s.ca.TrustDomain(), s.cfg.Operator.Name)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	s.operator = &operator{
		dir: s.dir.Join(datadir.DirOperator), ca: s.ca, id: id, lifetime: s.cfg.Operator.Lifetime.Std(), now: s.env.Now, log: s.log,
	}
	if err := s.operator.renew(ctx); err != nil {
		return err
	}
	return s.operator.contexts(ctx, s.env.Contexts, s.address)
}

func (s *site) openBroker(ctx context.Context) error {
	b, err := startBroker(ctx, s.dir.Join(datadir.DirNATS), s.log)
	if err != nil {
		return err
	}
	s.broker = b
	s.onClose(func() error { b.stop(); return nil })
	return nil
}

// source gives a service its identity.
func (s *site) source(name identity.Role) (identity.Source, error) {
	id, err := identity.ServiceID(s.ca.TrustDomain(), string(name))
	if err != nil {
		return nil, err
	}
	src, err := identity.NewMinted(s.ca, id, svidLifetime)
	if err != nil {
		return nil, err
	}
	s.onClose(src.Close)
	return src, nil
}

// run serves until ctx ends or something fails. The server stops first, so
// that calls under way end while the services still run.
func (s *site) run(ctx context.Context) error {
	s.log.InfoContext(ctx, "serving", "listen", s.lis.Addr().String(), "trust_domain", s.ca.TrustDomain().Name(), "version", boot.Version().String())
	s.log.InfoContext(ctx, "configuration", "config", s.cfg)
	g, gctx := errgroup.WithContext(ctx)
	s.monitor.Serving()
	defer context.AfterFunc(gctx, s.monitor.Stopping)()
	g.Go(func() error { return s.monitor.Run(gctx) })
	services, stopServices := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer stopServices()
		return s.ended(gctx, "the server", s.server.Serve(gctx, s.lis))
	})
	for _, r := range s.services {
		g.Go(func() error { return s.ended(gctx, "the "+r.name, r.Run(services)) })
	}
	g.Go(func() error { return s.keep(gctx) })
	g.Go(func() error { return s.ready(gctx) })
	g.Go(func() error { return boot.GiveMemoryBack(gctx) })
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-gctx.Done():
		s.log.InfoContext(ctx, "stopping")
		select {
		case err = <-done:
		case <-time.After(stopBound):
			return exit.Errorf(exit.General, "stopping took longer than %s and was broken off: what was acknowledged is on disk, start again", stopBound)
		}
	}
	if err != nil {
		return err
	}
	return s.dir.NoteClock()
}

// ended makes sure that no part ends alone: without the end of ctx even nil is
// an error.
func (s *site) ended(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if err == nil {
		err = errors.New("stopped without being told to")
	}
	err = surroundings(fmt.Errorf("%s: %w", what, err))
	if fault.KindOf(err) == fault.Transient { // the disk: another start may do
		return exit.With(exit.General, err)
	}
	return err
}

// keep looks after disk, broker, clock and credential.
func (s *site) keep(ctx context.Context) error {
	t := time.NewTicker(keepInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		// A disk is given up before it is full: what is open can still be closed.
		if err := s.dir.CheckSpace(); err != nil {
			return err
		}
		if err := s.broker.health(); err != nil {
			return err
		}
		if err := s.dir.NoteClock(); err != nil {
			return err
		}
		if err := s.operator.renew(ctx); err != nil {
			return err
		}
	}
}

// ready asks each service for its health, as an operator would, and then says
// that all is up.
func (s *site) ready(ctx context.Context) error {
	src, err := identity.NewFiles(s.operator.dir, nil)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	for _, r := range s.services {
		conn, err := rpc.Dial(rpc.ClientConfig{Address: s.address, Service: r.name, Source: src, Now: s.env.Now})
		if err != nil {
			return err
		}
		err = s.awaitService(ctx, conn)
		if err := errors.Join(err, conn.Close()); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the %s does not answer at %s: %w", r.name, s.address, err)
		}
	}
	_, err = fmt.Fprintf(s.env.Out, "sallyport is ready at %s, trust domain %s. Let a host in: sallyport token create --host NAME\n",
		s.lis.Addr(), s.ca.TrustDomain().Name())
	return err
}

// awaitService waits until a service says that it is ready, however long that takes; it must say something within the bound.
func (s *site) awaitService(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		bound, cancel := context.WithTimeout(ctx, readyBound)
		answer, err := healthpb.NewHealthClient(conn).Check(bound, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		cancel()
		if err != nil || answer.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(readyPoll):
		}
	}
}
