package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/issuer"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	manyCalls   = 1e6 // limits that limit nothing: callers here are operators, who are held to 100 calls a second
	connections = 8   // that the callers share
	identities  = 64
	drained     = time.Minute
)

// unlimited is the configuration of a control plane whose callers are one machine's.
const unlimited = "limits: {caller_rate: 1000000, anonymous_rate: 1000000}\nlog: {level: warn}\n"

// load is the callers of an issuer.
type load struct {
	clients []issuerv1.IssuerServiceClient
	wishes  []*issuerv1.SubmitRequestRequest
	next    atomic.Int64
}

// wishes are CSRs made before anything is measured: that is the hosts' work.
func wishes() ([]*issuerv1.SubmitRequestRequest, error) {
	var all []*issuerv1.SubmitRequestRequest
	for i := range identities {
		key, err := pki.GenerateKey(pki.ECDSAP256)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("host-%d.bench.example", i)
		csr, err := pki.NewCSR(key, pki.Names{DNS: []string{name}})
		if err != nil {
			return nil, err
		}
		all = append(all, &issuerv1.SubmitRequestRequest{
			Identity: fmt.Sprintf("bench-%d", i), Profile: "bench", Csr: csr, Names: &typev1.Names{Dns: []string{name}},
		})
	}
	return all, nil
}

// run lets so many callers ask, each again as soon as it has its answer.
func (l *load) run(ctx context.Context, callers int, length time.Duration) (issued int, took []time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for caller := range callers {
		wg.Go(func() {
			var mine []time.Duration
			var failed error
			for failed == nil && time.Now().Before(end) {
				n := l.next.Add(1)
				w := l.wishes[int(n)%len(l.wishes)]
				wish := &issuerv1.SubmitRequestRequest{
					RequestId: "bench-" + strconv.FormatInt(n, 10), Identity: w.GetIdentity(), Profile: w.GetProfile(), Csr: w.GetCsr(), Names: w.GetNames(),
				}
				begun := time.Now()
				resp, err := l.clients[caller%len(l.clients)].SubmitRequest(ctx, wish)
				if err == nil && len(resp.GetRequest().GetChain()) == 0 {
					err = errors.New("no certificate in the answer")
				}
				if failed = err; err == nil {
					mine = append(mine, time.Since(begun))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			err = errors.Join(err, failed)
		})
	}
	wg.Wait()
	return len(took), took, err
}

// rate is one measured round.
type rate struct {
	perSecond, audited float64       // answered; until the last of them is in the log
	p50, p99           time.Duration // of an answer
	server, client     time.Duration // CPU for a thousand
}

func (l *load) round(ctx context.Context, callers int, length time.Duration, pid int, settle func(issued int) error) (rate, error) {
	server, err := cpu(pid)
	if err != nil {
		return rate{}, err
	}
	client, begun := ownCPU(), time.Now()
	n, took, err := l.run(ctx, callers, length)
	if err != nil {
		return rate{}, err
	}
	answered := time.Since(begun)
	clientDone := ownCPU()
	if err := settle(n); err != nil {
		return rate{}, err
	}
	all := time.Since(begun)
	serverDone, err := cpu(pid)
	if err != nil {
		return rate{}, err
	}
	return rate{
		perSecond: float64(n) / answered.Seconds(), audited: float64(n) / all.Seconds(), p50: quantile(took, 0.5), p99: quantile(took, 0.99),
		server: (serverDone - server) * 1000 / time.Duration(n), client: (clientDone - client) * 1000 / time.Duration(n),
	}, nil
}

// issue compares certificates a second: the product, the floor, and signing alone.
func (b *bench) issue(ctx context.Context) error {
	all, err := wishes()
	if err != nil {
		return err
	}
	floorPID, floorLoad, err := b.startFloor(ctx, all)
	if err != nil {
		return err
	}
	plane, full, err := b.startIssuer(ctx, all)
	if err != nil {
		return err
	}
	checkpoint := filepath.Join(plane.Data, "audit", "log", "checkpoint")
	before, err := logSize(checkpoint)
	if err != nil {
		return err
	}
	size := before
	audited := func(n int) error {
		size += uint64(n)
		return awaitLog(ctx, checkpoint, size)
	}
	var floors, fulls []rate
	var signed []float64
	for range b.rounds {
		r, err := floorLoad.round(ctx, b.clients, b.round, floorPID, func(int) error { return nil })
		if err != nil {
			return fmt.Errorf("the floor: %w", err)
		}
		floors = append(floors, r)
		if r, err = full.round(ctx, b.clients, b.round, plane.PID(), audited); err != nil {
			return fmt.Errorf("the issuer: %w", err)
		}
		fulls = append(fulls, r)
		s, err := signLoop(all, b.round/3)
		if err != nil {
			return err
		}
		signed = append(signed, s)
	}
	fmt.Printf("\nCertificates: %d callers over %d connections, %d rounds of %s each, alternating\n", b.clients, connections, b.rounds, b.round)
	fmt.Printf("  %-34s %10s %12s %10s %10s %22s\n", "", "certs/s", "until audited", "p50", "p99", "CPU s/1000 (server+client)")
	show := func(name string, all []rate) rate {
		r := median(all)
		fmt.Printf("  %-34s %10.0f %12s %10s %10s %12.2f + %.2f\n", name, r.perSecond, whole(r.audited), ms(r.p50), ms(r.p99), r.server.Seconds(), r.client.Seconds())
		return r
	}
	f := show("floor: mTLS, CSR, sign, fdatasync", floors)
	g := show("issuer: whole path", fulls)
	fmt.Printf("  %-34s %10.0f\n", "CSR check and signature alone", middle(signed))
	var ratios []float64
	for i := range fulls {
		ratios = append(ratios, fulls[i].audited/floors[i].perSecond)
	}
	fmt.Printf("  issuer : floor = %.0f %% (until audited; rounds %.0f to %.0f %%), by CPU of server and client %.0f %%\n", 100*middle(ratios), 100*slices.Min(ratios), 100*slices.Max(ratios),
		100*(f.server+f.client).Seconds()/(g.server+g.client).Seconds())
	return b.countIssued(ctx, plane, int(size-before))
}

func whole(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }

// median is the round in the middle by its rate.
func median(all []rate) rate {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b rate) int { return int(a.audited - b.audited) })
	return all[len(all)/2]
}

