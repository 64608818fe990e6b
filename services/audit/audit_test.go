package audit_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// world is the audit service between a broker and its callers.
type world struct {
	t      *testing.T
	broker *servicetest.Broker
	js     jetstream.JetStream
	domain *servicetest.Domain
	config audit.Config
	n      int // events made
}

func newWorld(t *testing.T, c db.Config) *world {
	t.Helper()
	w := &world{t: t, broker: servicetest.NewBroker(t), domain: servicetest.TrustDomain(t)}
	w.config = audit.Config{Database: c, Directory: filepath.Join(t.TempDir(), "audit"), CheckpointInterval: config.Duration(100 * time.Millisecond)}
	js, err := jetstream.New(w.broker.Connect())
	if err != nil {
		t.Fatal(err)
	}
	w.js = js
	if err := event.EnsureStreams(t.Context(), js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) deps() audit.Deps {
	return audit.Deps{Source: w.domain.Service("audit"), NATS: w.broker.Connect(), Log: servicetest.Log(w.t)}
}

// running is one life of the service.
type running struct {
	*audit.Service
	server *servicetest.Server
	client auditv1.AuditServiceClient // ann, an operator
	stop   func()
}

func (w *world) start() *running {
	w.t.Helper()
	s, err := audit.New(w.t.Context(), w.config, w.deps())
	if err != nil {
		w.t.Fatal(err)
	}
	return w.run(s)
}

func (w *world) run(s *audit.Service) *running {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	r := &running{Service: s}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			w.t.Errorf("running: %v", err)
		}
		if err := s.Close(); err != nil {
			w.t.Errorf("closing: %v", err)
		}
	})
	w.t.Cleanup(r.stop)
	r.server = w.domain.Serve("audit", rpc.ServerConfig{Methods: audit.Methods(), OnDenied: s.OnDenied}, s.Register)
	r.client = auditv1.NewAuditServiceClient(r.server.As(w.domain.Operator("ann")))
	return r
}

// fact is a new event of the issuer.
func (w *world) fact(change ...func(*eventv1.Event)) *eventv1.Event {
	w.t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		w.t.Fatal(err)
	}
	w.n++
	e := &eventv1.Event{
		Id: id.String(), Time: timestamppb.New(time.Unix(1_800_000_000+int64(w.n), 0)), Type: "issuer.request.issued",
		Subject: fmt.Sprintf("requests/%d", w.n), Actor: "spiffe://test.example/service/deployer", Result: eventv1.Result_RESULT_SUCCEEDED,
		TraceId: "4bf92f3577b34da6a3ce929d0e0e4736", Facts: map[string]string{"names": "shop.example"},
	}
	for _, c := range change {
		c(e)
	}
	return e
}

func (w *world) facts(n int) []*eventv1.Event {
	all := make([]*eventv1.Event, n)
	for i := range all {
		all[i] = w.fact()
	}
	return all
}

// publish sends events in one message, as the issuer's relay does.
func (w *world) publish(events ...*eventv1.Event) {
	w.t.Helper()
	data, err := proto.Marshal(&eventv1.EventBatch{Events: events})
	if err != nil {
		w.t.Fatal(err)
	}
	w.publishRaw("issuer", data)
}

func (w *world) publishRaw(service string, data []byte) {
	w.t.Helper()
	if _, err := w.js.Publish(w.t.Context(), event.FactsOf(service), data); err != nil {
		w.t.Fatal(err)
	}
}

// list reads all pages.
func (r *running) list(t *testing.T, f *auditv1.RecordFilter, page int32) []auditlog.Record {
	t.Helper()
	var all []auditlog.Record
	last := uint64(1 << 62)
	req := &auditv1.ListRecordsRequest{PageSize: page, Filter: f}
	for {
		resp, err := r.client.ListRecords(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range resp.GetRecords() {
			if rec.GetPosition() >= last {
				t.Fatalf("position %d after %d: not newest first", rec.GetPosition(), last)
			}
			last = rec.GetPosition()
			parsed, err := auditlog.ParseRecord(rec.GetJson())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, parsed)
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return all
		}
	}
}

// await waits until n records are there and gives them, newest first.
// setBack counts the records of a service that found another database than before, if it had told the broker of that one by then.
func (r *running) setBack(t *testing.T) int {
	t.Helper()
	return len(r.list(t, &auditv1.RecordFilter{Type: setBackType}, 1000))
}

