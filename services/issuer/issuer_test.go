package issuer

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// inventory answers GetIdentity, and nothing else, over the real transport.
type inventory struct {
	inventoryv1.UnimplementedInventoryServiceServer
	mu    sync.Mutex
	names map[string][]string
	asked int
	err   error
}

func (i *inventory) GetIdentity(_ context.Context, req *inventoryv1.GetIdentityRequest) (*inventoryv1.GetIdentityResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	if i.err != nil {
		return nil, i.err
	}
	dns, ok := i.names[req.GetName()]
	if !ok {
		return nil, fault.New(fault.NotFound, "IDENTITY_NOT_FOUND", "no such identity")
	}
	return &inventoryv1.GetIdentityResponse{Identity: &inventoryv1.Identity{Name: req.GetName(), Names: &typev1.Names{Dns: dns}}}, nil
}

func (i *inventory) set(name string, dns ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.names[name] = dns
}

func (i *inventory) fail(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
}

// world is an issuer among real neighbours.
type world struct {
	t         *testing.T
	domain    *servicetest.Domain
	inventory *inventory
	invConn   *grpc.ClientConn
	broker    *servicetest.Broker
	cfg       Config
	stop      func()
	operator  issuerv1.IssuerServiceClient
	deployer  issuerv1.IssuerServiceClient
	address   *servicetest.Server
	service   *Service

	mu     sync.Mutex
	events []*eventv1.Event
}

func newWorld(t *testing.T, database db.Config) *world {
	t.Helper()
	w := &world{
		t: t, domain: servicetest.TrustDomain(t), broker: servicetest.NewBroker(t),
		inventory: &inventory{names: map[string][]string{"shop": {"a.example.com", "b.example.com"}}},
		cfg: Config{
			Database: database, KeyEncryptionKey: filepath.Join(t.TempDir(), "kek.json"), SecretsDir: t.TempDir(),
			IdentityMaxAge: config.Duration(time.Millisecond),
			Orders: Orders{
				Poll: ms(5), PollMax: ms(50), Network: ms(10), NetworkMax: ms(100), Pass: ms(500), Claim: ms(60_000),
				Validation: []config.Duration{ms(10), ms(20)}, HostPatience: ms(2000),
			},
			RenewalInfo: RenewalInfo{Every: ms(60000), Least: ms(20), Most: ms(60000), Retry: ms(20)},
		},
	}
	inv := w.domain.Serve("inventory", rpc.ServerConfig{Methods: inventoryMethods()}, func(r grpc.ServiceRegistrar) {
		inventoryv1.RegisterInventoryServiceServer(r, w.inventory)
	})
	w.invConn = inv.As(w.domain.Service("issuer"))
	w.listen()
	w.start()
	return w
}

func ms(n int) config.Duration { return config.Duration(time.Duration(n) * time.Millisecond) }

func inventoryMethods() map[string][]identity.Role {
	all := map[string][]identity.Role{}
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Methods {
		all["/"+inventoryv1.InventoryService_ServiceDesc.ServiceName+"/"+m.MethodName] = []identity.Role{identity.RoleIssuer}
	}
	for _, m := range inventoryv1.InventoryService_ServiceDesc.Streams {
		all["/"+inventoryv1.InventoryService_ServiceDesc.ServiceName+"/"+m.StreamName] = []identity.Role{identity.RoleIssuer}
	}
	return all
}

// start begins an issuer process.
func (w *world) start() {
	w.t.Helper()
	source := w.domain.Service("issuer")
	s, err := New(w.t.Context(), w.cfg, Deps{Source: source, NATS: w.broker.Connect(), Inventory: w.invConn, Log: servicetest.Log(w.t)})
	if err != nil {
		w.t.Fatalf("starting: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("running: %v", err)
			}
			if err := s.Close(); err != nil {
				w.t.Errorf("closing: %v", err)
			}
		})
	}
	w.t.Cleanup(w.stop)
	w.service = s
	w.address = w.domain.Serve("issuer", rpc.ServerConfig{Methods: Methods(), OnDenied: s.OnDenied}, s.Register)
	w.operator = issuerv1.NewIssuerServiceClient(w.address.As(w.domain.Operator("ann")))
	w.deployer = issuerv1.NewIssuerServiceClient(w.address.As(w.domain.Service("deployer")))
}

// listen keeps every event that reaches NATS.
func (w *world) listen() {
	w.t.Helper()
	js, err := jetstream.New(w.broker.Connect())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := event.EnsureStreams(w.t.Context(), js, event.StreamLimits{}); err != nil {
		w.t.Fatal(err)
	}
	cons, err := js.CreateOrUpdateConsumer(w.t.Context(), event.StreamName, jetstream.ConsumerConfig{FilterSubject: event.FactsOf("issuer")})
	if err != nil {
		w.t.Fatal(err)
	}
	sub, err := cons.Consume(func(m jetstream.Msg) {
		var batch eventv1.EventBatch
		if err := proto.Unmarshal(m.Data(), &batch); err != nil {
			w.t.Errorf("reading a message: %v", err)
		}
		w.mu.Lock()
		w.events = append(w.events, batch.GetEvents()...)
		w.mu.Unlock()
		_ = m.Ack()
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(sub.Stop)
}

func (w *world) told(what string) []*eventv1.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*eventv1.Event
	for _, e := range w.events {
		if e.GetType() == "issuer."+what {
			all = append(all, e)
		}
	}
	return all
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for pause := 5 * time.Millisecond; !ok(); pause = min(pause+pause/4, 100*time.Millisecond) { // callers are rationed
		if time.Now().After(deadline) {
			w.t.Fatalf("never: %s", what)
		}
		<-time.After(pause)
	}
}

func (w *world) applyInternal() {
	w.t.Helper()
	_, err := w.operator.ApplyAuthority(w.t.Context(), &issuerv1.ApplyAuthorityRequest{Authority: internalAuthority()})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.operator.ApplyProfile(w.t.Context(), &issuerv1.ApplyProfileRequest{Profile: internalProfile()}); err != nil {
		w.t.Fatal(err)
	}
}

func internalAuthority() *issuerv1.Authority {
	return &issuerv1.Authority{Name: "corp", Kind: &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{CommonName: "Corp Root"}}}
}

