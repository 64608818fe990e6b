// Package daemon is what the four service programs have in common: listener, identity, NATS connection, gRPC server, and
// the order in which they start and stop.
//
// It guarantees that the service runs exactly while its server answers, that whatever fails first stops everything, and that
// everything it opened is closed again before Run returns. What a service does is left to the service.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/heap"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/internal/trace"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

// Config is the part of a daemon's configuration that all daemons share; embed it. It is read at start only.
type Config struct {
	// Listen is the address to serve gRPC on, "host:port"; required.
	Listen string `yaml:"listen"`
	// Identity says where the daemon's own SVID comes from; exactly one origin is required.
	Identity Identity `yaml:"identity"`
	// NATS is the event broker; required.
	NATS NATS `yaml:"nats"`
	// Limits bound what one caller can take.
	Limits rpc.Limits `yaml:"limits"`
	// Log says what is logged, to standard error.
	Log boot.LogConfig `yaml:"log"`
	// Metrics says where metrics, health and readiness are to be had.
	Metrics monitor.Config `yaml:"metrics"`
}

// Identity is the origin of the SVID. Rotation is followed without a restart.
type Identity struct {
	// Dir holds svid.pem, svid-key.pem and bundle.pem.
	Dir string `yaml:"dir"`
	// WorkloadAPI is the address of a SPIFFE Workload API, such as "unix:///run/spire/agent.sock".
	WorkloadAPI string `yaml:"workload_api"`
}

// NATS is the connection to the event broker: TLS 1.3 with the daemon's SVID; the broker must be
// spiffe://<trust domain>/service/nats.
type NATS struct {
	// URL is "tls://host:4222", several separated by commas; required.
	URL string `yaml:"url"`
	// Replicas is how many brokers keep each event: 1 (default) or, for a cluster, 3. All daemons must say the same.
	Replicas int `yaml:"replicas"`
}

// Validate reports the first field that is wrong.
func (c Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fault.Invalid("listen", "%q: want host:port", c.Listen)
	}
	if (c.Identity.Dir == "") == (c.Identity.WorkloadAPI == "") {
		return fault.Invalid("identity", "give exactly one of dir and workload_api")
	}
	if c.NATS.URL == "" {
		return fault.Invalid("nats.url", `must not be empty: give the brokers, such as "tls://nats:4222"`)
	}
	for n, u := range strings.Split(c.NATS.URL, ",") {
		if !strings.HasPrefix(u, "tls://") { // there may be a password in it
			return fault.Invalid("nats.url", "broker %d of the list: want tls://host:port", n+1)
		}
	}
	if r := c.NATS.Replicas; r != 0 && r != 1 && r != 3 && r != 5 {
		return fault.Invalid("nats.replicas", "%d: want 1, 3 or 5", r)
	}
	if err := c.Limits.Validate(); err != nil {
		return err
	}
	if err := c.Log.Validate(); err != nil {
		return fault.Invalid("log", "%v", err)
	}
	return c.Metrics.Validate()
}

// CheckPeer wants the address of another service.
func CheckPeer(field, address string) error {
	if address == "" {
		return fault.Invalid(field, "must not be empty: give host:port")
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fault.Invalid(field, "%q: want host:port", address)
	}
	return nil
}

// Service is the seam of a service as the daemon runs it. One that also has Deny(identity.Caller) error gives the server its
// deny list.
type Service interface {
	Register(grpc.ServiceRegistrar)
	Run(context.Context) error
	Close() error
	OnDenied(context.Context, rpc.Denial)
	Traces() trace.Recorder
}

// Parts are what a service is built from. They are closed by Run, after the service.
type Parts struct {
	Source identity.Source
	NATS   *nats.Conn
	Log    *slog.Logger
	// Monitor is the service's part of what the daemon shows.
	Monitor *monitor.Service
	// Dial connects to another service at host:port; it connects at the first call.
	Dial func(service, address string) (*grpc.ClientConn, error)
}

// Spec is one program.
type Spec struct {
	// Name is the service's, such as "issuer".
	Name string
	// Methods are the service's Methods().
	Methods map[string][]identity.Role
	// Build makes the service.
	Build func(context.Context, Parts) (Service, error)
	// Config is the whole configuration, for the log.
	Config any
}