const setBackType = "audit.store.set_back"

// await gives the records when there are n, beside those that setBack counts.
func (r *running) await(t *testing.T, n int) []auditlog.Record {
	t.Helper()
	eventually(t, fmt.Sprintf("%d records", n), func() bool {
		newest, err := r.client.ListRecords(t.Context(), &auditv1.ListRecordsRequest{PageSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		had := 0
		if len(newest.GetRecords()) > 0 {
			had = int(newest.GetRecords()[0].GetPosition()) + 1 //nolint:gosec // of thousands
		}
		return had >= n && had >= n+r.setBack(t)
	})
	all := slices.DeleteFunc(r.list(t, nil, 1000), func(rec auditlog.Record) bool { return rec.Type == setBackType })
	if len(all) != n {
		t.Fatalf("%d records, want %d", len(all), n)
	}
	return all
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(25 * time.Millisecond) // a caller may not ask more often than 100 times a second
	defer tick.Stop()
	for end := time.Now().Add(60 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// verify checks the log offline and gives the report.
func (w *world) verify(key string) auditlog.Report {
	w.t.Helper()
	report, err := auditlog.VerifyDir(w.t.Context(), filepath.Join(w.config.Directory, "log"), auditlog.Options{Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

func (r *running) key(t *testing.T) string {
	t.Helper()
	resp, err := r.client.GetCheckpoint(t.Context(), &auditv1.GetCheckpointRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetVerifier()
}

func TestEachFactBecomesOneRecord(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		r := w.start()
		first := w.facts(700)
		w.publish(first[:300]...)
		w.publish(first[200:]...)     // 100 of them again
		w.publish(first[0], first[0]) // twice in one message
		w.publish(append(w.facts(1), first[5])...)
		all := r.await(t, 701)
		seen := map[string]bool{}
		for _, rec := range all {
			seen[rec.ID] = true
		}
		for _, e := range first {
			if !seen[e.GetId()] {
				t.Fatalf("no record of %s", e.GetId())
			}
		}
		key := r.key(t)
		r.stop()
		if report := w.verify(key); report.Records != 701 {
			t.Errorf("%d records in the log", report.Records)
		}

		// The same facts after a restart, and new ones.
		w.publish(first...)
		w.publish(w.facts(10)...)
		r = w.start()
		r.await(t, 711)
		r.stop()
		if report := w.verify(key); report.Records != 711 {
			t.Errorf("%d records in the log after a restart", report.Records)
		}
	})
}

func TestDeniedCallsAreRecorded(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		w := newWorld(t, c)
		r := w.start()
		agent := auditv1.NewAuditServiceClient(r.server.As(w.domain.Agent("web-1")))
		if _, err := agent.ListRecords(t.Context(), &auditv1.ListRecordsRequest{}); status.Code(err) != codes.PermissionDenied {
			t.Fatalf("an agent read the audit log: %v", err)
		}
		rec := r.await(t, 1)[0]
		if rec.Type != "audit.call.denied" || rec.Actor != "spiffe://test.example/agent/web-1" || rec.Result != "refused" || rec.Service != "audit" ||
			rec.Subject != "methods/sallyport.audit.v1.AuditService/ListRecords" || rec.Reason == "" || rec.RequestID == "" || rec.TraceID == "" {
			t.Errorf("recorded %+v", rec)
		}
		if _, err := auditv1.NewAuditServiceClient(r.server.Anonymous()).GetRecord(t.Context(), &auditv1.GetRecordRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Fatalf("anybody read the audit log: %v", err)
		}
		if rec := r.await(t, 2)[0]; rec.Actor != "anonymous" {
			t.Errorf("recorded %+v", rec)
		}
	})
}

// TestMethodsSayWhatTheProtoSays compares the table with the proto's comments, and the server with the table.
func TestMethodsSayWhatTheProtoSays(t *testing.T) {
	proto, err := os.ReadFile("../../proto/sallyport/audit/v1/audit.proto")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string][]identity.Role{}
	for _, m := range regexp.MustCompile(`Callers: ([a-z, ]+)\.\n  rpc (\w+)\(`).FindAllStringSubmatch(string(proto), -1) {
		var roles []identity.Role
		for _, role := range strings.Split(m[1], ", ") {
			roles = append(roles, identity.Role(role))
		}
		said["/sallyport.audit.v1.AuditService/"+m[2]] = roles
	}
	if diff := cmp.Diff(said, audit.Methods()); diff != "" {
		t.Errorf("the proto (-) and the table (+) differ:\n%s", diff)
	}

	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	callers := map[identity.Role]*grpc.ClientConn{
		identity.RoleOperator: r.server.As(w.domain.Operator("ann")), identity.RoleAgent: r.server.As(w.domain.Agent("web-1")),
	}
	for _, service := range identity.Services {
		callers[service] = r.server.As(w.domain.Service(string(service)))
	}
	for _, m := range auditv1.AuditService_ServiceDesc.Methods {
		checkCallers(t, callers, said, m.MethodName, false)
	}
	for _, m := range auditv1.AuditService_ServiceDesc.Streams {
		checkCallers(t, callers, said, m.StreamName, true)
	}
}

func checkCallers(t *testing.T, callers map[identity.Role]*grpc.ClientConn, said map[string][]identity.Role, method string, stream bool) {
	t.Helper()
	method = "/sallyport.audit.v1.AuditService/" + method
	for role, conn := range callers {
		err := invoke(t, conn, method, stream)
		if denied := status.Code(err) == codes.PermissionDenied; denied == slices.Contains(said[method], role) {
			t.Errorf("%s by %s: %v", method, role, err)
		}
	}
}

// invoke calls a method with an empty request and gives its first error.
func invoke(t *testing.T, conn *grpc.ClientConn, method string, stream bool) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	in, out := &auditv1.GetCheckpointRequest{}, &auditv1.GetCheckpointResponse{} // any message reads as empty
	if !stream {
		return conn.Invoke(ctx, method, in, out)
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(in); err != nil {
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if header, err := s.Header(); err != nil || header != nil {
		return err // a stream that is allowed begins, and stays open
	}
	return s.RecvMsg(out)
}

func TestWhatIsNoEventIsRecordedToo(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	w.publishRaw("deployer", []byte("this is no protobuf \xff"))
	good := w.fact()
	w.publish(
		w.fact(func(e *eventv1.Event) { e.Id = "" }),
		w.fact(func(e *eventv1.Event) { e.Time = nil }),
		w.fact(func(e *eventv1.Event) { e.Time = &timestamppb.Timestamp{Seconds: -62135596800} }), // the zero time
		w.fact(func(e *eventv1.Event) { e.Type = "nonsense" }),
		good,
	)
	all := r.await(t, 6)
	if all[0].ID != good.GetId() {
		t.Errorf("newest is %+v", all[0])
	}
	for _, rec := range all[1:] {
		if rec.Type != "audit.event.unreadable" || rec.Result != "failed" || rec.Reason == "" || rec.Facts["message_sha256"] == "" {
			t.Errorf("recorded %+v", rec)
		}
	}
	if all[5].Service != "deployer" || all[1].Facts["event_index"] != "3" {
		t.Errorf("recorded %+v and %+v", all[5], all[1])
	}
}

func TestOfANewerService(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	e := w.fact()
	// A payload (field 99) and a result this program has never heard of.
	e.ProtoReflect().SetUnknown([]byte{0x9a, 0x06, 0x03, 'n', 'e', 'w'})
	e.Result = 17
	w.publish(e)
	rec := r.await(t, 1)[0]
	if rec.Detail["unknown_bytes"] != "6" || rec.Detail["unknown_sha256"] == "" || rec.Result != "result 17" {
		t.Errorf("recorded %+v", rec)
	}
}

func TestLargeEvents(t *testing.T) {
	w := newWorld(t, servicetest.SQLite(t))
	r := w.start()
	big := w.fact(func(e *eventv1.Event) {
		for i := range 100 {
			e.Facts[fmt.Sprintf("fact-%03d", i)] = strings.Repeat("x", 4000)
		}
		e.Subject = "requests/" + strings.Repeat("\x01", 9000)
		e.Reason, e.Actor = e.Subject, e.Subject
	})
	w.publish(big)
	rec := r.await(t, 1)[0]
	if !strings.Contains(rec.Facts["left_out"], "101 facts of") || !strings.Contains(rec.Subject, "(9009 bytes, SHA-256 ") {
		t.Errorf("recorded %+v", rec)
	}
}
