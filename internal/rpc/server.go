package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

const (
	// streamCheck is how often open streams are held against the deny list.
	streamCheck = 2 * time.Second
	// stopBound is how long calls under way may take to end when the server stops.
	stopBound = 10 * time.Second
	// deniedBound is how long OnDenied may take.
	deniedBound     = 5 * time.Second
	connectionGrace = 30 * time.Second
	handshakeBound  = 10 * time.Second
	// healthEvery is how often the health service is told who is ready.
	healthEvery     = 250 * time.Millisecond
	connectionIdle  = 15 * time.Minute
	serverKeepalive = 2 * time.Minute
	maxHeaderBytes  = 16 << 10
	// returnRate is how many callers a second with a stream are told to come back
	// when the server stops.
	returnRate = 1000
	// streamWorkers serve calls one after another, each on a stack that has grown already; further calls get a goroutine each.
	streamWorkers = 64
)

// ServerConfig says what a server offers to whom.
type ServerConfig struct {
	// Sources gives each service its SVID. The client's TLS server name chooses:
	// "<service>.sallyport.internal".
	Sources map[string]identity.Source
	// Default names the source for any other server name.
	Default string
	// Methods gives each full method ("/pkg.Service/Method") the roles that may
	// call it. RoleAnonymous admits everybody: who has a certificate could leave
	// it out. Health and reflection have their entries already.
	Methods map[string][]identity.Role
	// OnDenied is called once for each call refused for who the caller is. Its
	// context outlives the call by at most 5 seconds.
	OnDenied func(ctx context.Context, d Denial)
	// Deny looks a caller up in the deny list and gives the reason or nil. It is
	// called on every call with a certificate and every 2 seconds for each caller
	// with an open stream, so it must answer from memory.
	Deny func(c identity.Caller) error
	// Limits bound what one caller can take.
	Limits Limits
	// Meter counts calls; nil counts nothing.
	Meter Meter
	// Ready says why the service behind an API ("sallyport.issuer.v1.IssuerService"; "" for all) cannot do its work, or nil.
	// It is asked all the time, so it must answer from memory. With nil all are ready.
	Ready func(api string) error
	// Log is required. Its lines name call and trace if its handler is trace.LogHandler.
	Log *slog.Logger
	// Traces gives who records the spans of a full method; nil records none.
	Traces func(method string) trace.Recorder
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Meter counts calls. It must be fast.
type Meter interface {
	// Begin is called before anything else is done for a call of a registered method ("/pkg.Service/Method"), and what it gives
	// once at its end.
	Begin(method string, stream bool) (end func(codes.Code))
	// Denied is called for each call refused for who the caller is.
	Denied(reason string)
}

// Denial is a call refused for who the caller is.
type Denial struct {
	Service string // "sallyport.issuer.v1.IssuerService"
	Method  string // "SubmitRequest"
	Caller  identity.Caller
	Reason  string // as in fault.Error
	Detail  string // for logs and records; the peer never sees it
	Peer    string // remote address
}

// Server is a gRPC server with the one chain of interceptors.
type Server struct {
	cfg     ServerConfig
	log     *slog.Logger
	now     func() time.Time
	methods map[string][]identity.Role
	grpc    *grpc.Server
	health  *health.Server

	callers   *buckets
	anonymous *buckets

	mu       sync.Mutex
	streams  map[*openStream]struct{}
	perKey   map[string]int
	stopping bool
}

// builtin are the methods every server has. Check is open to all, for load
// balancers; the rest tells about the inside.
func builtin() map[string][]identity.Role {
	insiders := append([]identity.Role{identity.RoleOperator}, identity.Services...)
	return map[string][]identity.Role{
		"/grpc.health.v1.Health/Check":                                   {identity.RoleAnonymous},
		"/grpc.health.v1.Health/List":                                    insiders,
		"/grpc.health.v1.Health/Watch":                                   insiders,
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      insiders,
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": insiders,
	}
}

// NewServer makes a server. Register the services, then Serve.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Log == nil {
		return nil, errors.New("rpc: a server needs a log")
	}
	if cfg.Sources[cfg.Default] == nil {
		return nil, fmt.Errorf("rpc: no identity source for the default service %q", cfg.Default)
	}
	for name, src := range cfg.Sources {
		if src == nil {
			return nil, fmt.Errorf("rpc: the identity source of service %q is nil", name)
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Meter == nil {
		cfg.Meter = noMeter{}
	}
	if cfg.Ready == nil {
		cfg.Ready = func(string) error { return nil }
	}
	if err := cfg.Limits.Validate(); err != nil {
		return nil, fmt.Errorf("rpc: %w", err)
	}
	cfg.Limits.fill()
	s := &Server{
		cfg: cfg, log: cfg.Log, now: cfg.Now,
		methods:   builtin(),
		callers:   newBuckets(cfg.Limits.CallerRate, 2),
		anonymous: newBuckets(cfg.Limits.AnonymousRate, 10),
		streams:   map[*openStream]struct{}{},
		perKey:    map[string]int{},
	}
	for m, roles := range cfg.Methods {
		if _, dup := s.methods[m]; dup {
			return nil, fmt.Errorf("rpc: method %s already has its roles", m)
		}
		if len(roles) == 0 {
			return nil, fmt.Errorf("rpc: method %s has no roles", m)
		}
		s.methods[m] = slices.Clone(roles)
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(newServerCreds(cfg.Sources, cfg.Default, cfg.Now, cfg.Log)),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(cfg.Limits.MessageSize), grpc.ForceServerCodecV2(newSparing()),
		grpc.MaxConcurrentStreams(cfg.Limits.ConcurrentCalls),
		grpc.MaxHeaderListSize(maxHeaderBytes), grpc.HeaderTableSize(0),
		grpc.ConnectionTimeout(handshakeBound),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: connectionIdle, MaxConnectionAge: cfg.Limits.ConnectionAge.Std(), MaxConnectionAgeGrace: connectionGrace,
			Time: serverKeepalive, Timeout: keepaliveTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: enforcedKeepalive, PermitWithoutStream: true}),
		grpc.WriteBufferSize(writeBuffer), grpc.ReadBufferSize(readBuffer),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(streamWorkers),
	)
	s.health = health.NewServer()
	healthpb.RegisterHealthServer(s.Registrar(), s.health)
	reflection.Register(s.grpc)
	return s, nil
}

