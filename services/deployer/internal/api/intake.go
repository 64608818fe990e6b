package api

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

// Bounds of what agents send.
const (
	maxID         = 128
	maxMessage    = 2 << 10
	maxAddress    = 512
	maxCSR        = 16 << 10
	maxSignature  = 256
	maxInfo       = 64
	maxConnectors = 32
	maxSightings  = 500
	maxLocation   = 1 << 10
	maxServerName = 253
	maxChain      = 10
	maxCert       = 16 << 10
	secretLen     = 32
	// maxPart keeps one part of a scan well below what an event may be.
	maxPart = 320 << 10
	// maxSteps and maxStep bound what an agent says of its own pace.
	maxSteps = 16
	maxStep  = 24 * time.Hour
	// clockSlack is how far a host's clock may be off.
	clockSlack = 5 * time.Minute
	// bareEach is how often a bare heartbeat is passed on.
	bareEach = 50 * time.Second
)

var (
	idPattern          = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
	fingerprintPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	reasonPattern      = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
)

type enroll struct {
	token string
	join  fleet.Join
	info  fleet.Info
}

func parseEnroll(req *agentv1.EnrollRequest) (enroll, error) {
	if err := checkID("token_id", req.GetTokenId()); err != nil {
		return enroll{}, err
	}
	if len(req.GetTokenSecret()) != secretLen {
		return enroll{}, fault.Invalid("token_secret", "want %d bytes", secretLen)
	}
	host, err := fleet.ParseHost(req.GetHost())
	if err != nil {
		return enroll{}, fault.Invalid("host", "%v", err)
	}
	key, err := fleet.ParseCSR(req.GetCsr())
	if err != nil {
		return enroll{}, fault.Invalid("csr", "%v", err)
	}
	info, err := parseInfo("info", req.GetInfo())
	if err != nil {
		return enroll{}, err
	}
	return enroll{token: req.GetTokenId(), join: fleet.Join{Secret: req.GetTokenSecret(), Host: host, Key: key}, info: info}, nil
}

func parseReturn(req *agentv1.ReturnRequest) (fleet.Return, fleet.Info, error) {
	host, err := fleet.ParseHost(req.GetHost())
	if err != nil {
		return fleet.Return{}, fleet.Info{}, fault.Invalid("host", "%v", err)
	}
	if req.GetTime() == nil || req.GetTime().CheckValid() != nil {
		return fleet.Return{}, fleet.Info{}, fault.Invalid("time", "want the moment of signing")
	}
	key, err := fleet.ParseCSR(req.GetCsr())
	if err != nil {
		return fleet.Return{}, fleet.Info{}, fault.Invalid("csr", "%v", err)
	}
	if n := len(req.GetSignature()); n == 0 || n > maxSignature {
		return fleet.Return{}, fleet.Info{}, fault.Invalid("signature", "want an ECDSA signature in ASN.1 form")
	}
	info, err := parseInfo("info", req.GetInfo())
	if err != nil {
		return fleet.Return{}, fleet.Info{}, err
	}
	return fleet.Return{Host: host, CSR: req.GetCsr(), Key: key, Time: req.GetTime().AsTime(), Signature: req.GetSignature()}, info, nil
}

func parseInfo(field string, info *agentv1.AgentInfo) (fleet.Info, error) {
	out := fleet.Info{Capability: info.GetCapability()}
	var err error
	if out.Version, err = agentText(field+".version", info.GetVersion(), maxInfo); err != nil {
		return fleet.Info{}, err
	}
	if out.Platform, err = agentText(field+".platform", info.GetPlatform(), maxInfo); err != nil {
		return fleet.Info{}, err
	}
	if len(info.GetConnectors()) > maxConnectors {
		return fleet.Info{}, fault.Invalid(field+".connectors", "%d given, at most %d are allowed", len(info.GetConnectors()), maxConnectors)
	}
	for i, c := range info.GetConnectors() {
		text, err := agentText(fmt.Sprintf("%s.connectors[%d]", field, i), c, maxInfo)
		if err != nil {
			return fleet.Info{}, err
		}
		out.Connectors = append(out.Connectors, text)
	}
	return out, nil
}

func checkSubmitCSR(req *agentv1.SubmitCSRRequest) error {
	if err := checkAttempt(req.GetAssignment(), req.GetGeneration(), req.GetAttempt()); err != nil {
		return err
	}
	if n := len(req.GetCsr()); n == 0 || n > maxCSR {
		return fault.Invalid("csr", "want a PKCS#10 request of at most %d bytes", maxCSR)
	}
	return nil
}

