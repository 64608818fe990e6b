package inventory_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/inventory"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// clock can be moved while the service runs.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// lab is a running inventory: real server, real broker, real database.
type lab struct {
	t      *testing.T
	domain *servicetest.Domain
	broker *nats.Conn
	js     jetstream.JetStream
	clock  *clock
	config db.Config

	server   *servicetest.Server
	operator inventoryv1.InventoryServiceClient
	stop     func()
}

func newLab(t *testing.T, c db.Config) *lab {
	t.Helper()
	l := &lab{t: t, domain: servicetest.TrustDomain(t), broker: servicetest.NATS(t), config: c, clock: &clock{now: time.Now()}}
	js, err := jetstream.New(l.broker)
	if err != nil {
		t.Fatal(err)
	}
	l.js = js
	if err := event.EnsureStreams(t.Context(), js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	l.start()
	return l
}

func (l *lab) start() {
	l.t.Helper()
	s, err := inventory.New(l.t.Context(), inventory.Config{Database: l.config}, inventory.Deps{
		Source: l.domain.Service("inventory"), NATS: l.broker, Log: servicetest.Log(l.t), Now: l.clock.Now,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("running: %v", err)
		}
		if err := s.Close(); err != nil {
			l.t.Errorf("closing: %v", err)
		}
	})
	// The server of the last start still uses its closed database, but nobody asks it any more.
	l.server = l.domain.Serve("inventory", rpc.ServerConfig{Methods: inventory.Methods(), OnDenied: s.OnDenied}, s.Register)
	l.t.Cleanup(l.stop)
	l.operator = inventoryv1.NewInventoryServiceClient(l.server.As(l.domain.Operator("ann")))
}

// tell publishes events as a service does.
func (l *lab) tell(subject string, events ...*eventv1.Event) {
	l.t.Helper()
	for _, e := range events {
		if e.GetId() == "" {
			e.Id = uuid.Must(uuid.NewV7()).String()
		}
		if e.GetTime() == nil {
			e.Time = timestamppb.New(l.clock.Now())
		}
	}
	data, err := proto.Marshal(&eventv1.EventBatch{Events: events})
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.js.Publish(l.t.Context(), subject, data); err != nil {
		l.t.Fatal(err)
	}
}

// eventually waits until ok says so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *lab) findings() []string {
	l.t.Helper()
	r, err := l.operator.ListFindings(l.t.Context(), &inventoryv1.ListFindingsRequest{})
	if err != nil {
		l.t.Fatal(err)
	}
	var out []string
	for _, f := range r.GetFindings() {
		kind, _, _ := strings.Cut(f.GetSubject(), "/")
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s", f.GetRule(), kind, f.GetOwner())))
	}
	slices.Sort(out)
	return out
}

func (l *lab) await(want ...string) {
	l.t.Helper()
	var last []string
	defer func() {
		if l.t.Failed() {
			l.t.Logf("last findings: %q", last)
		}
	}()
	eventually(l.t, fmt.Sprintf("findings %q", want), func() bool {
		last = l.findings()
		return slices.Equal(last, want)
	})
}