func internalProfile() *issuerv1.Profile {
	return &issuerv1.Profile{
		Name: "web", Authority: "corp", KeyTypes: []typev1.KeyType{typev1.KeyType_KEY_TYPE_ECDSA_P256},
		Usages: []typev1.ExtendedKeyUsage{typev1.ExtendedKeyUsage_EXTENDED_KEY_USAGE_SERVER_AUTH}, Lifetime: durationpb.New(24 * time.Hour), AllowedDomains: []string{"example.com"},
	}
}

func submission(t *testing.T, id string, dns ...string) *issuerv1.SubmitRequestRequest {
	t.Helper()
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return submissionFor(t, key, id, dns...)
}

func submissionFor(t *testing.T, key crypto.Signer, id string, dns ...string) *issuerv1.SubmitRequestRequest {
	t.Helper()
	names, err := pki.ParseNames(dns, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewCSR(key, names)
	if err != nil {
		t.Fatal(err)
	}
	return &issuerv1.SubmitRequestRequest{RequestId: id, Identity: "shop", Profile: "web", Csr: csr, Names: &typev1.Names{Dns: dns}, Reason: "test"}
}

func leafOf(t *testing.T, chain [][]byte) *x509.Certificate {
	t.Helper()
	certs, err := pki.ParseChainDER(chain)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

func wantFault(t *testing.T, err error, kind fault.Kind, reason, field string) {
	t.Helper()
	f := fault.Of(err)
	if f == nil || f.Kind != kind || f.Reason != reason || f.Field != field {
		t.Errorf("got %v (%+v), want %s %s %s", err, f, kind, reason, field)
	}
}

func TestInternal(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		w := newWorld(t, database)
		ctx := t.Context()
		w.applyInternal()
		sub := submission(t, "r-1", "a.example.com")
		resp, err := w.deployer.SubmitRequest(ctx, sub)
		if err != nil {
			t.Fatal(err)
		}
		r := resp.GetRequest()
		if r.GetState() != issuerv1.RequestState_REQUEST_STATE_ISSUED || len(r.GetChain()) != 2 || r.GetAuthority() != "corp" {
			t.Fatalf("got %v", r)
		}
		if got := string(pki.FingerprintOf(r.GetChain()[0])); got != r.GetFingerprint() {
			t.Errorf("fingerprint %s, told %s", got, r.GetFingerprint())
		}
		again, err := w.deployer.SubmitRequest(ctx, sub)
		if err != nil || again.GetRequest().GetFingerprint() != r.GetFingerprint() {
			t.Errorf("the same again: %v, %v", again, err)
		}
		got, err := w.operator.GetRequest(ctx, &issuerv1.GetRequestRequest{RequestId: "r-1"})
		if err != nil || !proto.Equal(got.GetRequest(), r) {
			t.Errorf("shown: %v, %v\nwant %v", got, err, r)
		}
		other := submission(t, "r-1", "a.example.com")
		_, err = w.deployer.SubmitRequest(ctx, other)
		wantFault(t, err, fault.Conflict, "REQUEST_ID_REUSED", "")

		_, err = w.deployer.CancelRequest(ctx, &issuerv1.CancelRequestRequest{RequestId: "r-1"})
		wantFault(t, err, fault.Conflict, "WRONG_STATE", "")

		w.eventually("the certificate is told", func() bool { return len(w.told("request.issued")) == 1 })
		e := w.told("request.issued")[0]
		if p := e.GetRequestIssued(); p.GetRequestId() != "r-1" || len(p.GetChain()) != 2 || p.GetIdentity() != "shop" {
			t.Errorf("payload %v", p)
		}
		if !strings.HasSuffix(e.GetActor(), "/service/deployer") || e.GetReason() != "test" || e.GetTraceId() == "" || e.GetRequestId() == "" || e.GetFacts()["serial"] == "" {
			t.Errorf("event %v", e)
		}
		if a := w.told("authority.applied"); len(a) != 1 || len(a[0].GetAuthorityChanged().GetChain()) != 2 || a[0].GetAuthorityChanged().GetIssuing().GetSubject() != "CN=Corp Root Issuing 1" {
			t.Errorf("authority: %v", a)
		}
	})
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	w.applyInternal()
	ctx := t.Context()
	weak, err := pki.GenerateKey(pki.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		sub    *issuerv1.SubmitRequestRequest
		reason string
	}{
		"unlisted-name":    {submission(t, "unlisted-name", "c.example.com"), "NAME_NOT_OF_IDENTITY"},
		"key-type":         {submissionFor(t, weak, "key-type", "a.example.com"), "KEY_TYPE_NOT_ALLOWED"},
		"unknown-profile":  {with(submission(t, "unknown-profile", "a.example.com"), func(s *issuerv1.SubmitRequestRequest) { s.Profile = "none" }), "PROFILE_UNKNOWN"},
		"unknown-identity": {with(submission(t, "unknown-identity", "a.example.com"), func(s *issuerv1.SubmitRequestRequest) { s.Identity = "none" }), "IDENTITY_UNKNOWN"},
		"names":            {with(submission(t, "names", "a.example.com"), func(s *issuerv1.SubmitRequestRequest) { s.Names.Dns = []string{"b.example.com"} }), "NAMES_NOT_AS_EXPECTED"},
		"replaces":         {with(submission(t, "replaces", "a.example.com"), func(s *issuerv1.SubmitRequestRequest) { s.Replaces = strings.Repeat("0", 64) }), "REPLACES_UNKNOWN"},
	} {
		for range 2 { // the same each time
			_, err := w.deployer.SubmitRequest(ctx, c.sub)
			wantFault(t, err, fault.Permanent, c.reason, "")
		}
		got, err := w.operator.GetRequest(ctx, &issuerv1.GetRequestRequest{RequestId: name})
		if err != nil || got.GetRequest().GetState() != issuerv1.RequestState_REQUEST_STATE_REFUSED || got.GetRequest().GetReason() != c.reason {
			t.Errorf("%s: stored as %v, %v", name, got, err)
		}
	}
	w.eventually("each refusal is told once", func() bool { return len(w.told("request.refused")) == 6 })
	broken := submission(t, "broken", "a.example.com")
	broken.Csr[len(broken.Csr)-1] ^= 1
	_, err = w.deployer.SubmitRequest(ctx, broken)
	wantFault(t, err, fault.InvalidArgument, "CSR_REFUSED", "csr")
	w.eventually("a CSR that cannot be read is told too", func() bool { return len(w.told("request.refused")) == 7 })
	if n := len(w.told("request.issued")); n != 0 {
		t.Errorf("%d certificates", n)
	}
}

