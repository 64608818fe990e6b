package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sync/errgroup"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	fleetSettle = 10 * time.Second // after which memory is read: what the storm left has been collected, by both sides' own pace
	fleetIdle   = 10 * time.Second // over which processor time is read
	fleetBound  = 3 * time.Minute
	fleetStay   = 45 * time.Second // how long those that are lost again are waited for
)

// fleetSide is what one of the two servers cost.
type fleetSide struct {
	first, back, ready time.Duration // all connected at first; again after a restart, from its beginning and from the first answer
	base, full, peak   int64         // memory in bytes: without agents, with all of them, at most since the restart
	there              int           // agents connected when memory was read
	memory             float64       // full less base, for each of them
	cpu                float64       // share of one core
}

// fleet compares what an idle agent costs a control plane with what a stream costs grpc-go. The agents are one process, each
// with a key, an identity and a connection of its own, the protocol and the pauses of the real agent: stream, heartbeats.
func (b *bench) fleet(ctx context.Context) error {
	if err := lab.Files(b.agents, 1); err != nil {
		return err
	}
	bare, err := b.bareFleet(ctx)
	if err != nil {
		return fmt.Errorf("bare grpc-go: %w", err)
	}
	full, err := b.realFleet(ctx)
	if err != nil {
		return fmt.Errorf("the control plane: %w", err)
	}
	fmt.Printf("\nIdle fleet: %d agents, each with a connection and a stream\n", b.agents)
	fmt.Printf("  %-34s %14s %12s %12s %12s %12s %18s %26s\n", "", "memory/agent", "connected", "without any", "with all", "at its peak", "CPU, of one core", "all back after a restart")
	for _, s := range []struct {
		name string
		fleetSide
	}{{"bare tuned grpc-go, mTLS", bare}, {"sallyport serve, heartbeats too", full}} {
		fmt.Printf("  %-34s %10.1f KiB %12d %8d MiB %8d MiB %8d MiB %16.1f %% %10.1f s (%.1f s after ready)\n",
			s.name, s.memory/1024, s.there, s.base>>20, s.full>>20, s.peak>>20, 100*s.cpu, s.back.Seconds(), s.ready.Seconds())
	}
	fmt.Printf("  memory per agent: %.2f times bare · CPU of one agent: %.2f ms a minute\n", full.memory/bare.memory, full.cpu*60e3/float64(b.agents))
	return nil
}

// measured is one of the two, as the measurement sees it.
type measured struct {
	pid     func() int
	restart func(context.Context) error
}