// record collects what the service publishes. What was published, but not noted before a stop, comes twice.
func (l *lab) record() func() []*eventv1.Event {
	l.t.Helper()
	var mu sync.Mutex
	var all []*eventv1.Event
	sub, err := l.broker.Subscribe(event.FactsOf("inventory"), func(m *nats.Msg) {
		var b eventv1.EventBatch
		if err := proto.Unmarshal(m.Data, &b); err != nil {
			l.t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, e := range b.GetEvents() {
			if !slices.ContainsFunc(all, func(o *eventv1.Event) bool { return o.GetId() == e.GetId() }) {
				all = append(all, e)
			}
		}
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = sub.Unsubscribe() })
	return func() []*eventv1.Event {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

func (l *lab) applyShop() *inventoryv1.Identity {
	l.t.Helper()
	r, err := l.operator.ApplyIdentity(l.t.Context(), &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
		Name: "shop", Owner: "team-shop", Purpose: "sells things", Names: &typev1.Names{Dns: []string{"shop.example.com"}},
	}})
	if err != nil {
		l.t.Fatal(err)
	}
	return r.GetIdentity()
}

func TestStory(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		l := newLab(t, c)
		published := l.record()
		l.applyShop()
		root := certtest.NewCA(t, "Company Root")
		sub := root.Sub("Company Issuing")
		day := 24 * time.Hour
		now := l.clock.Now()
		cert := sub.Issue(certtest.Leaf{Names: []string{"shop.example.com"}, From: now.Add(-time.Hour), To: now.Add(90 * day)})
		chain := [][]byte{cert.DER, sub.DER, root.DER}
		fingerprint := string(cert.Facts.Fingerprint)
		beat := func() {
			l.tell(event.ObservationsOf("deployer"), &eventv1.Event{Type: "deployer.host.observed", Payload: &eventv1.Event_HostObserved{HostObserved: &eventv1.HostObserved{
				Host: "web-1", Time: timestamppb.New(l.clock.Now()), Version: "1.0", Platform: "linux/amd64", ScanId: uuid.NewString(), ScanComplete: true,
				Sightings: []*eventv1.Sighting{{Role: eventv1.SightingRole_SIGHTING_ROLE_LISTENER, Location: "127.0.0.1:443", ServerName: "shop.example.com", Chain: chain[:2]}},
			}}})
		}
		l.tell(event.FactsOf("issuer"),
			&eventv1.Event{Type: "issuer.authority.applied", Payload: &eventv1.Event_AuthorityChanged{AuthorityChanged: &eventv1.AuthorityChanged{Authority: "internal", Chain: [][]byte{sub.DER, root.DER}, Kind: "internal"}}},
			&eventv1.Event{Type: "issuer.request.issued", Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{RequestId: "a-1-1", Identity: "shop", Profile: "web", Authority: "internal", Chain: chain}}},
			&eventv1.Event{Type: "issuer.call.denied", Subject: "methods/x"},
		)
		l.tell(event.FactsOf("deployer"),
			&eventv1.Event{Type: "deployer.agent.enrolled", Payload: &eventv1.Event_AgentChanged{AgentChanged: &eventv1.AgentChanged{Host: "web-1", State: eventv1.AgentState_AGENT_STATE_ENROLLED}}},
			&eventv1.Event{Type: "deployer.assignment.served", Payload: &eventv1.Event_AssignmentChanged{AssignmentChanged: &eventv1.AssignmentChanged{
				Assignment: "a", Generation: 1, Deployment: "shop", Identity: "shop", Host: "web-1", Target: "nginx", State: "served", Fingerprint: fingerprint, Served: fingerprint,
				Address: "127.0.0.1:443", RenewBy: timestamppb.New(now.Add(67 * day)),
			}}},
		)
		beat()
		var known *inventoryv1.KnownCertificate
		eventually(t, "the certificate is known, served and assigned", func() bool {
			r, err := l.operator.GetCertificate(t.Context(), &inventoryv1.GetCertificateRequest{Fingerprint: strings.ToUpper(fingerprint[:10])})
			if err != nil {
				return false
			}
			known = r.GetCertificate()
			return known.GetServed() && len(known.GetAssignedTo()) == 1 && len(known.GetSightings()) == 1
		})
		if known.GetOwner() != "team-shop" || known.GetAuthority() != "internal" || known.GetRequestId() != "a-1-1" || !strings.Contains(known.GetPem(), "BEGIN CERTIFICATE") ||
			known.GetCertificate().GetFingerprint() != fingerprint || known.GetSightings()[0].GetServerName() != "shop.example.com" {
			t.Errorf("known: %v", known)
		}
		host, err := l.operator.GetHost(t.Context(), &inventoryv1.GetHostRequest{Name: "web-1"})
		if err != nil || host.GetHost().GetAgentState() != "enrolled" || host.GetHost().GetAgentVersion() != "1.0" || len(host.GetSightings()) != 1 {
			t.Errorf("host: %v, %v", host, err)
		}
		l.await()

		// From here on nobody tells anything but the host: the scheduler sleeps.
		l.clock.move(70 * day)
		beat()
		l.await("RULE_OVERDUE certificates team-shop")
		// The inventory is stopped and started meanwhile.
		l.stop()
		l.clock.move(21 * day)
		beat()
		l.start()
		l.await("RULE_EXPIRED certificates team-shop")
		l.clock.move(time.Hour)
		l.await("RULE_EXPIRED certificates team-shop", "RULE_HOST_SILENT hosts team-shop")

		next := sub.Issue(certtest.Leaf{Names: []string{"shop.example.com"}, From: l.clock.Now(), To: l.clock.Now().Add(90 * day)})
		chain[0] = next.DER
		l.tell(event.FactsOf("issuer"), &eventv1.Event{Type: "issuer.request.issued", Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{
			RequestId: "a-2-1", Identity: "shop", Profile: "web", Authority: "internal", Chain: chain, Replaces: fingerprint}}})
		l.tell(event.FactsOf("deployer"), &eventv1.Event{Type: "deployer.assignment.served", Payload: &eventv1.Event_AssignmentChanged{AssignmentChanged: &eventv1.AssignmentChanged{
			Assignment: "a", Generation: 2, Deployment: "shop", Identity: "shop", Host: "web-1", Target: "nginx", State: "served",
			Fingerprint: string(next.Facts.Fingerprint), Served: string(next.Facts.Fingerprint), Address: "127.0.0.1:443"}}})
		beat()
		l.await()
		eventually(t, "what was opened is closed, and all of it is told", func() bool {
			count := map[string]int{}
			for _, e := range published() {
				count[e.GetType()]++
				if strings.HasPrefix(e.GetType(), "inventory.finding.") && e.GetActor() != "spiffe://test.example/service/inventory" {
					t.Fatalf("actor of %s is %q", e.GetType(), e.GetActor())
				}
			}
			// A host may have been silent for a moment more when the clock was moved.
			return count["inventory.identity.applied"] == 1 && count["inventory.finding.opened"] >= 3 && count["inventory.finding.closed"] == count["inventory.finding.opened"]
		})
		l.stop()
		if n := l.remembered(); n != 0 {
			t.Errorf("%d ids of events are remembered that could come again without harm", n)
		}
	})
}