func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

func (b *bench) startFloor(ctx context.Context, all []*issuerv1.SubmitRequestRequest) (pid int, l *load, err error) {
	ca, err := trust(b.Dir)
	if err != nil {
		return 0, nil, err
	}
	port, err := lab.FreePort()
	if err != nil {
		return 0, nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := b.Start(lab.Command{Name: "floor", Path: b.self, Args: []string{"as", "floor", b.Dir, address, filepath.Join(b.Dir, "floor.journal")}})
	if err != nil {
		return 0, nil, err
	}
	source, err := minted(ca, identity.OperatorID, "bench")
	if err != nil {
		return 0, nil, err
	}
	l = &load{wishes: all}
	for range connections {
		conn, err := rpc.Dial(rpc.ClientConfig{Address: address, Service: issuer.Name, Source: source})
		if err != nil {
			return 0, nil, err
		}
		b.OnClose(func() { conn.Close() })
		l.clients = append(l.clients, issuerv1.NewIssuerServiceClient(conn))
	}
	err = lab.Await(ctx, 10*time.Second, "the floor", func() error {
		_, err := l.clients[0].SubmitRequest(ctx, all[0], grpc.WaitForReady(true))
		return err
	}, p)
	return p.PID(), l, err
}

// startIssuer starts a control plane with an authority of its own and identities that its inventory knows.
func (b *bench) startIssuer(ctx context.Context, all []*issuerv1.SubmitRequestRequest) (*lab.Plane, *load, error) {
	plane, err := b.Serve(ctx, "control", lab.ServeOptions{Config: unlimited})
	if err != nil {
		return nil, nil, err
	}
	if err := authority(ctx, plane, "bench"); err != nil {
		return nil, nil, err
	}
	conn, err := plane.Dial("inventory")
	if err != nil {
		return nil, nil, err
	}
	for _, w := range all {
		if _, err := inventoryv1.NewInventoryServiceClient(conn).ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{
			Identity: &inventoryv1.Identity{Name: w.GetIdentity(), Owner: "bench", Purpose: "bench", Names: w.GetNames()},
		}); err != nil {
			return nil, nil, err
		}
	}
	l := &load{wishes: all}
	for range connections {
		conn, err := plane.Dial(issuer.Name)
		if err != nil {
			return nil, nil, err
		}
		l.clients = append(l.clients, issuerv1.NewIssuerServiceClient(conn))
	}
	return plane, l, settled(ctx, filepath.Join(plane.Data, "audit", "log", "checkpoint"))
}