// Run runs the service until ctx ends or something fails.
func Run(ctx context.Context, cfg Config, spec Spec) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	log, err := cfg.Log.New(os.Stderr)
	if err != nil {
		return err
	}
	heap.Relax()
	var opened closers
	defer opened.close()

	shown, err := monitor.New(log)
	if err != nil {
		return err
	}
	opened.add(shown)
	if err := shown.Listen(ctx, cfg.Metrics); err != nil {
		return err
	}
	part := shown.Service(spec.Name)
	src, err := source(ctx, cfg.Identity, log)
	if err != nil {
		return err
	}
	opened.add(src)
	if err := part.Identity(src, nil); err != nil {
		return err
	}
	broker, err := connect(cfg.NATS, src, spec.Name, log)
	if err != nil {
		return err
	}
	opened.add(closeFunc(broker.Close))
	js, err := jetstream.New(broker)
	if err != nil {
		return err
	}
	service, err := spec.Build(ctx, Parts{Source: src, NATS: broker, Log: log, Monitor: part, Dial: func(service, address string) (*grpc.ClientConn, error) {
		conn, err := rpc.Dial(rpc.ClientConfig{Address: address, Service: service, Source: src})
		if err == nil {
			opened.add(conn)
		}
		return conn, err
	}})
	if err != nil {
		return err
	}
	opened.add(service)

	server, err := newServer(cfg, spec, src, service, shown, log)
	if err != nil {
		return err
	}
	lis, err := listen(ctx, cfg.Listen)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "serving", "service", spec.Name, "listen", lis.Addr().String(), "version", boot.Version().String())
	log.InfoContext(ctx, "configuration", "config", config.Show(spec.Config))
	g, gctx := errgroup.WithContext(ctx)
	shown.Serving()
	defer context.AfterFunc(gctx, shown.Stopping)()
	g.Go(func() error { return shown.Run(gctx) })
	g.Go(func() error { return boot.GiveMemoryBack(gctx) })
	// The server stops first: calls under way end while the service still runs.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		defer stop()
		return ended(gctx, "the server", server.Serve(gctx, lis))
	})
	g.Go(func() error { return ended(gctx, "the service", service.Run(running)) })
	g.Go(func() error {
		err := event.KeepStreams(gctx, js, event.StreamLimits{Replicas: cfg.NATS.Replicas})
		if gctx.Err() != nil {
			return nil
		}
		return err
	})
	defer func() { log.InfoContext(ctx, "stopped", "service", spec.Name) }()
	return g.Wait()
}

// ended makes sure that one part does not end alone: nil without the end of ctx is an error too.
func ended(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if err == nil {
		err = errors.New("stopped without being told to")
	}
	return fmt.Errorf("%s: %w", what, err)
}

func newServer(cfg Config, spec Spec, src identity.Source, service Service, shown *monitor.Monitor, log *slog.Logger) (*rpc.Server, error) {
	c := rpc.ServerConfig{
		Sources:  map[string]identity.Source{spec.Name: src},
		Default:  spec.Name,
		Methods:  spec.Methods,
		OnDenied: service.OnDenied,
		Traces:   func(string) trace.Recorder { return service.Traces() },
		Limits:   cfg.Limits,
		Meter:    shown.Meter(),
		Ready:    func(string) error { return shown.Ready("") },
		Log:      log,
	}
	if d, ok := service.(interface{ Deny(identity.Caller) error }); ok {
		c.Deny = d.Deny
	}
	server, err := rpc.NewServer(c)
	if err != nil {
		return nil, err
	}
	service.Register(server.Registrar())
	return server, nil
}

func source(ctx context.Context, c Identity, log *slog.Logger) (identity.Source, error) {
	if c.Dir != "" {
		return identity.NewFiles(c.Dir, log)
	}
	return identity.NewWorkload(ctx, c.WorkloadAPI)
}

// connect gives a connection that is made in the background and again whenever it breaks: the outbox waits meanwhile.
func connect(c NATS, src identity.Source, name string, log *slog.Logger) (*nats.Conn, error) {
	conf, err := natsTLS(src)
	if err != nil {
		return nil, err
	}
	conn, err := nats.Connect(c.URL,
		nats.Name("sallyport-"+name),
		nats.Secure(conf),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(time.Second),
		nats.ReconnectJitter(time.Second, time.Second),
		nats.SetCustomDialer(dialer{}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("NATS is away", "error", err)
			}
		}),
		nats.ReconnectHandler(func(conn *nats.Conn) {
			log.Info("NATS is back", "server", conn.ConnectedUrlRedacted())
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	return conn, nil
}

// dialBound is how long a broker may take to accept a connection.
const dialBound = 5 * time.Second

// dialer notices brokers that fall silent, as those do whose machine has lost its power: by itself the client waits for minutes
// before it goes to the next.
type dialer struct{}

func (dialer) Dial(_, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialBound)
	defer cancel()
	return rpc.Direct(ctx, address)
}

// NATSService is the last part of the SPIFFE ID that a broker must show: spiffe://<trust domain>/service/nats.
const NATSService = "nats"

func natsTLS(src identity.Source) (*tls.Config, error) {
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("reading the own SVID: %w", err)
	}
	broker, err := spiffeid.FromSegments(svid.ID.TrustDomain(), "service", NATSService)
	if err != nil {
		return nil, err
	}
	conf := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(broker))
	conf.MinVersion = tls.VersionTLS13
	return conf, nil
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	lis, err := rpc.Listen(ctx, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listening on %s: another program listens there: stop it, or change listen", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return lis, nil
}

// closers are closed in the reverse order of their opening.
type closers []io.Closer

func (c *closers) add(one io.Closer) { *c = append(*c, one) }

func (c *closers) close() {
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i].Close()
	}
}

type closeFunc func()

func (f closeFunc) Close() error {
	f()
	return nil
}