func (b *bench) bareFleet(ctx context.Context) (fleetSide, error) {
	if _, err := trust(b.Dir); err != nil {
		return fleetSide{}, err
	}
	port, err := lab.FreePort()
	if err != nil {
		return fleetSide{}, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	var p *lab.Process
	start := func(ctx context.Context) error {
		if p != nil {
			if err := p.Stop(); err != nil {
				return err
			}
		}
		if p, err = b.Start(lab.Command{Name: "bare", Path: b.self, Args: []string{"as", "bare", b.Dir, address}}); err != nil {
			return err
		}
		return lab.Await(ctx, 10*time.Second, "bare grpc-go", func() error { return dialable(ctx, address) }, p)
	}
	if err := start(ctx); err != nil {
		return fleetSide{}, err
	}
	return b.fleetOf(ctx, measured{pid: func() int { return p.PID() }, restart: start}, "bare", address, b.Dir)
}

func (b *bench) realFleet(ctx context.Context) (fleetSide, error) {
	plane, err := b.Serve(ctx, "control", lab.ServeOptions{Config: unlimited})
	if err != nil {
		return fleetSide{}, err
	}
	restart := func(ctx context.Context) error { return errors.Join(plane.Stop(), plane.Start(ctx)) }
	return b.fleetOf(ctx, measured{pid: func() int { return plane.PID() }, restart: restart}, "agents", plane.Address, plane.Operator())
}

func (b *bench) fleetOf(ctx context.Context, s measured, kind, address, dir string) (side fleetSide, err error) {
	if err := pause(ctx, fleetSettle); err != nil {
		return side, err
	}
	empty, err := lab.MemoryOf(s.pid())
	if err != nil {
		return side, err
	}
	begun := time.Now()
	agents, err := b.Start(lab.Command{Name: kind, Path: b.self, Args: []string{"as", "fleet", kind, address, dir, strconv.Itoa(b.agents)}})
	if err != nil {
		return side, err
	}
	defer agents.Kill()
	all, err := awaitAll(ctx, agents, 1)
	if err != nil {
		return side, err
	}
	side.first = all.Sub(begun)
	begun = time.Now()
	if err := s.restart(ctx); err != nil {
		return side, err
	}
	ready := time.Now()
	if all, err = awaitAll(ctx, agents, 2); err != nil {
		return side, err
	}
	side.back, side.ready = all.Sub(begun), max(0, all.Sub(ready))
	if err := b.stay(ctx, address); err != nil {
		return side, err
	}
	before, err := cpu(s.pid())
	if err != nil {
		return side, err
	}
	if err := pause(ctx, fleetIdle); err != nil {
		return side, err
	}
	after, err := cpu(s.pid())
	if err != nil {
		return side, err
	}
	side.cpu = (after - before).Seconds() / fleetIdle.Seconds()
	full, err := lab.MemoryOf(s.pid())
	if err != nil {
		return side, err
	}
	there, err := connected(address)
	if err != nil {
		return side, err
	}
	if there == 0 {
		return side, errors.New("no agent is connected any more")
	}
	side.there = min(there, b.agents)
	side.base, side.full, side.peak = empty.Resident, full.Resident, full.Peak
	side.memory = float64(side.full-side.base) / float64(side.there)
	return side, nil
}

// stay waits until all have been connected to address for as long as a server takes to settle, for a while: on a machine that is
// too slow for so many, some are lost again after all have come.
func (b *bench) stay(ctx context.Context, address string) error {
	bound := time.Now().Add(fleetStay)
	for since := time.Now(); time.Since(since) < fleetSettle && time.Now().Before(bound); {
		n, err := connected(address)
		if err != nil {
			return err
		}
		if n < b.agents {
			since = time.Now()
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// connected counts those that are open to an address of this machine.
func connected(address string) (int, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, err
	}
	const established = "01"
	local, n := fmt.Sprintf(":%04X", number), 0
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], local) && f[3] == established {
				n++
			}
		}
	}
	return n, nil
}

// awaitAll waits until the agents say for the nth time that all of them have their stream, and gives when that was.
func awaitAll(ctx context.Context, agents *lab.Process, nth int) (at time.Time, err error) {
	err = lab.Await(ctx, fleetBound, fmt.Sprintf("all agents to be connected, time %d", nth), func() error {
		var said []string
		for line := range strings.Lines(agents.Output()) {
			if text, ok := strings.CutPrefix(line, allConnected); ok {
				said = append(said, strings.TrimSpace(text))
			}
		}
		if len(said) < nth {
			return errors.New("some are missing")
		}
		nanos, err := strconv.ParseInt(said[nth-1], 10, 64)
		at = time.Unix(0, nanos)
		return err
	}, agents)
	return at, err
}

const (
	allConnected = "all connected at "
	atOnce       = 64 // agents that enrol at the same time
	firstPause   = time.Second
	longestPause = 5 * time.Minute
)

// population is the agents of one process.
type population struct {
	address string
	count   int
	open    atomic.Int64
	info    *agentv1.AgentInfo
}