func checkAttempt(assignment string, generation int64, attempt int32) error {
	if err := checkID("assignment", assignment); err != nil {
		return err
	}
	if generation < 1 {
		return fault.Invalid("generation", "generations begin at 1")
	}
	if attempt < 1 {
		return fault.Invalid("attempt", "attempts begin at 1")
	}
	return nil
}

var outcomes = map[agentv1.Outcome]rollout.Outcome{
	agentv1.Outcome_OUTCOME_SERVED:    rollout.OutcomeServed,
	agentv1.Outcome_OUTCOME_INSTALLED: rollout.OutcomeInstalled,
	agentv1.Outcome_OUTCOME_RESTORED:  rollout.OutcomeRestored,
	agentv1.Outcome_OUTCOME_BROKEN:    rollout.OutcomeBroken,
	agentv1.Outcome_OUTCOME_DRIFTED:   rollout.OutcomeDrifted,
}

func parseReport(req *agentv1.ReportAssignmentRequest) (rollout.Report, error) {
	if err := checkID("report_id", req.GetReportId()); err != nil {
		return rollout.Report{}, err
	}
	if err := checkAttempt(req.GetAssignment(), req.GetGeneration(), req.GetAttempt()); err != nil {
		return rollout.Report{}, err
	}
	outcome, ok := outcomes[req.GetOutcome()]
	if !ok {
		return rollout.Report{}, fault.Invalid("outcome", "%v is not known here", req.GetOutcome())
	}
	if s := req.GetServed(); s != "" && !fingerprintPattern.MatchString(s) {
		return rollout.Report{}, fault.Invalid("served", "want a SHA-256 in lower-case hex")
	}
	if r := req.GetReason(); r != "" && !reasonPattern.MatchString(r) {
		return rollout.Report{}, fault.Invalid("reason", "want UPPER_SNAKE, at most 64")
	}
	address, err := agentText("address", req.GetAddress(), maxAddress)
	if err != nil {
		return rollout.Report{}, err
	}
	message, err := agentText("message", req.GetMessage(), maxMessage)
	if err != nil {
		return rollout.Report{}, err
	}
	out := rollout.Report{ID: req.GetReportId(), Assignment: req.GetAssignment(), Generation: req.GetGeneration(), Attempt: req.GetAttempt(),
		Outcome: outcome, Served: req.GetServed(), Address: address, Reason: req.GetReason(), Message: message}
	if t := req.GetTime(); t != nil {
		if t.CheckValid() != nil {
			return rollout.Report{}, fault.Invalid("time", "is not a moment")
		}
		out.Time = t.AsTime()
	}
	return out, nil
}

// stepNames are the names of agents' spans: nothing that an agent writes becomes one.
var stepNames = map[agentv1.StepKind]string{
	agentv1.StepKind_STEP_KIND_KEY:     "agent key",
	agentv1.StepKind_STEP_KIND_INSTALL: "agent install",
	agentv1.StepKind_STEP_KIND_STAGE:   "agent stage",
	agentv1.StepKind_STEP_KIND_RELOAD:  "agent reload",
	agentv1.StepKind_STEP_KIND_VERIFY:  "agent verify",
	agentv1.StepKind_STEP_KIND_RESTORE: "agent restore",
}

// parseSteps reads how long an agent took. It refuses nothing: what makes no sense is left out, since a trace decides nothing.
func parseSteps(in []*agentv1.Step) []store.AgentStep {
	var out []store.AgentStep
	for _, s := range in[:min(len(in), maxSteps)] {
		name, known := stepNames[s.GetKind()]
		begun, ended := s.GetBegun(), s.GetEnded()
		if !known || begun == nil || ended == nil || begun.CheckValid() != nil || ended.CheckValid() != nil ||
			ended.AsTime().Before(begun.AsTime()) || ended.AsTime().Sub(begun.AsTime()) > maxStep {
			continue
		}
		one := store.AgentStep{Name: name, Begun: begun.AsTime(), Ended: ended.AsTime(), Failed: s.GetFailed(), Whole: s.GetKind() == agentv1.StepKind_STEP_KIND_INSTALL}
		if one.Whole {
			out = append([]store.AgentStep{one}, out...)
		} else {
			out = append(out, one)
		}
	}
	return out
}