func with(s *issuerv1.SubmitRequestRequest, change func(*issuerv1.SubmitRequestRequest)) *issuerv1.SubmitRequestRequest {
	change(s)
	return s
}

func TestAnotherIdentitysCertificateCannotBeReplaced(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	w.applyInternal()
	w.inventory.set("bank", "bank.example.com")
	resp, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com"))
	if err != nil {
		t.Fatal(err)
	}
	theirs := with(submission(t, "r-2", "bank.example.com"), func(s *issuerv1.SubmitRequestRequest) {
		s.Identity, s.Replaces = "bank", resp.GetRequest().GetFingerprint()
	})
	_, err = w.deployer.SubmitRequest(t.Context(), theirs)
	wantFault(t, err, fault.Permanent, "REPLACES_OTHER_IDENTITY", "")
	ours := with(submission(t, "r-3", "a.example.com"), func(s *issuerv1.SubmitRequestRequest) { s.Replaces = resp.GetRequest().GetFingerprint() })
	if _, err := w.deployer.SubmitRequest(t.Context(), ours); err != nil {
		t.Error(err)
	}
}

func TestInventoryAway(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	w.applyInternal()
	first := submission(t, "r-1", "a.example.com")
	if _, err := w.deployer.SubmitRequest(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	<-time.After(5 * time.Millisecond)
	w.inventory.fail(fault.New(fault.Transient, "STORAGE_UNAVAILABLE", "away"))
	_, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-2", "a.example.com"))
	wantFault(t, err, fault.Transient, "INVENTORY_UNAVAILABLE", "")
	if _, err := w.deployer.SubmitRequest(t.Context(), first); err != nil {
		t.Errorf("what was decided before must still be answered: %v", err)
	}
}

func TestProfileChangesCount(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	w.applyInternal()
	if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
		t.Fatal(err)
	}
	narrow := internalProfile()
	narrow.AllowedDomains = []string{"b.example.com"}
	resp, err := w.operator.ApplyProfile(t.Context(), &issuerv1.ApplyProfileRequest{Profile: narrow})
	if err != nil || !resp.GetChanged() {
		t.Fatal(resp, err)
	}
	_, err = w.deployer.SubmitRequest(t.Context(), submission(t, "r-2", "a.example.com"))
	wantFault(t, err, fault.Permanent, "NAME_NOT_ALLOWED", "")
}

func TestApply(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		w := newWorld(t, database)
		ctx := t.Context()
		dry, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: internalAuthority(), ValidateOnly: true})
		if err != nil || !dry.GetChanged() {
			t.Fatal(dry, err)
		}
		_, err = w.operator.GetAuthority(ctx, &issuerv1.GetAuthorityRequest{Name: "corp"})
		wantFault(t, err, fault.NotFound, "AUTHORITY_NOT_FOUND", "")
		made, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: internalAuthority()})
		if err != nil || !made.GetChanged() || strings.Count(made.GetAuthority().GetChainPem(), "BEGIN CERTIFICATE") != 2 {
			t.Fatal(made, err)
		}
		again, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: internalAuthority()})
		if err != nil || again.GetChanged() || again.GetAuthority().GetChainPem() != made.GetAuthority().GetChainPem() {
			t.Errorf("the same again: %v, %v", again, err)
		}
		other := internalAuthority()
		other.GetInternal().KeyType = typev1.KeyType_KEY_TYPE_RSA_2048
		_, err = w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: other})
		wantFault(t, err, fault.InvalidArgument, "INVALID_FIELD", "authority.internal")
		stale := internalAuthority()
		stale.Etag = "old"
		_, err = w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: stale})
		wantFault(t, err, fault.Conflict, "ETAG_MISMATCH", "authority.etag")

		bad := internalProfile()
		bad.Authority = "none"
		_, err = w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: bad})
		wantFault(t, err, fault.InvalidArgument, "INVALID_FIELD", "profile.authority")
		p, err := w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: internalProfile()})
		if err != nil || !p.GetChanged() {
			t.Fatal(p, err)
		}
		guarded := internalProfile()
		guarded.Etag, guarded.AllowIp = p.GetProfile().GetEtag(), true
		p2, err := w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: guarded})
		if err != nil || !p2.GetChanged() || p2.GetProfile().GetEtag() == guarded.GetEtag() {
			t.Errorf("guarded change: %v, %v", p2, err)
		}
		guarded.AllowIp = false
		_, err = w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: guarded})
		wantFault(t, err, fault.Conflict, "ETAG_MISMATCH", "profile.etag")
		got, err := w.deployer.GetProfile(ctx, &issuerv1.GetProfileRequest{Name: "web"})
		if err != nil || !proto.Equal(got.GetProfile(), p2.GetProfile()) {
			t.Errorf("shown: %v, %v", got, err)
		}
		_, err = w.operator.DeleteAuthority(ctx, &issuerv1.DeleteAuthorityRequest{Name: "corp"})
		wantFault(t, err, fault.Precondition, "AUTHORITY_IN_USE", "")
		if _, err := w.operator.DeleteProfile(ctx, &issuerv1.DeleteProfileRequest{Name: "web"}); err != nil {
			t.Error(err)
		}
		if _, err := w.operator.DeleteAuthority(ctx, &issuerv1.DeleteAuthorityRequest{Name: "corp"}); err != nil {
			t.Error(err)
		}
		_, err = w.operator.DeleteProfile(ctx, &issuerv1.DeleteProfileRequest{Name: "web"})
		wantFault(t, err, fault.NotFound, "PROFILE_NOT_FOUND", "")
		w.eventually("all is told", func() bool {
			return len(w.told("authority.applied")) == 1 && len(w.told("profile.applied")) == 2 && len(w.told("profile.deleted")) == 1 && len(w.told("authority.deleted")) == 1
		})
	})
}

