package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func goodCSR(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"shop.example.com"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func seed(f *testing.F, messages ...proto.Message) {
	f.Helper()
	for _, m := range messages {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

// refusal fails unless err names a field of an invalid argument.
func refusal(t *testing.T, err error) {
	t.Helper()
	if g := fault.Of(err); g.Kind != fault.InvalidArgument || g.Field == "" || len(g.Error()) > 1024 || !utf8.ValidString(g.Error()) {
		t.Fatalf("refused with %+v", g)
	}
}

func clean(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			t.Fatalf("%q got in", s)
		}
	}
}

func FuzzEnroll(f *testing.F) {
	seed(f, &agentv1.EnrollRequest{}, &agentv1.EnrollRequest{TokenId: "abc", TokenSecret: make([]byte, 32), Csr: goodCSR(f), Host: "Web-1.example.com",
		Info: &agentv1.AgentInfo{Version: "v1", Platform: "linux/amd64", Connectors: []string{"nginx"}, Capability: 1}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentv1.EnrollRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		in, err := parseEnroll(&req)
		if err != nil {
			refusal(t, err)
			return
		}
		clean(t, append(in.info.Connectors, in.token, in.join.Host, in.info.Version, in.info.Platform)...)
		if len(in.join.Secret) != 32 || in.join.Key.Hash == "" || in.join.Host != strings.ToLower(in.join.Host) {
			t.Fatalf("%+v", in)
		}
	})
}

func FuzzReturn(f *testing.F) {
	seed(f, &agentv1.ReturnRequest{}, &agentv1.ReturnRequest{Host: "web-1", Csr: goodCSR(f), Time: timestamppb.New(noon), Signature: []byte{1}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentv1.ReturnRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		in, info, err := parseReturn(&req)
		if err != nil {
			refusal(t, err)
			return
		}
		clean(t, in.Host, info.Version, info.Platform)
		if in.Judge(nil, time.Hour, noon) == nil {
			t.Fatal("nobody came back")
		}
	})
}

func FuzzSubmitCSR(f *testing.F) {
	seed(f, &agentv1.SubmitCSRRequest{}, &agentv1.SubmitCSRRequest{Assignment: "0192f0c1-7a3b-7def-8000-0123456789ab", Generation: 1, Attempt: 1, Csr: goodCSR(f)})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentv1.SubmitCSRRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		if err := checkSubmitCSR(&req); err != nil {
			refusal(t, err)
			return
		}
		clean(t, req.GetAssignment())
		if n := len(req.GetCsr()); n == 0 || n > 16<<10 || req.GetGeneration() < 1 || req.GetAttempt() < 1 {
			t.Fatalf("%v", &req)
		}
	})
}

func FuzzReport(f *testing.F) {
	seed(f, &agentv1.ReportAssignmentRequest{}, &agentv1.ReportAssignmentRequest{ReportId: "r", Assignment: "a", Generation: 1, Attempt: 1,
		Outcome: agentv1.Outcome_OUTCOME_RESTORED, Served: strings.Repeat("0", 64), Address: "h:443", Reason: "RELOAD_FAILED", Message: "a\nb", Time: timestamppb.New(noon)})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentv1.ReportAssignmentRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		r, err := parseReport(&req)
		if err != nil {
			refusal(t, err)
			return
		}
		clean(t, r.ID, r.Assignment, r.Served, r.Address, r.Reason, r.Message)
		if r.Outcome == "" || len(r.Message) > maxMessage {
			t.Fatalf("%+v", r)
		}
	})
}

