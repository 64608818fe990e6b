package daemons

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// flow is work that goes on whatever happens to the brokers: identities are applied all the time, each an event, and
// deployments renewed.
type flow struct {
	*plant
	inventory inventoryv1.InventoryServiceClient
	issuer    issuerv1.IssuerServiceClient
	deployer  deployerv1.DeployerServiceClient
	log       auditv1.AuditServiceClient
	stop      context.CancelFunc
	done      sync.WaitGroup

	mu         sync.Mutex
	identities []string
	renewals   map[string]int64 // deployment: generation
	failed     []error
}

// deployments are on one host, without a server.
const deployments = 10

// flows begins once the host serves what it is to serve.
func (p *plant) flows(m *machine) *flow {
	p.t.Helper()
	f := &flow{plant: p, renewals: map[string]int64{},
		inventory: inventoryv1.NewInventoryServiceClient(p.dial("alice", "inventory", p.listen["inventory"])),
		issuer:    issuerv1.NewIssuerServiceClient(p.dial("alice", "issuer", p.listen["issuer"])),
		deployer:  deployerv1.NewDeployerServiceClient(p.dial("alice", "deployer", p.listen["deployer"])),
		log:       auditv1.NewAuditServiceClient(p.dial("alice", "audit", p.listen["audit"])),
	}
	p.deploy(m)
	(&shop{plant: p, site: m, generation: 1, deployer: f.deployer}).served()
	var documents []string
	for n := range deployments {
		name := fmt.Sprintf("file-%d", n)
		path := filepath.Join(p.Dir, "services", name)
		documents = append(documents,
			fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: web-team@example.com\npurpose: flow\nnames: {dns: [%[1]s.example.com]}\n", name),
			fmt.Sprintf("kind: Deployment\nname: %[1]s\nidentity: %[1]s\nprofile: web\ntargets:\n  - host: %[2]s\n    connector: files\n    settings: {certificate: %[3]s.pem, key: %[3]s.key}\n", name, host, path))
		f.renewals[name] = 1
	}
	f.renewals["shop"] = 1
	p.apply(documents...)
	ctx, cancel := context.WithCancel(p.t.Context())
	f.stop = cancel
	p.t.Cleanup(func() { cancel(); f.done.Wait() })
	f.done.Go(func() { f.applies(ctx) })
	f.done.Go(func() { f.renews(ctx) })
	return f
}

func (f *flow) applies(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("i-%d", n)
		asking, cancel := context.WithTimeout(ctx, patience) // a machine that is slow refuses nobody
		_, err := f.inventory.ApplyIdentity(asking, &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
			Name: name, Owner: "team@example.com", Purpose: "flow", Names: &typev1.Names{Dns: []string{name + ".example.com"}},
		}})
		cancel()
		f.note(ctx, err, func() { f.identities = append(f.identities, name) })
		wait(ctx, 20*time.Millisecond)
	}
}

func (f *flow) renews(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("file-%d", n%(deployments+1))
		if n%(deployments+1) == deployments {
			name = "shop"
		}
		asking, cancel := context.WithTimeout(ctx, patience)
		got, err := f.deployer.RenewDeployment(asking, &deployerv1.RenewDeploymentRequest{Name: name, Reason: "flow"})
		cancel()
		f.note(ctx, err, func() {
			for _, a := range got.GetAssignments() {
				f.renewals[name] = max(f.renewals[name], a.GetGeneration())
			}
		})
		wait(ctx, 100*time.Millisecond)
	}
}

