// Package agent is the program on a host: it dials out to the control plane,
// makes keys where they are used, installs what is assigned, and says what is
// really served.
//
// It guarantees that nothing is listened on (but for an ACME HTTP-01 answer,
// for as long as it is asked for), that a private key never leaves the host,
// and that only what the host's own configuration allows is touched or run.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/challenge"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/files"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/haproxy"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/nginx"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/agent/internal/enroll"
	"github.com/sallyport-pki/sallyport/agent/internal/keystore"
	"github.com/sallyport-pki/sallyport/agent/internal/observe"
	"github.com/sallyport-pki/sallyport/agent/internal/pace"
	"github.com/sallyport-pki/sallyport/agent/internal/plan"
	"github.com/sallyport-pki/sallyport/agent/internal/reconcile"
	"github.com/sallyport-pki/sallyport/agent/internal/scan"
	"github.com/sallyport-pki/sallyport/agent/internal/session"
	"github.com/sallyport-pki/sallyport/agent/internal/spool"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// capability is AgentInfo.capability: what of the protocol is understood.
const capability = 1

// silence is how long the stream may say nothing before it is opened again.
const silence = 30 * time.Minute

// Deps are what the program gives the agent.
type Deps struct {
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Agent is the agent of one host.
type Agent struct {
	cfg        Config
	log        *slog.Logger
	now        func() time.Time
	connectors map[string]connector.Connector
	info       *agentv1.AgentInfo
	dialer     rpc.Dialer
}

// New makes the agent of a validated configuration.
func New(cfg Config, deps Deps) (*Agent, error) {
	if deps.Log == nil {
		return nil, errors.New("agent: no log")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	a := &Agent{cfg: cfg, log: deps.Log, now: deps.Now, connectors: map[string]connector.Connector{}}
	if err := a.enable(); err != nil {
		return nil, err
	}
	a.info = &agentv1.AgentInfo{
		Version: boot.Version().Version, Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Connectors: sortedNames(a.connectors), Capability: capability,
	}
	dialer, err := proxyDialer(cfg)
	if err != nil {
		return nil, err
	}
	a.dialer = dialer
	return a, nil
}

// enable makes the connectors that the configuration names.
func (a *Agent) enable() error {
	hooks := pemfile.Hooks{}
	for name, h := range a.cfg.Hooks {
		hooks[name] = h.command()
	}
	if cfg := a.cfg.Connectors.Nginx; cfg != nil {
		c, err := nginx.New(*cfg, hooks)
		if err != nil {
			return fmt.Errorf("connectors.nginx: %w", err)
		}
		a.connectors[nginx.Name] = c
	}
	if cfg := a.cfg.Connectors.HAProxy; cfg != nil {
		c, err := haproxy.New(*cfg, hooks)
		if err != nil {
			return fmt.Errorf("connectors.haproxy: %w", err)
		}
		a.connectors[haproxy.Name] = c
	}
	if cfg := a.cfg.Connectors.Files; cfg != nil {
		c, err := files.New(*cfg, hooks)
		if err != nil {
			return fmt.Errorf("connectors.files: %w", err)
		}
		a.connectors[files.Name] = c
	}
	return nil
}

func (a *Agent) place(name string, settings map[string]string) (connector.Place, error) {
	c, ok := a.connectors[name]
	if !ok {
		return nil, fault.New(fault.Permanent, reconcile.ReasonNotEnabled, "this host's configuration does not enable the connector %q", name)
	}
	return c.At(settings)
}

const (
	maxCredentials = 4 << 10
	maxTokenFile   = 4 << 10
)

// proxyDialer gives nil for dialling directly.
func proxyDialer(cfg Config) (rpc.Dialer, error) {
	if cfg.Proxy == "" {
		return nil, nil
	}
	address := cfg.Proxy
	if cfg.ProxyCredentialsFile != "" {
		data, err := disk.ReadPath(cfg.ProxyCredentialsFile, maxCredentials)
		if err != nil {
			return nil, fmt.Errorf("proxy_credentials_file: %w", err)
		}
		user, password, ok := strings.Cut(strings.TrimSpace(string(data)), ":")
		u, err := url.Parse(address)
		if err != nil || !ok {
			return nil, errors.New("proxy: want a URL, and user:password in proxy_credentials_file")
		}
		u.User = url.UserPassword(user, password)
		address = u.String()
	}
	d, err := rpc.ProxyDialer(address, nil)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return d, nil
}

// state is what the agent keeps on disk.
type state struct {
	lock                                                                   *disk.Lock
	identity, keys, desired, progress, journal, spool, challenges, contact *disk.Folder
}

func (a *Agent) open() (*state, error) {
	lock, err := disk.TakeLock(a.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	s := &state{lock: lock}
	for name, folder := range map[string]**disk.Folder{
		"identity": &s.identity, "keys": &s.keys, "desired": &s.desired, "progress": &s.progress,
		"journal": &s.journal, "spool": &s.spool, "challenges": &s.challenges, "contact": &s.contact,
	} {
		if *folder, err = lock.Folder(name, a.log); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *state) close() error {
	var err error
	for _, f := range []*disk.Folder{s.identity, s.keys, s.desired, s.progress, s.journal, s.spool, s.challenges, s.contact} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return errors.Join(err, s.lock.Unlock())
}

// Run works until ctx ends. Without an identity it enrols with the token file
// of the configuration, and fails if there is none.
func (a *Agent) Run(ctx context.Context) (err error) {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	ids, err := enroll.OpenStore(ctx, s.identity)
	if err != nil {
		return err
	}
	if ids.Current() == nil {
		if err := a.enrolByFile(ctx, ids); err != nil {
			return err
		}
	}
	id := ids.Current()
	a.log.InfoContext(ctx, "agent starts", "version", a.info.Version, "spiffe_id", id.SVID.ID.String(), "server", a.cfg.Server,
		"connectors", a.info.Connectors, "identity_expires", id.Expires())
	return a.work(ctx, s, ids)
}

func (a *Agent) work(ctx context.Context, s *state, ids *enroll.Store) error {
	l := newLink(a.dialer)
	conn, err := rpc.Dial(rpc.ClientConfig{
		Address: a.cfg.Server, Service: string(identity.RoleDeployer), Source: ids, Dialer: l.dial, Now: a.now,
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	parts, err := a.parts(ctx, s, ids, conn, l)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range parts {
		g.Go(func() error { return run(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	a.log.InfoContext(ctx, "agent stops")
	return nil
}

// parts makes what runs side by side.
func (a *Agent) parts(ctx context.Context, s *state, ids *enroll.Store, conn *grpc.ClientConn, l *link) ([]func(context.Context) error, error) {
	client := agentv1.NewAgentServiceClient(conn)
	desired, err := plan.OpenDesired(ctx, s.desired, a.log)
	if err != nil {
		return nil, err
	}
	progress, err := plan.OpenProgress(ctx, s.progress, a.log)
	if err != nil {
		return nil, err
	}
	reports, err := spool.Open(ctx, s.spool, a.log)
	if err != nil {
		return nil, err
	}
	machine, err := apply.New(apply.Config{
		Journal: s.journal, Place: a.place, VerifyWait: a.cfg.Verify.Wait.Std(), Log: a.log, Now: a.now,
		Decided: func(ctx context.Context, r apply.Report) { reports.Tell(ctx, reconcile.Message(r)) },
	})
	if err != nil {
		return nil, err
	}
	worker, err := reconcile.New(reconcile.Config{
		Desired: desired, Progress: progress, Keys: keystore.New(s.keys), Spool: reports, Machine: machine, Place: a.place,
		Submit: func(ctx context.Context, r *agentv1.SubmitCSRRequest) error {
			_, err := client.SubmitCSR(ctx, r)
			return err
		},
		Interval: a.cfg.Verify.Interval.Std(), Log: a.log, Now: a.now,
	})
	if err != nil {
		return nil, err
	}
	responder, err := challenge.New(challenge.Config{
		Listen: a.cfg.HTTP01.Listen, Webroot: a.cfg.HTTP01.Webroot, State: s.challenges, Challenges: desired.Challenges,
		Report: func(ctx context.Context, r *agentv1.ReportChallengeRequest) error {
			_, err := client.ReportChallenge(ctx, r)
			return err
		},
		Log: a.log, Now: a.now,
	})
	if err != nil {
		return nil, err
	}
	scanner, err := a.scanner(desired)
	if err != nil {
		return nil, err
	}
	contact := session.OpenContact(ctx, s.contact, a.log, a.now)
	observer, err := observe.New(observe.Config{
		Answered: contact.Answered,
		Client:   client, Info: a.info, Scanner: scanner, Intervals: desired.Intervals, ScanInterval: a.cfg.Scan.Interval.Std(), Log: a.log, Now: a.now,
	})
	if err != nil {
		return nil, err
	}
	var keeper *enroll.Keeper
	talk, err := session.New(session.Config{
		Client: client, Info: a.info, Desired: desired, Spool: reports, Contact: contact, Silence: silence, Log: a.log, Connect: func(ctx context.Context) { rpc.TryNow(ctx, conn) },
		Unanswered: l.silent, Back: func() { worker.TryAgain(); observer.TryAgain(); keeper.TryAgain() },
		Changed: func() { worker.Wake(); responder.Wake(); observer.Wake() },
		Refused: func() { keeper.TryAgain() },
	})
	if err != nil {
		return nil, err
	}
	keeper, err = enroll.NewKeeper(enroll.KeeperConfig{
		Store: ids, Client: client, Info: a.info, Log: a.log, Now: a.now, Renewed: func() { l.reset(); talk.TryAgain() },
		Dial: func(src identity.Source, anonymous bool) (*grpc.ClientConn, error) {
			return rpc.Dial(rpc.ClientConfig{
				Address: a.cfg.Server, Service: string(identity.RoleDeployer), Source: src, Anonymous: anonymous, Dialer: a.dialer, Now: a.now,
			})
		},
	})
	if err != nil {
		return nil, err
	}
	return []func(context.Context) error{
		worker.Run, responder.Run, talk.Listen, talk.Send, keeper.Run, observer.Heartbeat, observer.Scan,
	}, nil
}

// scanner looks where the configuration says, where connectors may write, and
// what the servers' own configurations name.
func (a *Agent) scanner(desired *plan.Desired) (*scan.Scanner, error) {
	cfg := scan.Config{
		Paths: append([]string(nil), a.cfg.Scan.Paths...), Exclude: append([]string{a.cfg.StateDir}, a.cfg.Scan.Exclude...),
		Listeners: a.cfg.Scan.Listeners, ExcludePorts: a.cfg.Scan.ExcludePorts, Log: a.log,
		Names: func() []string { return assignedNames(desired) },
	}
	if c := a.cfg.Connectors.Nginx; c != nil {
		cfg.Nginx = c.Main
		cfg.Paths = append(cfg.Paths, c.Allow...)
	}
	if c := a.cfg.Connectors.HAProxy; c != nil {
		cfg.HAProxy = c.Main
		cfg.Paths = append(cfg.Paths, c.Allow...)
	}
	if c := a.cfg.Connectors.Files; c != nil {
		cfg.Paths = append(cfg.Paths, c.Allow...)
	}
	return scan.New(cfg)
}

func assignedNames(desired *plan.Desired) []string {
	var names []string
	for _, a := range desired.Assignments() {
		for _, n := range a.GetNames().GetDns() {
			if !strings.HasPrefix(n, "*.") {
				names = append(names, n)
			}
		}
	}
	return names
}

func (a *Agent) enrolByFile(ctx context.Context, ids *enroll.Store) error {
	if a.cfg.TokenFile == "" {
		return enroll.ErrNotEnrolled
	}
	text, err := disk.ReadPath(a.cfg.TokenFile, maxTokenFile)
	if err != nil {
		return fmt.Errorf("%w; token_file: %w", enroll.ErrNotEnrolled, err)
	}
	token, err := identity.ParseJoinToken(string(text))
	if err != nil {
		return fmt.Errorf("token_file %s: %w", a.cfg.TokenFile, err)
	}
	for tries := pace.New(time.Second, 5*time.Minute); ; {
		_, err = a.enrolWith(ctx, ids, token)
		if f := fault.Of(err); f == nil || f.Kind != fault.Transient && f.Kind != fault.Exhausted || ctx.Err() != nil {
			return err
		}
		pause := tries.After(err)
		a.log.WarnContext(ctx, "not enrolled yet, trying again", "pause", pause.Round(time.Millisecond), "reason", pace.Reason(err), "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
