package fleet

import (
	"crypto/x509"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Lost is the time that a store which was restored from a backup does not remember. The zero value is none.
type Lost struct{ From, Until time.Time }

// Covers says whether an SVID was granted in that time. A certificate knows whole seconds only.
func (l Lost) Covers(svid *x509.Certificate) bool {
	if svid == nil || l.Until.IsZero() {
		return false
	}
	granted := identity.Granted(svid)
	return !granted.Before(l.From.Truncate(time.Second)) && !granted.After(l.Until)
}

// Adopt gives the agent with the key of an SVID that it has shown on its connection, which proves that it has the key and that
// the SVID is ours and still valid. It does so only if the SVID was granted in the lost time and lives longer than any that is
// remembered for this agent, so that of several keys the latest wins. a is nil when there is no such agent.
func (l Lost) Adopt(a *Agent, svid *x509.Certificate) (Agent, error) {
	switch {
	case a == nil || a.State == Removed:
		return Agent{}, fault.New(fault.Denied, ReasonAgentUnknown, "no such agent is enrolled: enrol again with a join token")
	case a.State == Locked:
		return Agent{}, locked()
	case !l.Covers(svid) || !svid.NotAfter.After(a.SVIDExpires):
		return Agent{}, KeyUnknown()
	}
	adopted := *a
	adopted.Key = Key{Hash: string(pki.FingerprintOf(svid.RawSubjectPublicKeyInfo)), DER: svid.RawSubjectPublicKeyInfo}
	adopted.Pending = Key{}
	adopted.SVIDExpires = svid.NotAfter
	return adopted, nil
}