// note takes down what was accepted. Nothing that an operator does needs a broker, so nothing may fail.
func (f *flow) note(ctx context.Context, err error, accepted func()) {
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		accepted()
	} else {
		f.failed = append(f.failed, err)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// passes waits until an identity that is applied now has its record, and gives the time that took.
func (f *flow) passes(what string) time.Duration {
	f.t.Helper()
	begun := time.Now()
	name := fmt.Sprintf("probe-%d", begun.UnixNano())
	_, err := f.inventory.ApplyIdentity(f.t.Context(), &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
		Name: name, Owner: "team@example.com", Purpose: what, Names: &typev1.Names{Dns: []string{name + ".example.com"}},
	}})
	must(f.t, err)
	f.mu.Lock()
	f.identities = append(f.identities, name)
	f.mu.Unlock()
	must(f.t, lab.Await(f.t.Context(), patience, what+": a record of what is applied now", func() error {
		page, err := f.log.ListRecords(f.t.Context(), &auditv1.ListRecordsRequest{PageSize: 1, Filter: &auditv1.RecordFilter{Subject: "identities/" + name}})
		if err == nil && len(page.GetRecords()) == 0 {
			err = errors.New("there is none")
		}
		return err
	}))
	return time.Since(begun)
}

// ends stops the flow and wants all of it to come to its end: every identity recorded once, every deployment in the generation
// that was begun last, every wish with one certificate.
func (f *flow) ends() {
	f.t.Helper()
	f.stop()
	f.done.Wait()
	for _, err := range f.failed {
		f.t.Errorf("an operator was refused: %v", err)
	}
	ctx := f.t.Context()
	must(f.t, lab.Await(ctx, patience, "all renewals to end", func() error {
		for name, generation := range f.renewals {
			a, err := f.target(ctx, f.deployer, name)
			if err != nil {
				return err
			}
			if a.GetGeneration() < generation || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED && a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED {
				return fmt.Errorf("%s: %v", name, a)
			}
		}
		return nil
	}))
	must(f.t, lab.Await(ctx, patience, "one record of each identity", func() error {
		times, err := f.recorded(ctx, "inventory.identity.applied")
		for _, name := range f.identities {
			if n := times["identities/"+name]; err == nil && n != 1 {
				err = fmt.Errorf("%d records of %s", n, name)
			}
		}
		return err
	}))
	checkpoint := filepath.Join(f.Dir, "doctor")
	// Relays look once a minute whether the stream is another, which may have lost what a consumer had not heard yet.
	must(f.t, lab.Await(ctx, 2*patience, "the doctor", func() error {
		out, err := f.cli(ctx, "doctor", "--grace", "45s", "--keep", checkpoint)
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		return err
	}))
	f.onceEach(ctx)
	key := strings.TrimSpace(f.do("audit", "key"))
	f.do("audit", "verify", "--key", key, filepath.Join(f.state, "audit"))
	f.t.Logf("%d identities, renewals %v", len(f.identities), f.renewals)
}

// recorded counts the records of a type by subject.
func (f *flow) recorded(ctx context.Context, kind string) (map[string]int, error) {
	times := map[string]int{}
	q := &auditv1.ListRecordsRequest{PageSize: 1000, Filter: &auditv1.RecordFilter{Type: kind}}
	for {
		page, err := f.log.ListRecords(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, raw := range page.GetRecords() {
			r, err := auditlog.ParseRecord(raw.GetJson())
			if err != nil {
				return nil, err
			}
			times[r.Subject]++
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			return times, nil
		}
	}
}

// onceEach wants one certificate at most for each wish, and one record of each.
func (f *flow) onceEach(ctx context.Context) {
	f.t.Helper()
	records, err := f.recorded(ctx, "issuer.request.issued")
	must(f.t, err)
	wishes := map[string]int{}
	q := &issuerv1.ListRequestsRequest{PageSize: 1000, States: []issuerv1.RequestState{issuerv1.RequestState_REQUEST_STATE_ISSUED}}
	for {
		page, err := f.issuer.ListRequests(ctx, q)
		must(f.t, err)
		for _, r := range page.GetRequests() {
			wishes[attempt.ReplaceAllString(r.GetId(), "")]++
			if n := records["requests/"+r.GetId()]; n != 1 {
				f.t.Errorf("%d records that request %s was issued", n, r.GetId())
			}
		}
		if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
			break
		}
	}
	for wish, n := range wishes {
		if n > 1 {
			f.t.Errorf("the wish %s has %d certificates", wish, n)
		}
	}
}

// attempt is the end of a request's id.
var attempt = regexp.MustCompile(`-[0-9]+$`)

func TestMain(m *testing.M) {
	os.Exit(lab.BrokerMain(m.Run))
}
