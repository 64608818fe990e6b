package daemons

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestRollingRestart restarts all daemons, two of each but for audit, one after another while renewals go on without a pause:
// no command of the operator fails, no renewal fails, nothing is found wrong, and the audit log has it all.
func TestRollingRestart(t *testing.T) {
	p := newPlant(t)
	for _, service := range []string{"inventory", "issuer"} {
		first, second := service+"-1", service+"-2"
		p.listen[first], p.listen[second] = address(t), address(t)
		p.listen[service] = newEntry(t, p.listen[first], p.listen[second]).address
	}
	replicas := []string{"inventory-1", "inventory-2", "issuer-1", "issuer-2", "deployer", "deployer-2", "audit"}
	for _, name := range replicas {
		p.start(name)
	}
	p.operatorAt(p.entry.address)
	p.awaitAll()
	site := p.enrol()
	p.deploy(site)
	s := &shop{plant: p, site: site, generation: 1, deployer: deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.entry.address))}
	s.served()

	r := s.renewOn(func(ctx context.Context) error {
		_, err := p.cli(ctx, "renew", "deployment", "shop", "--reason", "rolling restart")
		return err
	})
	for _, name := range replicas {
		r.more(1)
		<-time.After(rand.N(300 * time.Millisecond)) // at any step of a renewal
		p.stop(name)
		r.more(1) // the others do it meanwhile
		p.start(name)
	}
	r.more(2)
	r.end()
	s.nothingWentWrong(r, auditv1.NewAuditServiceClient(p.dial("alice", "audit", p.listen["audit"])))
	p.deniedCalls()
	p.auditVerifies(s.generation)
	p.noErrors()
}

// TestServeRestart does the same to a control plane in one process: commands wait until it is back.
func TestServeRestart(t *testing.T) {
	l := newLab(t)
	plane, err := l.Serve(t.Context(), "control", lab.ServeOptions{})
	must(t, err)
	site, err := l.Nginx(t.Context(), "nginx", dns)
	must(t, err)
	token, err := plane.Token(t.Context(), host)
	must(t, err)
	_, err = l.Host(t.Context(), host, token, lab.HostOptions{Server: plane.Address, Extra: "scan: {listeners: \"off\"}\nconnectors:\n" + site.Connector()})
	must(t, err)
	_, err = plane.Apply(t.Context(), strings.Join(documents(site), "---\n"))
	must(t, err)
	conn, err := plane.Dial("deployer")
	must(t, err)
	s := &shop{plant: &plant{Lab: l, t: t}, site: &machine{Site: site}, generation: 1, deployer: deployerv1.NewDeployerServiceClient(conn)}
	s.served()

	r := s.renewOn(func(ctx context.Context) error {
		_, err := plane.Do(ctx, "renew", "deployment", "shop", "--reason", "restart")
		return err
	})
	r.alongside(func(ctx context.Context) error { // an operator at work
		_, err := plane.Do(ctx, "get", "hosts")
		return err
	})
	for range 5 {
		r.more(1)
		<-time.After(rand.N(300 * time.Millisecond)) // at any step of a renewal
		must(t, plane.Stop())
		if code := plane.ExitCode(); code != 0 {
			t.Fatalf("it ended with code %d:\n%s", code, plane.Output())
		}
		must(t, plane.Launch())
	}
	r.more(2)
	r.end()
	conn, err = plane.Dial("audit")
	must(t, err)
	s.nothingWentWrong(r, auditv1.NewAuditServiceClient(conn))
	key, err := plane.Do(t.Context(), "audit", "key")
	must(t, err)
	_, err = plane.Do(t.Context(), "audit", "verify", "--key", strings.TrimSpace(key), filepath.Join(plane.Data, "audit"))
	must(t, err)
}

// renewals go on without a pause until they are ended.
type renewals struct {
	s     *shop
	began time.Time
	ctx   context.Context
	stop  context.CancelFunc
	done  sync.WaitGroup

	mu     sync.Mutex
	served int
	failed []string
}