func TestLists(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		w := newWorld(t, database)
		w.applyInternal()
		ctx := t.Context()
		for i := range 7 {
			if _, err := w.deployer.SubmitRequest(ctx, submission(t, fmt.Sprintf("r-%d", i), "a.example.com")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := w.deployer.SubmitRequest(ctx, submission(t, "no", "c.example.com"))
		wantFault(t, err, fault.Permanent, "NAME_NOT_OF_IDENTITY", "")
		var seen []string
		q := &issuerv1.ListRequestsRequest{PageSize: 3, States: []issuerv1.RequestState{issuerv1.RequestState_REQUEST_STATE_ISSUED}, Identity: "shop", Authority: "corp"}
		for {
			page, err := w.operator.ListRequests(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range page.GetRequests() {
				if len(r.GetChain()) > 0 {
					t.Error("a list has no chains")
				}
				seen = append(seen, r.GetId())
			}
			if q.PageToken = page.GetNextPageToken(); q.PageToken == "" {
				break
			}
		}
		if want := []string{"r-6", "r-5", "r-4", "r-3", "r-2", "r-1", "r-0"}; !slices.Equal(seen, want) {
			t.Errorf("got %v, want %v", seen, want)
		}
		first, err := w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: 1})
		if err != nil || first.GetRequests()[0].GetId() != "no" {
			t.Errorf("got %v, %v", first, err)
		}
		_, err = w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: 1, PageToken: first.GetNextPageToken(), Identity: "shop"})
		wantFault(t, err, fault.InvalidArgument, "INVALID_FIELD", "page_token")
		for _, name := range []string{"a1", "a2", "a3"} {
			a := internalAuthority()
			a.Name = name
			if _, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: a}); err != nil {
				t.Fatal(err)
			}
		}
		two, err := w.operator.ListAuthorities(ctx, &issuerv1.ListAuthoritiesRequest{PageSize: 2})
		if err != nil || len(two.GetAuthorities()) != 2 || two.GetAuthorities()[1].GetName() != "a2" {
			t.Fatal(two, err)
		}
		more, err := w.operator.ListAuthorities(ctx, &issuerv1.ListAuthoritiesRequest{PageSize: 2, PageToken: two.GetNextPageToken()})
		if err != nil || len(more.GetAuthorities()) != 2 || more.GetNextPageToken() != "" {
			t.Error(more, err)
		}
		all, err := w.operator.ListProfiles(ctx, &issuerv1.ListProfilesRequest{})
		if err != nil || len(all.GetProfiles()) != 1 || all.GetNextPageToken() != "" {
			t.Error(all, err)
		}
	})
}

// A page ends early rather than become larger than clients take, which is 4 MiB; and all is listed.
func TestListsOfLargeThings(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		w := newWorld(t, database)
		w.applyInternal()
		ctx := t.Context()
		long := strings.Repeat(strings.Repeat("x", 60)+".", 3)
		p := internalProfile()
		p.AllowedDomains = nil
		for n := range 1000 {
			p.AllowedDomains = append(p.AllowedDomains, fmt.Sprintf("%s%d.example.com", long, n))
		}
		for n := range 25 {
			p.Name = fmt.Sprintf("large-%02d", n)
			if _, err := w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: p}); err != nil {
				t.Fatal(err)
			}
		}
		key, err := pki.GenerateKey(pki.ECDSAP256)
		if err != nil {
			t.Fatal(err)
		}
		s := submissionFor(t, key, "", p.GetAllowedDomains()[:75]...)
		for n := range 320 { // refused, since the identity has no such names, and kept with them all the same
			s.RequestId = fmt.Sprintf("large-%03d", n)
			_, err := w.deployer.SubmitRequest(ctx, s)
			wantFault(t, err, fault.Permanent, "NAME_NOT_OF_IDENTITY", "")
		}
		listed := func(what string, want int, page func(token string) (names []string, next string, err error)) {
			t.Helper()
			seen := map[string]bool{}
			for token := ""; ; {
				names, next, err := page(token)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				for _, name := range names {
					seen[name] = true
				}
				if token = next; token == "" {
					break
				}
				if len(names) == 0 {
					t.Fatalf("%s: an empty page that is not the last", what)
				}
			}
			if len(seen) != want {
				t.Errorf("%s: %d listed, want %d", what, len(seen), want)
			}
		}
		listed("profiles", 26, func(token string) (names []string, next string, err error) {
			r, err := w.operator.ListProfiles(ctx, &issuerv1.ListProfilesRequest{PageSize: 1000, PageToken: token})
			for _, one := range r.GetProfiles() {
				names = append(names, one.GetName())
			}
			return names, r.GetNextPageToken(), err
		})
		listed("requests", 320, func(token string) (names []string, next string, err error) {
			r, err := w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: 1000, PageToken: token})
			for _, one := range r.GetRequests() {
				names = append(names, one.GetId())
			}
			return names, r.GetNextPageToken(), err
		})
	})
}

