package record

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (f *members) time(name string, t *timestamppb.Timestamp) {
	if t.CheckValid() == nil {
		f.set(name, t.AsTime().Format(auditlog.TimeFormat))
	}
}

// setDetail adds what an event's payload says, in clear; "payload" names its kind.
func (f *members) setDetail(e *eventv1.Event, c *certificates) {
	switch p := e.GetPayload().(type) {
	case *eventv1.Event_RequestIssued:
		f.setIssued(issuedOf(p.RequestIssued), c)
	case *eventv1.Event_RequestEnded:
		f.set("payload", "request_ended")
		f.set("request_id", p.RequestEnded.GetRequestId())
		f.set("reason", p.RequestEnded.GetReason())
		f.set("message", p.RequestEnded.GetMessage())
	case *eventv1.Event_ChallengePresented:
		f.set("payload", "challenge_presented")
		f.set("request_id", p.ChallengePresented.GetRequestId())
		f.set("challenge_id", p.ChallengePresented.GetChallengeId())
		f.set("domain", p.ChallengePresented.GetDomain())
	case *eventv1.Event_ChallengeWithdrawn:
		f.set("payload", "challenge_withdrawn")
		f.set("request_id", p.ChallengeWithdrawn.GetRequestId())
		f.set("challenge_id", p.ChallengeWithdrawn.GetChallengeId())
	case *eventv1.Event_RenewalWindowChanged:
		f.set("payload", "renewal_window_changed")
		f.set("fingerprint", p.RenewalWindowChanged.GetFingerprint())
		f.time("start", p.RenewalWindowChanged.GetStart())
		f.time("end", p.RenewalWindowChanged.GetEnd())
		f.set("explanation_url", p.RenewalWindowChanged.GetExplanationUrl())
	case *eventv1.Event_AgentChanged:
		f.set("payload", "agent_changed")
		f.set("host", p.AgentChanged.GetHost())
		f.set("state", enum(p.AgentChanged.GetState().String(), "AGENT_STATE_"))
		f.set("version", p.AgentChanged.GetVersion())
		f.set("platform", p.AgentChanged.GetPlatform())
	case *eventv1.Event_AssignmentChanged:
		f.set("payload", "assignment_changed")
		assignmentChanged(f, p.AssignmentChanged)
	case *eventv1.Event_HostObserved:
		f.set("payload", "host_observed")
		f.set("host", p.HostObserved.GetHost())
		f.time("time", p.HostObserved.GetTime())
		f.set("scan_id", p.HostObserved.GetScanId())
		f.set("sightings", strconv.Itoa(len(p.HostObserved.GetSightings())))
	case *eventv1.Event_FindingChanged:
		f.set("payload", "finding_changed")
		f.set("rule", p.FindingChanged.GetRule())
		f.set("subject", p.FindingChanged.GetSubject())
		f.set("open", strconv.FormatBool(p.FindingChanged.GetOpen()))
		f.set("severity", p.FindingChanged.GetSeverity())
		f.set("message", p.FindingChanged.GetMessage())
	case *eventv1.Event_CertificateRevoked:
		f.set("payload", "certificate_revoked")
		f.set("fingerprint", p.CertificateRevoked.GetFingerprint())
		f.set("revocation_reason", enum(p.CertificateRevoked.GetReason().String(), "REVOCATION_REASON_"))
		f.time("revoked", p.CertificateRevoked.GetRevoked())
	case *eventv1.Event_AuthorityChanged:
		f.set("payload", "authority_changed")
		authorityChanged(f, p.AuthorityChanged, c)
	}
	// A field or payload of a newer service: not shown, but not hidden either.
	if unknown := e.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		sum := sha256.Sum256(unknown)
		f.set("unknown_bytes", strconv.Itoa(len(unknown)))
		f.set("unknown_sha256", hex.EncodeToString(sum[:]))
	}
}

// issued are the fields of a RequestIssued that are shown.
type issued struct {
	request, identity, profile, authority, replaces string
	chain                                           []string
}

// setIssued adds them in the order of their names, so that nothing is left to be sorted.
func (f *members) setIssued(p issued, c *certificates) {
	var l facts
	var chain string
	if len(p.chain) > 0 {
		l, chain = c.of(p.chain[0]), c.prints(p.chain[1:])
	}
	f.set("authority", p.authority)
	f.set("certificate_subject", l.subject)
	f.set("chain", chain)
	f.set("fingerprint", l.fingerprint)
	f.set("identity", p.identity)
	f.set("issuer", l.issuer)
	f.set("key", l.key)
	f.set("names", l.names)
	f.set("not_after", l.notAfter)
	f.set("not_before", l.notBefore)
	f.set("payload", "request_issued")
	f.set("profile", p.profile)
	f.set("replaces", p.replaces)
	f.set("request_id", p.request)
	f.set("serial", l.serial)
	f.set("spki", l.spki)
	f.set("usages", l.usages)
}

func issuedOf(p *eventv1.RequestIssued) issued {
	return issued{
		request: p.GetRequestId(), identity: p.GetIdentity(), profile: p.GetProfile(), authority: p.GetAuthority(), replaces: p.GetReplaces(),
		chain: strs(p.GetChain()),
	}
}

func strs(chain [][]byte) []string {
	all := make([]string, len(chain))
	for i, der := range chain {
		all[i] = string(der)
	}
	return all
}

func assignmentChanged(f *members, p *eventv1.AssignmentChanged) {
	f.set("assignment", p.GetAssignment())
	f.set("generation", strconv.FormatInt(p.GetGeneration(), 10))
	f.set("deployment", p.GetDeployment())
	f.set("identity", p.GetIdentity())
	f.set("host", p.GetHost())
	f.set("target", p.GetTarget())
	f.set("state", p.GetState())
	f.set("fingerprint", p.GetFingerprint())
	f.set("served", p.GetServed())
	f.set("address", p.GetAddress())
	f.time("renew_by", p.GetRenewBy())
}

func authorityChanged(f *members, p *eventv1.AuthorityChanged, c *certificates) {
	f.set("authority", p.GetAuthority())
	f.set("kind", p.GetKind())
	f.set("chain", c.prints(strs(p.GetChain())))
	issuing(f, p.GetIssuing())
}

func issuing(f *members, c *typev1.Certificate) {
	f.set("fingerprint", c.GetFingerprint())
	f.set("serial", c.GetSerial())
	f.set("certificate_subject", c.GetSubject())
	f.set("issuer", c.GetIssuer())
	f.time("not_before", c.GetNotBefore())
	f.time("not_after", c.GetNotAfter())
	f.set("key", c.GetKey())
	f.set("spki", c.GetSpki())
}

func enum(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