// parseObservation checks what a heartbeat or scan brings and packs it into parts that fit into events. Sightings in a role
// that is not known here, from a newer agent, are left out.
func parseObservation(req *agentv1.ReportObservationRequest, host string, now time.Time) (store.Heard, error) {
	info, err := parseInfo("info", req.GetInfo())
	if err != nil {
		return store.Heard{}, err
	}
	out := store.Heard{Host: host, Info: info}
	if t := req.GetTime(); t != nil {
		if t.CheckValid() != nil {
			return store.Heard{}, fault.Invalid("time", "is not a moment")
		}
		out.Clock = t.AsTime()
		off := now.Sub(out.Clock)
		out.ClockWrong = off > clockSlack || off < -clockSlack
	}
	if req.GetScanId() != "" {
		if err := checkID("scan_id", req.GetScanId()); err != nil {
			return store.Heard{}, err
		}
	} else if len(req.GetSightings()) > 0 || req.GetScanComplete() {
		return store.Heard{}, fault.Invalid("scan_id", "sightings belong to a scan: give it an id")
	}
	if n := len(req.GetSightings()); n > maxSightings {
		return store.Heard{}, fault.Invalid("sightings", "%d given, at most %d in one call", n, maxSightings)
	}
	part := func() *eventv1.HostObserved {
		return &eventv1.HostObserved{Host: host, Time: timestamppb.New(now), Version: info.Version, Platform: info.Platform, ScanId: req.GetScanId()}
	}
	current, size := part(), 0
	for i, s := range req.GetSightings() {
		known, err := checkSighting(fmt.Sprintf("sightings[%d]", i), s)
		if err != nil {
			return store.Heard{}, err
		}
		if !known {
			continue
		}
		clean := &eventv1.Sighting{Role: s.GetRole(), Location: s.GetLocation(), ServerName: s.GetServerName(), Chain: s.GetChain()}
		n := proto.Size(clean)
		if size > 0 && size+n > maxPart {
			out.Observations = append(out.Observations, current)
			current, size = part(), 0
		}
		current.Sightings = append(current.Sightings, clean)
		size += n
	}
	current.ScanComplete = req.GetScanComplete()
	out.Observations = append(out.Observations, current)
	return out, nil
}

func checkSighting(field string, s *eventv1.Sighting) (known bool, err error) {
	switch {
	case s.GetLocation() == "" || len(s.GetLocation()) > maxLocation || !plain(s.GetLocation()):
		return false, fault.Invalid(field+".location", "want 1 to %d bytes without control characters", maxLocation)
	case len(s.GetServerName()) > maxServerName || !plain(s.GetServerName()):
		return false, fault.Invalid(field+".server_name", "want at most %d bytes without control characters", maxServerName)
	case len(s.GetChain()) == 0 || len(s.GetChain()) > maxChain:
		return false, fault.Invalid(field+".chain", "want 1 to %d certificates", maxChain)
	}
	for i, der := range s.GetChain() {
		if len(der) == 0 || len(der) > maxCert {
			return false, fault.Invalid(fmt.Sprintf("%s.chain[%d]", field, i), "want a certificate of at most %d bytes", maxCert)
		}
	}
	switch s.GetRole() {
	case eventv1.SightingRole_SIGHTING_ROLE_FILE, eventv1.SightingRole_SIGHTING_ROLE_LISTENER:
		return true, nil
	default:
		return false, nil
	}
}

func checkID(field, id string) error {
	if !idPattern.MatchString(id) {
		return fault.Invalid(field, "want 1 to %d letters, digits and . _ : -", maxID)
	}
	return nil
}

// agentText takes an agent's words: bounded, and with control characters as spaces, since they end in terminals and records.
func agentText(field, s string, limit int) (string, error) {
	if len(s) > limit {
		return "", fault.Invalid(field, "longer than %d bytes", limit)
	}
	if plain(s) {
		return s, nil
	}
	clean := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return clean, nil
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// heard remembers when bare heartbeats were last passed on.
type heard struct {
	now func() time.Time

	mu   sync.Mutex
	last map[string]beat
}

type beat struct {
	at    time.Time
	wrong bool
}

func newHeard(now func() time.Time) *heard { return &heard{now: now, last: map[string]beat{}} }

// tell says whether a bare heartbeat is to be passed on: not so soon after the last one, unless the clock went wrong or right.
func (h *heard) tell(host string, wrong bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	b, ok := h.last[host]
	if ok && b.wrong == wrong && now.Sub(b.at) < bareEach && !now.Before(b.at) {
		return false
	}
	h.last[host] = beat{at: now, wrong: wrong}
	return true
}

// forget makes the next one be passed on.
func (h *heard) forget(host string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.last, host)
}