func TestBadInput(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	w.applyInternal()
	ctx := t.Context()
	sub := func(change func(*issuerv1.SubmitRequestRequest)) func() error {
		return func() error {
			_, err := w.deployer.SubmitRequest(ctx, with(submission(t, "r", "a.example.com"), change))
			return err
		}
	}
	long := strings.Repeat("x", 2000)
	for _, c := range []struct {
		field string
		call  func() error
	}{
		{"request_id", sub(func(s *issuerv1.SubmitRequestRequest) { s.RequestId = "" })},
		{"request_id", sub(func(s *issuerv1.SubmitRequestRequest) { s.RequestId = "a/../b" })},
		{"request_id", sub(func(s *issuerv1.SubmitRequestRequest) { s.RequestId = long })},
		{"identity", sub(func(s *issuerv1.SubmitRequestRequest) { s.Identity = "Sh op" })},
		{"profile", sub(func(s *issuerv1.SubmitRequestRequest) { s.Profile = "" })},
		{"csr", sub(func(s *issuerv1.SubmitRequestRequest) { s.Csr = nil })},
		{"csr", sub(func(s *issuerv1.SubmitRequestRequest) { s.Csr = make([]byte, 16<<10+1) })},
		{"csr", sub(func(s *issuerv1.SubmitRequestRequest) { s.Csr = []byte("hello") })},
		{"replaces", sub(func(s *issuerv1.SubmitRequestRequest) { s.Replaces = "abc" })},
		{"names", sub(func(s *issuerv1.SubmitRequestRequest) { s.Names = nil })},
		{"names", sub(func(s *issuerv1.SubmitRequestRequest) { s.Names.Dns = make([]string, 101) })},
		{"names", sub(func(s *issuerv1.SubmitRequestRequest) { s.Names.Dns = []string{"a..b"} })},
		{"names", sub(func(s *issuerv1.SubmitRequestRequest) { s.Names.Ip = []string{"1.2.3"} })},
		{"reason", sub(func(s *issuerv1.SubmitRequestRequest) { s.Reason = long })},
		{"reason", sub(func(s *issuerv1.SubmitRequestRequest) { s.Reason = "a\x00b" })},
		{"request_id", func() error {
			_, err := w.operator.GetRequest(ctx, &issuerv1.GetRequestRequest{RequestId: "%"})
			return err
		}},
		{"request_id", func() error { _, err := w.operator.CancelRequest(ctx, &issuerv1.CancelRequestRequest{}); return err }},
		{"challenge_id", func() error {
			_, err := w.deployer.ReportChallenge(ctx, &issuerv1.ReportChallengeRequest{})
			return err
		}},
		{"message", func() error {
			_, err := w.deployer.ReportChallenge(ctx, &issuerv1.ReportChallengeRequest{ChallengeId: "x", Message: long})
			return err
		}},
		{"page_size", func() error {
			_, err := w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: -1})
			return err
		}},
		{"page_size", func() error {
			_, err := w.operator.ListProfiles(ctx, &issuerv1.ListProfilesRequest{PageSize: 1001})
			return err
		}},
		{"page_token", func() error {
			_, err := w.operator.ListProfiles(ctx, &issuerv1.ListProfilesRequest{PageToken: "!!"})
			return err
		}},
		{"page_token", func() error {
			_, err := w.operator.ListAuthorities(ctx, &issuerv1.ListAuthoritiesRequest{PageToken: "e30"})
			return err
		}},
		{"page_token", func() error {
			_, err := w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageToken: long})
			return err
		}},
		{"states", func() error {
			_, err := w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{States: []issuerv1.RequestState{99}})
			return err
		}},
		{"identity", func() error {
			_, err := w.operator.ListRequests(ctx, &issuerv1.ListRequestsRequest{Identity: "' OR 1=1"})
			return err
		}},
		{"name", func() error {
			_, err := w.operator.GetAuthority(ctx, &issuerv1.GetAuthorityRequest{Name: "A"})
			return err
		}},
		{"authority", func() error { _, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{}); return err }},
		{"authority.kind", func() error {
			_, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: &issuerv1.Authority{Name: "x"}})
			return err
		}},
		{"authority.internal.key_type", func() error {
			a := internalAuthority()
			a.GetInternal().KeyType = 77
			_, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: a})
			return err
		}},
		{"authority.internal.root_lifetime", func() error {
			a := internalAuthority()
			a.GetInternal().RootLifetime = durationpb.New(-time.Hour)
			_, err := w.operator.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: a})
			return err
		}},
		{"profile", func() error { _, err := w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{}); return err }},
		{"profile.usages", func() error {
			p := internalProfile()
			p.Usages = []typev1.ExtendedKeyUsage{0}
			_, err := w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: p})
			return err
		}},
		{"profile.allowed_domains", func() error {
			p := internalProfile()
			p.AllowedDomains = make([]string, 1001)
			_, err := w.operator.ApplyProfile(ctx, &issuerv1.ApplyProfileRequest{Profile: p})
			return err
		}},
	} {
		err := c.call()
		if f := fault.Of(err); f == nil || f.Kind != fault.InvalidArgument || f.Field != c.field {
			t.Errorf("%s: got %v", c.field, err)
		}
	}
}

