// Package plan knows what the agent is to do: the desired state as the server
// last said it, kept on disk, how far each assignment has come, and what
// follows from the two.
//
// It guarantees that what is not well formed is refused with a reason and
// stored no further, and that its decisions depend on nothing but their
// arguments.
package plan

import (
	"crypto/x509"
	"fmt"
	"maps"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/internal/trace"
)

// ReasonAssignmentInvalid: what the server assigned makes no sense to this agent.
const ReasonAssignmentInvalid = "ASSIGNMENT_INVALID"

const maxID = 200

// Assignment is what to do for one target.
type Assignment struct {
	apply.Job
	Target      string
	Names       pki.Names
	KeyType     pki.KeyType
	Chain       []*x509.Certificate // none until the certificate is there
	CSRReceived bool
	NotBefore   time.Time
}

var keyTypes = map[typev1.KeyType]pki.KeyType{
	typev1.KeyType_KEY_TYPE_ECDSA_P256: pki.ECDSAP256,
	typev1.KeyType_KEY_TYPE_ECDSA_P384: pki.ECDSAP384,
	typev1.KeyType_KEY_TYPE_RSA_2048:   pki.RSA2048,
	typev1.KeyType_KEY_TYPE_RSA_3072:   pki.RSA3072,
	typev1.KeyType_KEY_TYPE_RSA_4096:   pki.RSA4096,
}

// Parse checks an assignment. Its job is filled in even where the rest is
// refused, so that the refusal can be reported.
func Parse(a *agentv1.Assignment) (Assignment, error) {
	out := Assignment{
		Job: apply.Job{
			Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(),
			Connector: a.GetTarget().GetConnector(), Settings: maps.Clone(a.GetTarget().GetSettings()),
			Trace: traceOf(a.GetTraceparent()),
		},
		Target: a.GetTarget().GetName(), CSRReceived: a.GetCsrReceived(),
	}
	if a.GetNotBefore() != nil {
		out.NotBefore = a.GetNotBefore().AsTime()
	}
	if len(a.GetChain()) > 0 {
		chain, err := pki.ParseChainDER(a.GetChain())
		if err != nil {
			return out, fault.New(fault.Permanent, connector.ReasonChainInvalid, "the certificate cannot be read: %w", err)
		}
		out.Chain = chain
		return out, nil
	}
	kt, ok := keyTypes[a.GetKeyType()]
	if !ok {
		return out, fault.New(fault.Permanent, ReasonAssignmentInvalid, "this agent makes no key of type %s: a newer agent may", a.GetKeyType())
	}
	out.KeyType = kt
	names, err := pki.ParseNames(a.GetNames().GetDns(), a.GetNames().GetIp())
	if err == nil && names.Len() == 0 {
		err = fmt.Errorf("no names")
	}
	if err != nil {
		return out, fault.New(fault.Permanent, ReasonAssignmentInvalid, "names: %w", err)
	}
	out.Names = names
	return out, nil
}

// traceOf takes a traceparent that is one, and "" for any other.
func traceOf(parent string) string {
	l, ok := trace.Parse(parent)
	if !ok {
		return ""
	}
	return l.String()
}

// Step is what to do for an assignment now.
type Step int

// The steps.
const (
	Wait      Step = iota // for the server, or for the moment that Decide gives
	SubmitCSR             // make the key and hand in its CSR
	HoldKey               // the CSR is handed in: see that the key is still there, and wait
	Install               // install the chain, or see that it is active
	Watch                 // see that what was installed is still served
)

// Decide says what to do. last is the latest report about the assignment, nil
// if none was made; until is when to decide again, zero for when something
// changes.
func Decide(a Assignment, last *apply.Report, now time.Time) (step Step, until time.Time) {
	over := Over(a, last)
	switch {
	case over && len(a.Chain) > 0 && (last.Outcome == apply.Served || last.Outcome == apply.Installed || last.Outcome == apply.Drifted):
		return Watch, time.Time{}
	case over: // this attempt has failed: the server makes the next
		return Wait, time.Time{}
	case a.NotBefore.After(now):
		return Wait, a.NotBefore
	case len(a.Chain) > 0:
		return Install, time.Time{}
	case a.CSRReceived:
		return HoldKey, time.Time{}
	}
	return SubmitCSR, time.Time{}
}

// Over says whether the report is the end of this very attempt.
func Over(a Assignment, last *apply.Report) bool {
	return last != nil && last.Generation == a.Generation && last.Attempt == a.Attempt && !setBack(a, last)
}

// Ahead says whether the report is about a later attempt than the server knows of: it was restored from a backup.
func Ahead(a Assignment, last *apply.Report) bool {
	return last != nil && (last.Generation > a.Generation || last.Generation == a.Generation && last.Attempt > a.Attempt)
}

// setBack says whether the server asks for an attempt anew that it has had a
// certificate for: it was restored from a backup and knows nothing of it.
func setBack(a Assignment, last *apply.Report) bool {
	return last.Fingerprint != "" && (len(a.Chain) == 0 || last.Fingerprint != pki.FingerprintOf(a.Chain[0].Raw))
}

// Again says whether the same certificate is to be installed once more, however
// it stands: a higher attempt asks for that.
func Again(a Assignment, last *apply.Report) bool {
	return last != nil && len(a.Chain) > 0 && last.Generation == a.Generation && last.Attempt != a.Attempt &&
		last.Fingerprint == pki.FingerprintOf(a.Chain[0].Raw)
}