// FuzzSteps: whatever an agent says of its own pace, what is kept of it is bounded, has our names, and never ends before it begins.
func FuzzSteps(f *testing.F) {
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(d)) }
	step := func(k agentv1.StepKind, from, to time.Duration) *agentv1.Step {
		return &agentv1.Step{Kind: k, Begun: at(from), Ended: at(to)}
	}
	seed(f, &agentv1.ReportAssignmentRequest{}, &agentv1.ReportAssignmentRequest{Steps: []*agentv1.Step{
		step(agentv1.StepKind_STEP_KIND_STAGE, 0, time.Millisecond), step(agentv1.StepKind_STEP_KIND_RELOAD, time.Millisecond, time.Second),
		step(agentv1.StepKind_STEP_KIND_INSTALL, 0, time.Minute), {Kind: agentv1.StepKind_STEP_KIND_RESTORE, Begun: at(0), Ended: at(0), Failed: true},
	}}, &agentv1.ReportAssignmentRequest{Steps: []*agentv1.Step{
		step(agentv1.StepKind_STEP_KIND_KEY, time.Second, 0), step(agentv1.StepKind_STEP_KIND_VERIFY, 0, 25*time.Hour), step(99, 0, 1), {},
		{Kind: agentv1.StepKind_STEP_KIND_KEY, Begun: &timestamppb.Timestamp{Seconds: -1 << 62}, Ended: &timestamppb.Timestamp{Seconds: 1 << 62}},
		{Kind: agentv1.StepKind_STEP_KIND_KEY, Begun: &timestamppb.Timestamp{Seconds: -62135596800}, Ended: &timestamppb.Timestamp{Seconds: 253402300799}},
	}}, &agentv1.ReportAssignmentRequest{Steps: slices.Repeat([]*agentv1.Step{step(agentv1.StepKind_STEP_KIND_INSTALL, 0, 1)}, maxSteps+1)})
	names := slices.Collect(maps.Values(stepNames))
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentv1.ReportAssignmentRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		steps := parseSteps(req.GetSteps())
		if len(steps) > maxSteps || len(steps) > len(req.GetSteps()) {
			t.Fatalf("%d steps of %d", len(steps), len(req.GetSteps()))
		}
		for i, s := range steps {
			took := s.Ended.Sub(s.Begun)
			if !slices.Contains(names, s.Name) || took < 0 || took > maxStep || s.Whole != (s.Name == "agent install") || s.Whole && i > 0 && !steps[i-1].Whole {
				t.Fatalf("step %d is kept as %+v", i, s)
			}
		}
	})
}

func FuzzObservation(f *testing.F) {
	seed(f, &agentv1.ReportObservationRequest{}, &agentv1.ReportObservationRequest{ScanId: "s", ScanComplete: true, Time: timestamppb.New(noon), Sightings: []*eventv1.Sighting{
		{Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: "/etc/ssl/a.pem", Chain: [][]byte{{1}}},
		{Role: eventv1.SightingRole_SIGHTING_ROLE_LISTENER, Location: "[::]:443", ServerName: "a.example.com", Chain: [][]byte{make([]byte, 9000), {2}}},
		{Role: 77, Location: "registry", Chain: [][]byte{{1}}},
	}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentv1.ReportObservationRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		h, err := parseObservation(&req, "web-1", noon)
		if err != nil {
			refusal(t, err)
			return
		}
		checkParts(t, &req, h.Observations)
	})
}

// checkParts wants the sightings whole, in parts that fit into events, the last one and only it completing the scan.
func checkParts(t *testing.T, req *agentv1.ReportObservationRequest, parts []*eventv1.HostObserved) {
	t.Helper()
	known := 0
	for _, s := range req.GetSightings() {
		if s.GetRole() == eventv1.SightingRole_SIGHTING_ROLE_FILE || s.GetRole() == eventv1.SightingRole_SIGHTING_ROLE_LISTENER {
			known++
		}
	}
	got := 0
	for i, p := range parts {
		got += len(p.GetSightings())
		if proto.Size(p) > event.MaxSize-4096 {
			t.Fatalf("part %d has %d bytes", i, proto.Size(p))
		}
		if p.GetScanComplete() != (req.GetScanComplete() && i == len(parts)-1) || p.GetScanId() != req.GetScanId() || p.GetHost() != "web-1" {
			t.Fatalf("part %d of %d: %v", i, len(parts), p)
		}
		for _, s := range p.GetSightings() {
			clean(t, s.GetLocation(), s.GetServerName())
		}
	}
	if got != known {
		t.Fatalf("%d of %d sightings", got, known)
	}
}