func TestCallers(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	clients := map[identity.Role]*grpc.ClientConn{
		identity.RoleOperator: w.address.As(w.domain.Operator("ann")), identity.RoleAgent: w.address.As(w.domain.Agent("web-1")),
		identity.RoleDeployer: w.address.As(w.domain.Service("deployer")), identity.RoleInventory: w.address.As(w.domain.Service("inventory")),
		identity.RoleAudit: w.address.As(w.domain.Service("audit")), identity.RoleIssuer: w.address.As(w.domain.Service("issuer")),
		identity.RoleAnonymous: w.address.Anonymous(),
	}
	denied := 0
	for method, roles := range Methods() {
		for role, conn := range clients {
			err := conn.Invoke(t.Context(), method, &issuerv1.GetAuthorityRequest{}, &issuerv1.GetAuthorityResponse{})
			f := fault.Of(err)
			may := slices.Contains(roles, role)
			no := f != nil && (f.Kind == fault.Denied || f.Kind == fault.Unauthenticated)
			if may == no {
				t.Errorf("%s by %s: %v", method, role, err)
			}
			if no {
				denied++
			}
		}
	}
	w.eventually("each denial is told", func() bool { return len(w.told("call.denied")) == denied })
	for _, e := range w.told("call.denied") {
		if e.GetResult() != eventv1.Result_RESULT_REFUSED || !strings.HasPrefix(e.GetSubject(), "methods/") || e.GetFacts()["peer"] == "" || e.GetReason() == "" || e.GetActor() == "" {
			t.Errorf("event %v", e)
		}
	}
}

// host plays the deployer and the host behind it: it answers every challenge it is told of.
type host struct {
	port    int
	mu      sync.Mutex
	answers map[string]string
	refuse  bool
	ignore  bool
	done    map[string]bool
}

func newHost(t *testing.T) *host {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{port: lis.Addr().(*net.TCPAddr).Port, answers: map[string]string{}, done: map[string]bool{}}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return h
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	text, ok := h.answers[strings.TrimPrefix(r.URL.Path, "/.well-known/acme-challenge/")]
	h.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, text)
}

// attend reports on every challenge presented, until the test ends.
func (h *host) attend(w *world) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for _, e := range w.told("challenge.presented") {
				h.take(ctx, w, e)
			}
			<-time.After(5 * time.Millisecond)
		}
	})
	w.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func (h *host) take(ctx context.Context, w *world, e *eventv1.Event) {
	h.mu.Lock()
	seen, refuse, ignore := h.done[e.GetId()], h.refuse, h.ignore
	h.done[e.GetId()] = true
	c := e.GetChallengePresented()
	if !refuse && !seen {
		h.answers[c.GetToken()] = c.GetKeyAuthorization()
	}
	h.mu.Unlock()
	if seen || ignore {
		return
	}
	_, err := w.deployer.ReportChallenge(ctx, &issuerv1.ReportChallengeRequest{ChallengeId: c.GetChallengeId(), Ready: !refuse, Message: "port 80 is taken"})
	if err != nil && ctx.Err() == nil {
		h.mu.Lock()
		delete(h.done, e.GetId())
		h.mu.Unlock()
	}
}