// renewOn asks for a renewal, waits until it is served, and begins again.
func (s *shop) renewOn(renew func(context.Context) error) *renewals {
	ctx, stop := context.WithCancel(s.t.Context())
	r := &renewals{s: s, began: time.Now(), ctx: ctx, stop: stop}
	r.done.Go(func() {
		for ctx.Err() == nil {
			err := renew(context.WithoutCancel(ctx))
			if err == nil {
				s.generation++
				err = s.inService(context.WithoutCancel(ctx))
			}
			r.note(err)
			if err != nil {
				return
			}
		}
	})
	s.t.Cleanup(r.end)
	return r
}

// alongside does something else all the time, which must not fail either.
func (r *renewals) alongside(do func(context.Context) error) {
	ctx := r.ctx
	r.done.Go(func() {
		for ctx.Err() == nil {
			if err := do(context.WithoutCancel(ctx)); err != nil {
				r.note(err)
				return
			}
		}
	})
}

func (r *renewals) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failed = append(r.failed, err.Error())
		return
	}
	r.served++
}

// inService waits until the generation that was asked for is what nginx serves.
func (s *shop) inService(ctx context.Context) error {
	return lab.Await(ctx, patience, fmt.Sprintf("generation %d to be served", s.generation), func() error {
		a, err := s.target(ctx, s.deployer, "shop")
		if err != nil {
			return err
		}
		if a.GetGeneration() != s.generation || a.GetAttempt() != 1 || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			return fmt.Errorf("generation %d, attempt %d, %s: %s %s", a.GetGeneration(), a.GetAttempt(), a.GetState(), a.GetReason(), a.GetMessage())
		}
		chain, err := lab.Served(ctx, s.site.Address, dns)
		if err == nil && lab.Fingerprint(chain[0]) != a.GetFingerprint() {
			err = fmt.Errorf("assigned is %s, served is %s", a.GetFingerprint(), lab.Fingerprint(chain[0]))
		}
		return err
	})
}

// more waits for so many renewals more.
func (r *renewals) more(n int) {
	r.s.t.Helper()
	want := -1
	must(r.s.t, lab.Await(r.s.t.Context(), 2*patience, "the next renewals", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if want < 0 {
			want = r.served + n
		}
		if len(r.failed) > 0 {
			r.s.t.Errorf("after %d renewals: %s", r.served, strings.Join(r.failed, "\n"))
			r.s.t.FailNow()
		}
		if r.served < want {
			return fmt.Errorf("%d of %d", r.served, want)
		}
		return nil
	}))
}

func (r *renewals) end() {
	r.stop()
	r.done.Wait()
}

// nothingWentWrong looks for what nobody must have recorded meanwhile, and for what must be there once for each renewal.
func (s *shop) nothingWentWrong(r *renewals, audit auditv1.AuditServiceClient) {
	s.t.Helper()
	if len(r.failed) > 0 {
		s.t.Errorf("after %d renewals: %v", r.served, r.failed)
	}
	records := func(kind string) []auditlog.Record {
		list, err := audit.ListRecords(s.t.Context(), &auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{From: timestamppb.New(r.began), Type: kind}})
		must(s.t, err)
		var all []auditlog.Record
		for _, one := range list.GetRecords() {
			rec, err := auditlog.ParseRecord(one.GetJson())
			must(s.t, err)
			all = append(all, rec)
		}
		return all
	}
	for _, kind := range []string{"deployer.assignment.planned", "deployer.assignment.requested", "issuer.request.issued", "deployer.assignment.issued", "deployer.assignment.served"} {
		must(s.t, lab.Await(s.t.Context(), patience, "records "+kind, func() error {
			if n := len(records(kind)); n != r.served {
				return fmt.Errorf("%d for %d renewals", n, r.served)
			}
			return nil
		}))
	}
	for _, kind := range []string{"deployer.assignment.failed", "deployer.report.stale", "issuer.request.refused", "issuer.request.delayed", "inventory.finding.opened"} {
		for _, rec := range records(kind) {
			s.t.Errorf("%s on %s: %s %v", rec.Type, rec.Subject, rec.Reason, rec.Facts)
		}
	}
	s.t.Logf("%d renewals in %s", r.served, time.Since(r.began).Round(time.Second))
}