// Registrar is where services register.
func (s *Server) Registrar() grpc.ServiceRegistrar { return admitting{s} }

// admitting registers services so that the chain comes before the request: grpc takes it in and makes it of its bytes before
// interceptors are asked, and a few bytes can stand for many times their size. From who may not call nothing is taken.
type admitting struct{ s *Server }

func (a admitting) RegisterService(desc *grpc.ServiceDesc, impl any) {
	own := *desc
	own.Methods = slices.Clone(desc.Methods)
	for i, m := range own.Methods {
		method := "/" + desc.ServiceName + "/" + m.MethodName
		own.Methods[i].Handler = func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return a.s.unary(ctx, method, func(ctx context.Context) (any, error) {
				return m.Handler(srv, ctx, func(into any) error { return unread(decode(into)) }, nil)
			})
		}
	}
	a.s.grpc.RegisterService(&own, impl)
}

// unread says for our log and metrics why a request could not be had. The caller has grpc's own words for it already.
func unread(err error) error {
	switch {
	case err == nil:
		return nil
	case status.Code(err) == codes.Canceled:
		return fmt.Errorf("reading the request: %w", context.Canceled)
	case status.Code(err) == codes.DeadlineExceeded:
		return fmt.Errorf("reading the request: %w", context.DeadlineExceeded)
	case status.Code(err) == codes.ResourceExhausted:
		return err
	}
	return fault.Invalid("request", "it cannot be read: %w", err)
}

// CheckMethods wants exactly one table entry for each registered method.
func (s *Server) CheckMethods() error {
	registered := map[string]bool{}
	var wrong []string
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			registered[full] = true
			if len(s.methods[full]) == 0 {
				wrong = append(wrong, full+" has no roles")
			}
		}
	}
	for m := range s.methods {
		if !registered[m] {
			wrong = append(wrong, m+" is not registered")
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return fmt.Errorf("rpc: method table: %s", strings.Join(wrong, ", "))
	}
	return nil
}

// Serve answers calls until ctx ends, then lets calls under way end, for at
// most 10 seconds. Open streams are told to come back elsewhere. It owns lis.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	if err := s.CheckMethods(); err != nil {
		return errors.Join(err, lis.Close())
	}
	s.tellHealth()
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { s.watchStreams(watch) })
	wg.Go(func() { s.watchHealth(watch) })
	defer func() { cancel(); wg.Wait() }()

	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(lis) }()
	select {
	case err := <-served:
		s.grpc.Stop()
		if err != nil {
			return fmt.Errorf("serving on %s: %w", lis.Addr(), err)
		}
		return nil
	case <-ctx.Done():
	}
	s.shutdown(ctx)
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // it was to stop before it had begun
		return fmt.Errorf("serving on %s: %w", lis.Addr(), err)
	}
	return nil
}

// watchHealth keeps grpc.health.v1 true. After shutdown the health service takes no news any more.
func (s *Server) watchHealth(ctx context.Context) {
	t := time.NewTicker(healthEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.tellHealth()
		}
	}
}

func (s *Server) tellHealth() {
	tell := func(api string) {
		status := healthpb.HealthCheckResponse_SERVING
		if s.cfg.Ready(api) != nil {
			status = healthpb.HealthCheckResponse_NOT_SERVING
		}
		s.health.SetServingStatus(api, status)
	}
	tell("")
	for api := range s.grpc.GetServiceInfo() {
		tell(api)
	}
}

func (s *Server) shutdown(ctx context.Context) {
	s.health.Shutdown()
	s.endStreams()
	stopped := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(stopBound):
		s.log.WarnContext(ctx, "calls still under way when the server stops are broken off")
		s.grpc.Stop()
		<-stopped
	}
}