func (h *host) set(change func(*host)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

func (w *world) applyACME(p *pebbletest.Pebble, change ...func(*issuerv1.AcmeAuthority)) {
	w.t.Helper()
	a := &issuerv1.AcmeAuthority{Directory: p.Directory(), CaBundlePem: p.CABundlePEM(), TermsAgreed: true, Contacts: []string{"mailto:pki@example.com"}}
	for _, c := range change {
		c(a)
	}
	if _, err := w.operator.ApplyAuthority(w.t.Context(), &issuerv1.ApplyAuthorityRequest{Authority: &issuerv1.Authority{Name: "public", Kind: &issuerv1.Authority_Acme{Acme: a}}}); err != nil {
		w.t.Fatal(err)
	}
	profile := internalProfile()
	profile.Authority, profile.Lifetime, profile.AcmeProfile = "public", nil, "default"
	if _, err := w.operator.ApplyProfile(w.t.Context(), &issuerv1.ApplyProfileRequest{Profile: profile}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pebble(h *host, o pebbletest.Options) *pebbletest.Pebble {
	w.t.Helper()
	o.HTTPPort = h.port
	p, err := pebbletest.Start(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Close)
	return p
}

func (w *world) request(id string) *issuerv1.Request {
	w.t.Helper()
	resp, err := w.operator.GetRequest(w.t.Context(), &issuerv1.GetRequestRequest{RequestId: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.GetRequest()
}

func (w *world) await(id string, state issuerv1.RequestState) *issuerv1.Request {
	w.t.Helper()
	var r *issuerv1.Request
	w.eventually("request "+id+" is "+state.String(), func() bool {
		if r = w.request(id); r.GetState() == stateRefused && state != stateRefused {
			w.t.Fatalf("request %s is refused: %s %s", id, r.GetReason(), r.GetMessage())
		}
		return r.GetState() == state
	})
	return r
}

const (
	stateIssued    = issuerv1.RequestState_REQUEST_STATE_ISSUED
	stateRefused   = issuerv1.RequestState_REQUEST_STATE_REFUSED
	stateCancelled = issuerv1.RequestState_REQUEST_STATE_CANCELLED
	stateOrdered   = issuerv1.RequestState_REQUEST_STATE_ORDERED
)

func TestACME(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		w, h := newWorld(t, database), newHost(t)
		p := w.pebble(h, pebbletest.Options{AdviceEvery: time.Second})
		w.applyACME(p)
		h.attend(w)
		resp, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com", "b.example.com"))
		if err != nil || resp.GetRequest().GetState() != issuerv1.RequestState_REQUEST_STATE_ACCEPTED {
			t.Fatal(resp, err)
		}
		r := w.await("r-1", stateIssued)
		leaf := leafOf(t, r.GetChain())
		if len(r.GetChain()) < 2 || r.GetOrderUrl() == "" || r.GetReason() != "" || !slices.Equal(leaf.DNSNames, []string{"a.example.com", "b.example.com"}) {
			t.Errorf("got %v", r)
		}
		w.eventually("all is told", func() bool {
			return len(w.told("request.issued")) == 1 && len(w.told("challenge.withdrawn")) == 2 && len(w.told("certificate.renewal_window_changed")) == 1
		})
		for what, n := range map[string]int{
			"request.accepted": 1, "request.ordering": 1, "request.ordered": 1, "request.authorized": 1, "request.finalizing": 1, "request.refused": 0,
			"challenge.presented": 2, "challenge.ready": 2, "authority.registered": 1, "request.delayed": 0,
		} {
			if got := len(w.told(what)); got != n {
				t.Errorf("%d events %s, want %d", got, what, n)
			}
		}
		issued := w.told("request.issued")[0]
		if !strings.HasSuffix(issued.GetActor(), "/service/issuer") || issued.GetTraceId() != w.told("request.accepted")[0].GetTraceId() {
			t.Errorf("event %v", issued)
		}
		start := time.Now().Add(-time.Hour).Truncate(time.Second)
		if err := p.SetRenewalWindow(t.Context(), leaf, start, start.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		w.eventually("the new window is told", func() bool { return len(w.told("certificate.renewal_window_changed")) == 2 })
		window := w.told("certificate.renewal_window_changed")[1].GetRenewalWindowChanged()
		if !window.GetStart().AsTime().Equal(start) || window.GetFingerprint() != r.GetFingerprint() {
			t.Errorf("window %v", window)
		}
		// Renewal with "replaces", then once more: the CA says no, and it goes on without, visibly.
		for i, id := range []string{"r-2", "r-3"} {
			_, err := w.deployer.SubmitRequest(t.Context(), with(submission(t, id, "a.example.com"), func(s *issuerv1.SubmitRequestRequest) { s.Replaces = r.GetFingerprint() }))
			if err != nil {
				t.Fatal(err)
			}
			w.await(id, stateIssued)
			w.eventually("dropping is told", func() bool { return len(w.told("request.replaces_dropped")) == i })
		}
		if n := p.Issued(); n != 3 {
			t.Errorf("%d certificates", n)
		}
	})
}

func TestACMEBadWindowsChangeNothing(t *testing.T) {
	w, h := newWorld(t, servicetest.SQLite(t)), newHost(t)
	p := w.pebble(h, pebbletest.Options{AdviceEvery: time.Second})
	w.applyACME(p)
	h.attend(w)
	if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, w.await("r-1", stateIssued).GetChain())
	w.eventually("the window is told", func() bool { return len(w.told("certificate.renewal_window_changed")) == 1 })
	now := time.Now()
	if err := p.SetRenewalWindow(t.Context(), leaf, now, now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	before := p.Hits(pebbletest.RenewalInfo)
	w.eventually("the CA is asked again", func() bool { return p.Hits(pebbletest.RenewalInfo) >= before+2 })
	p.Inject(pebbletest.Fault{Path: pebbletest.RenewalInfo, Times: -1, Status: 503, Type: "serverInternal"})
	before = p.Hits(pebbletest.RenewalInfo)
	w.eventually("the CA is asked again", func() bool { return p.Hits(pebbletest.RenewalInfo) >= before+2 })
	p.Heal()
	good := now.Add(24 * time.Hour)
	if err := p.SetRenewalWindow(t.Context(), leaf, good, good.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.eventually("a good window is told", func() bool { return len(w.told("certificate.renewal_window_changed")) == 2 })
}

func TestACMETroubles(t *testing.T) {
	for name, f := range map[string]pebbletest.Fault{
		"503 on newOrder":      {Path: pebbletest.NewOrder, Times: 2, Status: 503, Type: "serverInternal", Detail: "busy"},
		"429 on newOrder":      {Path: pebbletest.NewOrder, Times: 1, Status: 429, Type: "rateLimited", RetryAfter: "1"},
		"502 on the directory": {Path: pebbletest.Directory, Times: 2, Status: 502, Body: "<html>"},
		"502 on the account":   {Path: pebbletest.NewAccount, Times: 2, Status: 502, Body: "<html>"},
		"504 after newOrder":   {Path: pebbletest.NewOrder, Times: 1, After: true, Status: 504},
		"504 after finalize":   {Path: pebbletest.Finalize, Times: 1, After: true, Status: 504},
		"504 before finalize":  {Path: pebbletest.Finalize, Times: 1, Status: 504},
		"503 on download":      {Path: pebbletest.Certificate, Times: 2, Status: 503, Type: "serverInternal"},
		"bad nonces":           {Path: pebbletest.NewOrder, Times: 2, Status: 400, Type: "badNonce"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, h := newWorld(t, servicetest.SQLite(t)), newHost(t)
			p := w.pebble(h, pebbletest.Options{})
			p.Inject(f)
			w.applyACME(p)
			h.attend(w)
			if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
				t.Fatal(err)
			}
			r := w.await("r-1", stateIssued)
			if n := p.Issued(); n != 1 {
				t.Errorf("%d certificates", n)
			}
			if r.GetReason() != "" || r.GetMessage() != "" {
				t.Errorf("trouble that is over: %s %s", r.GetReason(), r.GetMessage())
			}
			w.eventually("the authority is well", func() bool {
				a, err := w.operator.GetAuthority(t.Context(), &issuerv1.GetAuthorityRequest{Name: "public"})
				return err == nil && a.GetAuthority().GetProblem() == ""
			})
		})
	}
}

func TestACMERefusals(t *testing.T) {
	for name, c := range map[string]struct {
		options pebbletest.Options
		fault   pebbletest.Fault
		reason  string
		words   string
	}{
		"rejected name": {options: pebbletest.Options{BlockedDomains: []string{"a.example.com"}}, reason: "CA_REJECTED_IDENTIFIER", words: "a.example.com"},
		"wrong chain":   {fault: pebbletest.Fault{Path: pebbletest.Certificate, Times: -1, Rewrite: func([]byte) []byte { return []byte("<html>") }}, reason: "CHAIN_REFUSED"},
		"account":       {fault: pebbletest.Fault{Path: pebbletest.NewOrder, Times: 1, Status: 403, Type: "unauthorized", Detail: "account is deactivated"}, reason: "CA_ACCOUNT_REFUSED", words: "account is deactivated"},
		"bad CSR":       {fault: pebbletest.Fault{Path: pebbletest.Finalize, Times: 1, Status: 400, Type: "badCSR", Detail: "key is known as compromised"}, reason: "CA_BAD_CSR", words: "compromised"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, h := newWorld(t, servicetest.SQLite(t)), newHost(t)
			p := w.pebble(h, c.options)
			p.Inject(c.fault)
			w.applyACME(p)
			h.attend(w)
			if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
				t.Fatal(err)
			}
			r := w.await("r-1", stateRefused)
			if r.GetReason() != c.reason || !strings.Contains(r.GetMessage(), c.words) || r.GetNextAttempt() != nil {
				t.Errorf("got %v", r)
			}
			w.eventually("it is told", func() bool { return len(w.told("request.refused")) == 1 })
			if e := w.told("request.refused")[0].GetRequestEnded(); e.GetReason() != c.reason || e.GetRequestId() != "r-1" {
				t.Errorf("payload %v", e)
			}
		})
	}
}

func TestACMEHostCannotAnswer(t *testing.T) {
	w, h := newWorld(t, servicetest.SQLite(t)), newHost(t)
	p := w.pebble(h, pebbletest.Options{})
	w.applyACME(p)
	h.set(func(h *host) { h.refuse = true })
	h.attend(w)
	if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
		t.Fatal(err)
	}
	w.eventually("the host is asked again", func() bool { return len(w.told("challenge.presented")) >= 2 && len(w.told("challenge.failed")) >= 2 })
	r := w.request("r-1")
	if r.GetState() != stateOrdered || r.GetReason() != "CHALLENGE_NOT_SERVED" || !strings.Contains(r.GetMessage(), "port 80 is taken") || r.GetAttempts() < 1 {
		t.Errorf("got %v", r)
	}
	h.set(func(h *host) { h.refuse = false })
	w.await("r-1", stateIssued)
	if n := p.Hits(pebbletest.NewOrder); n != 1 {
		t.Errorf("%d orders", n)
	}
}