// fleetRole makes identities and keeps that many streams open until it is told to stop.
func fleetRole(ctx context.Context, args []string) error {
	count, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	p := &population{address: args[1], count: count, info: &agentv1.AgentInfo{Version: "bench", Platform: "linux/amd64", Connectors: []string{"nginx"}, Capability: 1}}
	introduce := introduceBare
	if args[0] != "bare" {
		introduce = p.enrolment
	}
	identities, err := introduce(ctx, args[2])
	if err != nil {
		return err
	}
	var g, agents errgroup.Group
	g.SetLimit(atOnce)
	for i := range count {
		g.Go(func() error {
			source, err := identities(ctx, fmt.Sprintf("fleet-%05d", i))
			if err != nil {
				return err
			}
			agents.Go(func() error { return p.agent(ctx, source, args[0] != "bare") })
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return agents.Wait()
}

// agent keeps one stream open, as the real one does (agent/internal/session, observe and pace).
func (p *population) agent(ctx context.Context, source identity.Source, heartbeats bool) error {
	conn, err := rpc.Dial(rpc.ClientConfig{Address: p.address, Service: string(identity.RoleDeployer), Source: source})
	if err != nil {
		return err
	}
	defer conn.Close()
	client := agentv1.NewAgentServiceClient(conn)
	var last *agentv1.SubscribeResponse
	var beats sync.WaitGroup
	defer beats.Wait()
	for tries := 0; ctx.Err() == nil; tries++ {
		conn.ResetConnectBackoff()
		stream, err := client.Subscribe(ctx, &agentv1.SubscribeRequest{Session: last.GetSession(), Revision: last.GetRevision(), Info: p.info})
		for opened := false; err == nil; {
			var m *agentv1.SubscribeResponse
			if m, err = stream.Recv(); err != nil {
				if opened {
					p.open.Add(-1)
				}
				break
			}
			if !opened {
				opened, tries = true, 0
				if p.open.Add(1) == int64(p.count) {
					fmt.Printf("%s%d\n", allConnected, time.Now().UnixNano())
				}
			}
			if last == nil && heartbeats {
				interval := m.GetHeartbeatInterval().AsDuration()
				beats.Go(func() { p.heartbeats(ctx, client, interval) })
			}
			last = m
		}
		if pause(ctx, patience(tries, err)) != nil {
			return nil
		}
	}
	return nil
}

// patience is how long the real agent waits before it tries again.
func patience(tries int, err error) time.Duration {
	bound := min(longestPause, firstPause<<min(tries, 20))
	wait := mathrand.N(bound) + bound/16
	if f := fault.Of(err); f != nil && f.RetryAfter > 0 {
		wait = max(wait, f.RetryAfter) + mathrand.N(f.RetryAfter/4+1)
	}
	return wait
}

func (p *population) heartbeats(ctx context.Context, client agentv1.AgentServiceClient, interval time.Duration) {
	for pause(ctx, interval*9/10+mathrand.N(interval/5+1)) == nil {
		_, _ = client.ReportObservation(ctx, &agentv1.ReportObservationRequest{Info: p.info}) // one that fails is followed by the next
	}
}

// introduction gives a host its identity.
type introduction func(ctx context.Context, host string) (identity.Source, error)

func introduceBare(_ context.Context, dir string) (introduction, error) {
	ca, err := trusted(dir)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, host string) (identity.Source, error) {
		return minted(ca, identity.AgentID, host)
	}, nil
}

// enrolment has the operator, whose credential is in dir, make a token for each host, which enrols with it.
func (p *population) enrolment(_ context.Context, dir string) (introduction, error) {
	operator, err := identity.NewFiles(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	conn, err := rpc.Dial(rpc.ClientConfig{Address: p.address, Service: string(identity.RoleDeployer), Source: operator})
	if err != nil {
		return nil, err
	}
	tokens := deployerv1.NewDeployerServiceClient(conn)
	return func(ctx context.Context, host string) (identity.Source, error) {
		made, err := tokens.CreateJoinToken(ctx, &deployerv1.CreateJoinTokenRequest{Host: host})
		if err != nil {
			return nil, err
		}
		token, err := identity.ParseJoinToken(made.GetToken())
		if err != nil {
			return nil, err
		}
		return p.enrol(ctx, host, token)
	}, nil
}

func (p *population) enrol(ctx context.Context, host string, token identity.JoinToken) (identity.Source, error) {
	conn, err := rpc.DialFirstContact(p.address, token, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	resp, err := agentv1.NewAgentServiceClient(conn).Enroll(ctx, &agentv1.EnrollRequest{TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Host: host, Info: p.info})
	if err != nil {
		return nil, fmt.Errorf("enrolling %s: %w", host, err)
	}
	own := &ownIdentity{svid: &x509svid.SVID{PrivateKey: key}, bundle: x509bundle.New(token.TrustDomain)}
	for _, der := range resp.GetGrant().GetChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		own.svid.Certificates = append(own.svid.Certificates, cert)
	}
	if own.svid.ID, err = x509svid.IDFromCert(own.svid.Certificates[0]); err != nil {
		return nil, err
	}
	for _, der := range resp.GetGrant().GetBundle() {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		own.bundle.AddX509Authority(root)
	}
	return own, nil
}

// ownIdentity is what an agent was granted.
type ownIdentity struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

func (o *ownIdentity) GetX509SVID() (*x509svid.SVID, error) { return o.svid, nil }

func (o *ownIdentity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return o.bundle.GetX509BundleForTrustDomain(td)
}

func (o *ownIdentity) Close() error { return nil }
