// Package doctor holds a whole Sallyport against itself, as an operator: what each service's store says of itself, and what the
// services say of one another.
//
// It guarantees that it changes nothing, that it needs no more than an operator may call, and that what it calls a problem was
// one at every look during the grace: a system at work is never quite of one mind, so what is on its way is given the time to
// arrive. What it could not look at it says, and never calls sound.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
)

// Services are those that are asked, as an operator.
type Services struct {
	Issuer    issuerv1.IssuerServiceClient
	Deployer  deployerv1.DeployerServiceClient
	Inventory inventoryv1.InventoryServiceClient
	Audit     auditv1.AuditServiceClient
}

// Config says what to check, and how thoroughly.
type Config struct {
	Services Services
	// Grace is how long what looks wrong may still be on its way.
	Grace time.Duration
	// Full also lets the databases check their files and verifies every record of the audit log.
	Full bool
	// Kept is what an earlier run returned in Report.Keep; nil the first time.
	Kept []byte
	// Tell shows what is being done; it may be nil.
	Tell func(string)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// State is what a check came to.
type State string

// The states.
const (
	OK        State = "ok"
	Wrong     State = "problem"
	CannotSee State = "cannot see"
)

// Problem is something that was wrong at every look.
type Problem struct {
	// Rule is explained in docs/doctor.md.
	Rule string `json:"rule"`
	// Service whose store or belief it is.
	Service string `json:"service"`
	// Subject is a resource name.
	Subject string `json:"subject"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// Check is one line of the answer.
type Check struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Summary says what was looked at, or why it could not be.
	Summary  string    `json:"summary"`
	Problems []Problem `json:"problems"`
}

// Report is the answer.
type Report struct {
	State  State   `json:"state"`
	Looks  int     `json:"looks"`
	Full   bool    `json:"full"`
	Checks []Check `json:"checks"`
	// Keep is to be given to the next run, so that it can tell whether the log continues this one; nil if nothing was verified.
	Keep []byte `json:"-"`
}

const (
	pause    = 300 * time.Millisecond // between looks
	pageSize = 1000
	held     = 30 * 24 * time.Hour // for which every store still has its events, at least
	perFind  = 500                 // events in one question to the audit service
)

// Run looks until nothing looks wrong or the grace is over.
func Run(ctx context.Context, c Config) (Report, error) {
	if c.Tell == nil {
		c.Tell = func(string) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	begun := time.Now()
	var report Report
	for look := 1; ; look++ {
		now, err := examine(ctx, c)
		if err != nil {
			return report, err
		}
		if look > 1 {
			now.keepSuspects(report)
		}
		report = now
		report.Looks = look
		report.State = worst(report.Checks)
		if report.State == OK || time.Since(begun) >= c.Grace {
			return report, nil
		}
		c.Tell(fmt.Sprintf("%d things do not fit together yet; looking again", report.suspects()))
		select {
		case <-ctx.Done():
			return report, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (r *Report) suspects() int {
	n := 0
	for _, c := range r.Checks {
		n += len(c.Problems)
		if c.State == CannotSee {
			n++
		}
	}
	return n
}

// keepSuspects drops the problems that were none at an earlier look.
func (r *Report) keepSuspects(before Report) {
	known := map[[3]string]bool{}
	for _, c := range before.Checks {
		for _, p := range c.Problems {
			known[[3]string{p.Service, p.Rule, p.Subject}] = true
		}
	}
	for i := range r.Checks {
		c := &r.Checks[i]
		if before.Checks[i].State == CannotSee || c.State != Wrong {
			continue // then nothing is known of before, and all of it counts
		}
		c.Problems = slices.DeleteFunc(c.Problems, func(p Problem) bool { return !known[[3]string{p.Service, p.Rule, p.Subject}] })
		if len(c.Problems) == 0 {
			c.State = OK
		}
	}
}

func worst(checks []Check) State {
	state := OK
	for _, c := range checks {
		if c.State == Wrong {
			return Wrong
		}
		if c.State == CannotSee {
			state = CannotSee
		}
	}
	return state
}

// view is what one look saw.
type view struct {
	services []string // in the order they are shown
	stores   map[string]*storeView
	head     *auditv1.GetCheckpointResponse
	headErr  error

	assignments  []*deployerv1.AssignmentStatus
	requests     []*issuerv1.Request
	certificates []*inventoryv1.KnownCertificate
	listErr      map[string]error // by service
}

// storeView is what one service says of its own store.
type storeView struct {
	err        error
	rules      int
	violations []*typev1.Violation
	consumers  []*typev1.EventConsumer
	events     int
	ids        map[string]bool // of the events, when all is verified
	missing    []*typev1.HeldEvent
	findErr    error
}

// examine is one look. Errors of services become part of what was seen; its own error is only that ctx has ended.
func examine(ctx context.Context, c Config) (Report, error) {
	v := &view{services: []string{"issuer", "deployer", "inventory", "audit"}, stores: map[string]*storeView{}, listErr: map[string]error{}}
	// The log first: whatever has a record by now, the stores hold when they are read.
	c.Tell("reading the audit log's checkpoint")
	v.head, v.headErr = c.Services.Audit.GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
	c.Tell("checking the stores and their events")
	g, gctx := errgroup.WithContext(ctx)
	for _, name := range v.services {
		s := &storeView{}
		if c.Full {
			s.ids = map[string]bool{}
		}
		v.stores[name] = s
		g.Go(func() error { s.read(gctx, c, name); return nil })
	}
	if err := g.Wait(); err != nil {
		return Report{}, err
	}
	c.Tell("comparing what the services believe")
	v.list(ctx, c.Services)
	report := Report{Full: c.Full}
	for _, name := range v.services {
		report.Checks = append(report.Checks, v.storeCheck(name))
	}
	report.Checks = append(report.Checks, v.eventsCheck(ctx, c), v.consumersCheck(), v.requestsCheck(), v.certificatesCheck(), v.servedCheck())
	log, keep := v.logCheck(ctx, c)
	report.Checks, report.Keep = append(report.Checks, log), keep
	for i := range report.Checks {
		for j := range report.Checks[i].Problems {
			p := &report.Checks[i].Problems[j]
			p.Remedy = Remedy(p.Rule)
		}
	}
	return report, ctx.Err()
}

// open begins the stream of one service.
func open(ctx context.Context, s Services, name string, full bool) (func() (*typev1.StoreReport, error), error) {
	switch name {
	case "issuer":
		stream, err := s.Issuer.CheckStore(ctx, &issuerv1.CheckStoreRequest{Full: full})
		return next(stream), err
	case "deployer":
		stream, err := s.Deployer.CheckStore(ctx, &deployerv1.CheckStoreRequest{Full: full})
		return next(stream), err
	case "inventory":
		stream, err := s.Inventory.CheckStore(ctx, &inventoryv1.CheckStoreRequest{Full: full})
		return next(stream), err
	default:
		stream, err := s.Audit.CheckStore(ctx, &auditv1.CheckStoreRequest{Full: full})
		return next(stream), err
	}
}

func next[M any, P interface {
	*M
	GetReport() *typev1.StoreReport
}](stream grpc.ServerStreamingClient[M]) func() (*typev1.StoreReport, error) {
	return func() (*typev1.StoreReport, error) {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		return P(m).GetReport(), nil
	}
}

// read takes all that one service says of its store, and asks the audit service for the events' records on the way.
func (s *storeView) read(ctx context.Context, c Config, name string) {
	receive, err := open(ctx, c.Services, name, c.Full)
	for err == nil {
		var part *typev1.StoreReport
		if part, err = receive(); err != nil {
			break
		}
		s.rules += len(part.GetRules())
		s.violations = append(s.violations, part.GetViolations()...)
		s.consumers = append(s.consumers, part.GetConsumers()...)
		s.events += len(part.GetEvents())
		if s.ids != nil {
			for _, e := range part.GetEvents() {
				s.ids[e.GetId()] = true
			}
		}
		for events := range slices.Chunk(part.GetEvents(), perFind) {
			if s.findErr == nil {
				s.findErr = s.find(ctx, c.Services.Audit, events)
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		s.err = err
	}
}

func (s *storeView) find(ctx context.Context, audit auditv1.AuditServiceClient, events []*typev1.HeldEvent) error {
	req := &auditv1.FindEventsRequest{}
	for _, e := range events {
		req.EventIds = append(req.EventIds, e.GetId())
	}
	r, err := audit.FindEvents(ctx, req)
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, e := range r.GetEvents() {
		found[e.GetId()] = true
	}
	for _, e := range events {
		if !found[e.GetId()] {
			s.missing = append(s.missing, e)
		}
	}
	return nil
}

// list reads what the services believe of wishes, requests and certificates.
func (v *view) list(ctx context.Context, s Services) {
	var g errgroup.Group
	var deployer, issuer, inventory error
	g.Go(func() error {
		v.assignments, deployer = pages(func(token string) ([]*deployerv1.AssignmentStatus, string, error) {
			r, err := s.Deployer.ListAssignments(ctx, &deployerv1.ListAssignmentsRequest{PageSize: pageSize, PageToken: token, States: everyState()})
			return r.GetAssignments(), r.GetNextPageToken(), err
		})
		return nil
	})
	g.Go(func() error {
		v.requests, issuer = pages(func(token string) ([]*issuerv1.Request, string, error) {
			r, err := s.Issuer.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: pageSize, PageToken: token})
			return r.GetRequests(), r.GetNextPageToken(), err
		})
		return nil
	})
	g.Go(func() error {
		v.certificates, inventory = pages(func(token string) ([]*inventoryv1.KnownCertificate, string, error) {
			r, err := s.Inventory.ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{PageSize: pageSize, PageToken: token, IncludePast: true})
			return r.GetCertificates(), r.GetNextPageToken(), err
		})
		return nil
	})
	_ = g.Wait() // each keeps its own error
	v.listErr = map[string]error{"deployer": deployer, "issuer": issuer, "inventory": inventory}
}

// everyState asks for withdrawn assignments too.
func everyState() []deployerv1.AssignmentState {
	var all []deployerv1.AssignmentState
	for n := range deployerv1.AssignmentState_name {
		if n != 0 {
			all = append(all, deployerv1.AssignmentState(n))
		}
	}
	return all
}

func pages[T any](read func(token string) ([]T, string, error)) ([]T, error) {
	var all []T
	for token := ""; ; {
		page, more, err := read(token)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		if more == "" {
			return all, nil
		}
		token = more
	}
}

// unseen is a check that could not be made.
func unseen(name string, errs ...error) Check {
	var why []string
	for _, err := range errs {
		if err != nil && !slices.Contains(why, err.Error()) {
			why = append(why, err.Error())
		}
	}
	return Check{Name: name, State: CannotSee, Summary: strings.Join(why, "; ")}
}

// judged is a check that was made.
func judged(name, summary string, problems []Problem) Check {
	c := Check{Name: name, State: OK, Summary: summary, Problems: problems}
	if len(problems) > 0 {
		c.State = Wrong
	}
	return c
}