func TestObservationBounds(t *testing.T) {
	cert := make([]byte, 16<<10)
	one := func(change func(*eventv1.Sighting)) *agentv1.ReportObservationRequest {
		s := &eventv1.Sighting{Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: "/a", Chain: [][]byte{cert}}
		change(s)
		return &agentv1.ReportObservationRequest{ScanId: "s", Sightings: []*eventv1.Sighting{s}}
	}
	many := &agentv1.ReportObservationRequest{ScanId: "s"}
	for range 501 {
		many.Sightings = append(many.Sightings, &eventv1.Sighting{Role: 1, Location: "/a", Chain: [][]byte{{1}}})
	}
	for field, req := range map[string]*agentv1.ReportObservationRequest{
		"sightings":                many,
		"sightings[0].location":    one(func(s *eventv1.Sighting) { s.Location = "" }),
		"sightings[0].server_name": one(func(s *eventv1.Sighting) { s.ServerName = strings.Repeat("a", 254) }),
		"sightings[0].chain":       one(func(s *eventv1.Sighting) { s.Chain = make([][]byte, 11) }),
		"sightings[0].chain[0]":    one(func(s *eventv1.Sighting) { s.Chain = [][]byte{make([]byte, 16<<10+1)} }),
		"scan_id":                  {ScanComplete: true},
		"time":                     {Time: &timestamppb.Timestamp{Nanos: -5}},
		"info.platform":            {Info: &agentv1.AgentInfo{Platform: strings.Repeat("a", 65)}},
	} {
		if _, err := parseObservation(req, "web-1", noon); fault.Of(err) == nil || fault.Of(err).Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
	full := &agentv1.ReportObservationRequest{ScanId: "s", ScanComplete: true}
	for range 25 { // 160 KiB each: what fits into a message
		s := &eventv1.Sighting{Role: 1, Location: "/a"}
		for range 10 {
			s.Chain = append(s.Chain, cert)
		}
		full.Sightings = append(full.Sightings, s)
	}
	h, err := parseObservation(full, "web-1", noon)
	if err != nil {
		t.Fatal(err)
	}
	checkParts(t, full, h.Observations)
	for off, wrong := range map[time.Duration]bool{0: false, 5 * time.Minute: false, 5*time.Minute + 1: true, -5*time.Minute - 1: true} {
		h, err := parseObservation(&agentv1.ReportObservationRequest{Time: timestamppb.New(noon.Add(off))}, "web-1", noon)
		if err != nil || h.ClockWrong != wrong || len(h.Observations) != 1 {
			t.Errorf("off by %s: %+v %v", off, h, err)
		}
	}
}

func TestHeard(t *testing.T) {
	now := noon
	h := newHeard(func() time.Time { return now })
	tell := func(want, wrong bool) {
		t.Helper()
		if got := h.tell("web-1", wrong); got != want {
			t.Fatalf("passed on: %v, want %v", got, want)
		}
	}
	tell(true, false)
	tell(false, false)
	tell(true, true)
	tell(false, true)
	now = now.Add(bareEach)
	tell(true, true)
	h.forget("web-1")
	tell(true, true)
	now = now.Add(-time.Hour) // the clock was put back
	tell(true, true)
	if !h.tell("web-2", true) {
		t.Fatal("another host")
	}
}

func FuzzPageToken(f *testing.F) {
	for _, s := range []string{"", "e30", pageToken("17 abc"), pageToken("web-1"), "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, after, err := page(0, s)
		if err != nil {
			refusal(t, err)
			return
		}
		clean(t, after)
		if _, err := parseTokenPage(after); err != nil {
			refusal(t, err)
		}
	})
}