// remembered is how many rows the inbox of the stopped service has.
func (l *lab) remembered() (n int) {
	l.t.Helper()
	st, err := store.Open(l.t.Context(), l.config, l.clock.Now)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = st.Close() })
	err = st.DB().Read(l.t.Context(), func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT count(*) FROM inbox`).Scan(&n)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

// An event nobody can make sense of must not hold up the others.
func TestPoison(t *testing.T) {
	l := newLab(t, servicetest.SQLite(t))
	cert := certtest.NewCA(t, "Root").Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: l.clock.Now(), To: l.clock.Now().Add(time.Hour)})
	if _, err := l.js.Publish(t.Context(), event.FactsOf("issuer"), []byte("\xff\xff")); err != nil {
		t.Fatal(err)
	}
	bad := []*eventv1.Event{
		{Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{}}},
		{Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{Chain: [][]byte{{1}}}}},
		{Payload: &eventv1.Event_AuthorityChanged{AuthorityChanged: &eventv1.AuthorityChanged{}}},
		{Payload: &eventv1.Event_AuthorityChanged{AuthorityChanged: &eventv1.AuthorityChanged{Authority: "x", Chain: [][]byte{{1}}}}},
		{Payload: &eventv1.Event_AgentChanged{AgentChanged: &eventv1.AgentChanged{Host: "x"}}},
		{Payload: &eventv1.Event_AgentChanged{AgentChanged: &eventv1.AgentChanged{State: eventv1.AgentState_AGENT_STATE_LOCKED}}},
		{Payload: &eventv1.Event_AssignmentChanged{AssignmentChanged: &eventv1.AssignmentChanged{Assignment: "x"}}},
		{Payload: &eventv1.Event_HostObserved{HostObserved: &eventv1.HostObserved{}}},
		{Payload: &eventv1.Event_HostObserved{HostObserved: &eventv1.HostObserved{Host: "a\x00b"}}},
		{Payload: &eventv1.Event_RequestIssued{RequestIssued: &eventv1.RequestIssued{RequestId: "a\x00b", Chain: [][]byte{cert.DER, {1}}}}},
		{Payload: &eventv1.Event_HostObserved{HostObserved: &eventv1.HostObserved{Host: "web-1", Sightings: []*eventv1.Sighting{
			{Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: "/bad", Chain: [][]byte{{0x30}}}, {Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: "/none"},
			{Role: 9, Location: "/role", Chain: [][]byte{cert.DER}}, {Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: "/good", Chain: [][]byte{cert.DER}},
		}}}},
	}
	for _, e := range bad {
		e.Type = "deployer.thing.happened"
	}
	l.tell(event.FactsOf("deployer"), bad...)
	eventually(t, "the good ones among them", func() bool {
		r, err := l.operator.GetHost(t.Context(), &inventoryv1.GetHostRequest{Name: "web-1"})
		return err == nil && len(r.GetSightings()) == 1 && r.GetSightings()[0].GetLocation() == "/good"
	})
}

func TestWhoMayCall(t *testing.T) {
	l := newLab(t, servicetest.SQLite(t))
	published := l.record()
	l.applyShop()
	for _, c := range []struct {
		name    string
		conn    *grpc.ClientConn
		allowed bool
		code    fault.Kind
	}{
		{"operator", l.server.As(l.domain.Operator("ann")), true, 0},
		{"issuer", l.server.As(l.domain.Service("issuer")), true, 0},
		{"deployer", l.server.As(l.domain.Service("deployer")), true, 0},
		{"audit", l.server.As(l.domain.Service("audit")), false, fault.Denied},
		{"agent", l.server.As(l.domain.Agent("web-1")), false, fault.Denied},
		{"nobody", l.server.Anonymous(), false, fault.Unauthenticated},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := inventoryv1.NewInventoryServiceClient(c.conn)
			_, err := client.GetIdentity(t.Context(), &inventoryv1.GetIdentityRequest{Name: "shop"})
			if c.allowed && err != nil || !c.allowed && fault.KindOf(err) != c.code {
				t.Errorf("GetIdentity: %v", err)
			}
			_, err = client.DeleteIdentity(t.Context(), &inventoryv1.DeleteIdentityRequest{Name: "none"})
			if c.name == "operator" && fault.KindOf(err) != fault.NotFound || c.name != "operator" && !slices.Contains([]fault.Kind{fault.Denied, fault.Unauthenticated}, fault.KindOf(err)) {
				t.Errorf("DeleteIdentity: %v", err)
			}
		})
	}
	eventually(t, "every denied call is a fact", func() bool {
		n := 0
		for _, e := range published() {
			if e.GetType() == "inventory.call.denied" {
				n++
				if e.GetResult() != eventv1.Result_RESULT_REFUSED || e.GetReason() == "" || !strings.HasPrefix(e.GetSubject(), "methods/") || e.GetFacts()["peer"] == "" || e.GetActor() == "" {
					t.Fatalf("denied: %v", e)
				}
			}
		}
		return n == 8
	})
}

// The table must have each method that is registered, and no other: the server refuses to serve otherwise. This is the other
// half: each method says in the proto who may call it, and operators may call all of them.
func TestMethods(t *testing.T) {
	methods := inventory.Methods()
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Methods {
		full := "/" + inventoryv1.InventoryService_ServiceDesc.ServiceName + "/" + m.MethodName
		if !slices.Contains(methods[full], identity.RoleOperator) || slices.Contains(methods[full], identity.RoleAgent) || slices.Contains(methods[full], identity.RoleAnonymous) {
			t.Errorf("%s: %v", full, methods[full])
		}
	}
}

func TestBadRequests(t *testing.T) {
	l := newLab(t, servicetest.SQLite(t))
	i := l.applyShop()
	ctx := t.Context()
	for field, call := range map[string]func() error{
		"identity": func() error { _, err := l.operator.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{}); return err },
		"identity.owner": func() error {
			_, err := l.operator.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{Name: "a"}})
			return err
		},
		"name": func() error {
			_, err := l.operator.GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: "A B"})
			return err
		},
		"name ": func() error {
			_, err := l.operator.DeleteIdentity(ctx, &inventoryv1.DeleteIdentityRequest{})
			return err
		},
		"name  ": func() error { _, err := l.operator.GetHost(ctx, &inventoryv1.GetHostRequest{}); return err },
		"name   ": func() error {
			_, err := l.operator.GetHost(ctx, &inventoryv1.GetHostRequest{Name: "a\x00"})
			return err
		},
		"fingerprint": func() error {
			_, err := l.operator.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Fingerprint: "abcdef0"})
			return err
		},
		"fingerprint ": func() error {
			_, err := l.operator.GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Fingerprint: "zzzzzzzz"})
			return err
		},
		"page_size": func() error {
			_, err := l.operator.ListHosts(ctx, &inventoryv1.ListHostsRequest{PageSize: -1})
			return err
		},
		"page_token": func() error {
			_, err := l.operator.ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{PageToken: "garbage"})
			return err
		},
		"page_token ": func() error {
			_, err := l.operator.ListFindings(ctx, &inventoryv1.ListFindingsRequest{PageToken: "e30"})
			return err
		},
		"page_token  ": func() error {
			_, err := l.operator.ListIdentities(ctx, &inventoryv1.ListIdentitiesRequest{PageToken: "e30"})
			return err
		},
		"page_token   ": func() error {
			_, err := l.operator.ListHosts(ctx, &inventoryv1.ListHostsRequest{PageToken: "?"})
			return err
		},
		"expires_within": func() error {
			_, err := l.operator.ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{ExpiresWithin: durationpb.New(-1)})
			return err
		},
		"silent_for": func() error {
			_, err := l.operator.ListHosts(ctx, &inventoryv1.ListHostsRequest{SilentFor: &durationpb.Duration{Seconds: 1, Nanos: -1}})
			return err
		},
		"rules": func() error {
			_, err := l.operator.ListFindings(ctx, &inventoryv1.ListFindingsRequest{Rules: []inventoryv1.Rule{99}})
			return err
		},
		"min_severity": func() error {
			_, err := l.operator.ListFindings(ctx, &inventoryv1.ListFindingsRequest{MinSeverity: 9})
			return err
		},
		"issuer_contains": func() error {
			_, err := l.operator.ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{IssuerContains: strings.Repeat("x", 2000)})
			return err
		},
		"owner": func() error {
			_, err := l.operator.ListFindings(ctx, &inventoryv1.ListFindingsRequest{Owner: "\x00"})
			return err
		},
		"owner ": func() error {
			_, err := l.operator.ListIdentities(ctx, &inventoryv1.ListIdentitiesRequest{Owner: "\x00"})
			return err
		},
	} {
		var f *fault.Error
		if f = fault.Of(call()); f == nil || f.Kind != fault.InvalidArgument || f.Field != strings.TrimSpace(field) {
			t.Errorf("%s: got %v", field, f)
		}
	}
	i.Etag = "stale"
	_, err := l.operator.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: i})
	if f := fault.Of(err); f == nil || f.Kind != fault.Conflict || f.Reason != "ETAG_MISMATCH" {
		t.Errorf("stale: %v", err)
	}
	i.Etag, i.Purpose = "", "another"
	r, err := l.operator.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: i, ValidateOnly: true})
	if err != nil || !r.GetChanged() || r.GetIdentity().GetPurpose() != "another" {
		t.Errorf("validating: %v, %v", r, err)
	}
	got, err := l.operator.GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: "shop"})
	if err != nil || got.GetIdentity().GetPurpose() != "sells things" {
		t.Errorf("validating changed it: %v, %v", got, err)
	}
}

func TestPages(t *testing.T) {
	l := newLab(t, servicetest.SQLite(t))
	for n := range 5 {
		_, err := l.operator.ApplyIdentity(t.Context(), &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
			Name: fmt.Sprintf("id-%d", n), Owner: "ann", Purpose: "x", Names: &typev1.Names{Dns: []string{"a.example.com"}},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for token := ""; ; {
		r, err := l.operator.ListIdentities(t.Context(), &inventoryv1.ListIdentitiesRequest{PageSize: 2, PageToken: token, Owner: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range r.GetIdentities() {
			got = append(got, i.GetName())
		}
		if token = r.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(got, []string{"id-0", "id-1", "id-2", "id-3", "id-4"}) {
		t.Errorf("got %q", got)
	}
}

func TestConfig(t *testing.T) {
	good := inventory.Config{Database: db.Config{Driver: "sqlite", DSN: "x"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*inventory.Config){
		"database.driver":      func(c *inventory.Config) { c.Database.Driver = "mysql" },
		"findings.critical":    func(c *inventory.Config) { c.Findings.Critical = config.Duration(31 * 24 * time.Hour) },
		"findings.critical ":   func(c *inventory.Config) { c.Findings.Critical = 1 },
		"findings.host_silent": func(c *inventory.Config) { c.Findings.HostSilent = 1 },
		"findings.review":      func(c *inventory.Config) { c.Findings.Review = 1 },
	} {
		c := good
		change(&c)
		var f *fault.Error
		if err := c.Validate(); !errors.As(err, &f) || f.Field != strings.TrimSpace(field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	var c inventory.Config
	err := config.Decode("f.yaml", []byte("database: {driver: sqlite, dsn: /x}\nfindings:\n  expiring: 20d\n  hosts_silent: 3m\n"), &c)
	if err == nil || !strings.Contains(err.Error(), "f.yaml:4") {
		t.Errorf("a misspelt field: %v", err)
	}
	if _, err := inventory.New(t.Context(), good, inventory.Deps{}); err == nil {
		t.Error("without what it stands on")
	}
}