func TestACMEFailedValidations(t *testing.T) {
	w, h := newWorld(t, servicetest.SQLite(t)), newHost(t)
	p := w.pebble(h, pebbletest.Options{})
	p.Resolve("a.example.com", "127.0.0.9") // where nobody answers
	w.applyACME(p)
	h.attend(w)
	if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
		t.Fatal(err)
	}
	r := w.await("r-1", stateRefused)
	if r.GetReason() != "TOO_MANY_FAILED_ORDERS" || !strings.Contains(r.GetMessage(), "a.example.com") || r.GetAttempts() != 3 {
		t.Errorf("got %v", r)
	}
	if n := p.Hits(pebbletest.NewOrder); n != 3 {
		t.Errorf("%d orders, want one and two more", n)
	}
	w.eventually("the delays are told", func() bool { return len(w.told("request.delayed")) == 2 })
}

func TestACMECancel(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, database db.Config) {
		w, h := newWorld(t, database), newHost(t)
		p := w.pebble(h, pebbletest.Options{})
		w.applyACME(p)
		h.set(func(h *host) { h.ignore = true })
		h.attend(w)
		if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
			t.Fatal(err)
		}
		w.eventually("the challenge is presented", func() bool { return len(w.told("challenge.presented")) == 1 })
		for range 2 {
			resp, err := w.deployer.CancelRequest(t.Context(), &issuerv1.CancelRequestRequest{RequestId: "r-1", Reason: "not needed"})
			if err != nil || resp.GetRequest().GetState() != stateCancelled {
				t.Fatal(resp, err)
			}
		}
		w.eventually("it is told", func() bool { return len(w.told("request.cancelled")) == 1 && len(w.told("challenge.withdrawn")) == 1 })
		if e := w.told("request.cancelled")[0]; e.GetReason() != "not needed" {
			t.Errorf("event %v", e)
		}
		// A late report is no error and changes nothing.
		id := w.told("challenge.presented")[0].GetChallengePresented().GetChallengeId()
		if _, err := w.deployer.ReportChallenge(t.Context(), &issuerv1.ReportChallengeRequest{ChallengeId: id, Ready: true}); err != nil {
			t.Error(err)
		}
		_, err := w.deployer.ReportChallenge(t.Context(), &issuerv1.ReportChallengeRequest{ChallengeId: "never-seen", Ready: true})
		wantFault(t, err, fault.NotFound, "CHALLENGE_NOT_FOUND", "")
		if n := p.Issued(); n != 0 {
			t.Errorf("%d certificates", n)
		}
	})
}

func TestRestartAndKeyFile(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	w.applyInternal()
	if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-1", "a.example.com")); err != nil {
		t.Fatal(err)
	}
	before, err := w.operator.GetAuthority(t.Context(), &issuerv1.GetAuthorityRequest{Name: "corp"})
	if err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.start()
	after, err := w.operator.GetAuthority(t.Context(), &issuerv1.GetAuthorityRequest{Name: "corp"})
	if err != nil || !proto.Equal(before, after) {
		t.Errorf("after a restart: %v, %v", after, err)
	}
	if _, err := w.deployer.SubmitRequest(t.Context(), submission(t, "r-2", "b.example.com")); err != nil {
		t.Fatal(err)
	}
	w.stop()
	deps := Deps{Source: w.domain.Service("issuer"), NATS: w.broker.Connect(), Inventory: w.invConn, Log: servicetest.Log(t)}
	lost := w.cfg
	lost.KeyEncryptionKey = filepath.Join(t.TempDir(), "kek.json")
	if _, err := New(t.Context(), lost, deps); fault.Of(err).Reason != "KEY_FILE_REFUSED" || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("without the key file: %v", err)
	}
	fresh := w.cfg
	fresh.Database = servicetest.SQLite(t)
	fresh.KeyEncryptionKey = lost.KeyEncryptionKey
	s, err := New(t.Context(), fresh, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), lost, deps); fault.Of(err).Reason != "KEY_FILE_REFUSED" || !strings.Contains(err.Error(), "not the one") {
		t.Errorf("with another key file: %v", err)
	}
}