// authority applies an internal authority and a profile on it, both of this name.
func authority(ctx context.Context, plane *lab.Plane, name string) error {
	conn, err := plane.Dial(issuer.Name)
	if err != nil {
		return err
	}
	client := issuerv1.NewIssuerServiceClient(conn)
	_, err = client.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: &issuerv1.Authority{
		Name: name, Kind: &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{CommonName: "Bench CA"}},
	}})
	if err != nil {
		return err
	}
	_, err = client.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: &issuerv1.Profile{
		Name: name, Authority: name, KeyTypes: []typev1.KeyType{typev1.KeyType_KEY_TYPE_ECDSA_P256}, Usages: []typev1.ExtendedKeyUsage{typev1.ExtendedKeyUsage_EXTENDED_KEY_USAGE_SERVER_AUTH},
		Lifetime: durationpb.New(90 * 24 * time.Hour), AllowedDomains: []string{"bench.example"},
	}})
	return err
}

// logSize is how far the published checkpoint of a log goes, 0 before the first.
func logSize(checkpoint string) (uint64, error) {
	text, err := os.ReadFile(checkpoint)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	lines := bytes.SplitN(text, []byte("\n"), 3)
	if len(lines) < 3 {
		return 0, fmt.Errorf("%s is no checkpoint", checkpoint)
	}
	return strconv.ParseUint(string(lines[1]), 10, 64)
}

// awaitLog waits for a published checkpoint over so many records.
func awaitLog(ctx context.Context, checkpoint string, size uint64) error {
	ctx, cancel := context.WithTimeout(ctx, drained)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond) // looking costs processor time that is counted
	defer tick.Stop()
	for {
		now, err := logSize(checkpoint)
		if err != nil || now >= size {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the audit log has %d of %d records: %w", now, size, ctx.Err())
		case <-tick.C:
		}
	}
}

// settled waits until a log has not grown for a while.
func settled(ctx context.Context, checkpoint string) error {
	var last uint64
	for same := 0; same < 3; {
		now, err := logSize(checkpoint)
		if err != nil {
			return err
		}
		if same++; now != last || now == 0 {
			same, last = 0, now
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// countIssued makes sure that each certificate has its record.
func (b *bench) countIssued(ctx context.Context, plane *lab.Plane, want int) error {
	ctx, cancel := context.WithTimeout(ctx, drained)
	defer cancel()
	conn, err := plane.Dial("audit")
	if err != nil {
		return err
	}
	stream, err := auditv1.NewAuditServiceClient(conn).TailRecords(ctx, &auditv1.TailRecordsRequest{Filter: &auditv1.RecordFilter{Type: "issuer.request.issued"}})
	if err != nil {
		return err
	}
	for n := 0; n < want; {
		m, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("%d certificates issued, %d in the audit log: %w", want, n, err)
		}
		n += len(m.GetRecords())
	}
	return nil
}

// signLoop is CSR check and signature on all cores, and nothing else.
func signLoop(all []*issuerv1.SubmitRequestRequest, length time.Duration) (float64, error) {
	s, err := newSigner()
	if err != nil {
		return 0, err
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	begun := time.Now()
	failed := make(chan error, runtime.NumCPU())
	for range runtime.NumCPU() {
		wg.Go(func() {
			for time.Since(begun) < length {
				if _, err := s.issue(all[int(n.Add(1))%len(all)].GetCsr()); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	return float64(n.Load()) / time.Since(begun).Seconds(), <-failed
}
