// Package pace says how long to wait before trying again: exponentially longer
// with full jitter, and never shorter than the server asked for, up to a day.
package pace

import (
	"math/rand/v2"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/rpc"
)

// Pace is the waiting of one activity. It is for one goroutine.
type Pace struct {
	base, max time.Duration
	tries     int
}

// New waits up to base at first, up to most in the end.
func New(base, most time.Duration) Pace { return Pace{base: base, max: most} }

// patience is the least wait after a refusal that a person must lift.
const patience = 30 * time.Second

// longest bounds what a server can ask for.
const longest = 24 * time.Hour

// ReasonKeyUnknown is the server's refusal of a key that another one of this
// agent has just replaced: no person must lift it.
const ReasonKeyUnknown = "KEY_UNKNOWN"

// Refused says whether the server has refused the identity itself that it was
// shown: what it may take instead is the agent's to find.
func Refused(err error) bool {
	f := fault.Of(err)
	return f != nil && (f.Reason == ReasonKeyUnknown || f.Reason == rpc.ReasonCertificateExpired)
}

// Reason is the name of a fault in docs/errors.md; "" for what is this host's own.
func Reason(err error) string {
	if f := fault.Of(err); f != nil && f.Reason != fault.ReasonInternal {
		return f.Reason
	}
	return ""
}

// Asked is how long the server wants to be left alone; zero if it has not said.
func Asked(err error) time.Duration {
	if f := fault.Of(err); f != nil {
		return max(0, min(f.RetryAfter, longest))
	}
	return 0
}

// After says how long to wait after the error. Full jitter (anything from zero
// to the bound) spreads a fleet that lost its server best.
func (p *Pace) After(err error) time.Duration {
	bound := p.max
	if p.tries < 30 && p.base<<p.tries < p.max {
		bound = p.base << p.tries
	}
	p.tries++
	wait := rand.N(bound) + bound/16
	if asked := Asked(err); asked > 0 {
		wait = max(wait, asked) + rand.N(asked/4+1)
	}
	if f := fault.Of(err); f != nil && f.Kind == fault.Denied && f.Reason != ReasonKeyUnknown {
		wait = max(wait, min(patience, p.max))
	}
	return wait
}

// Reset begins again after success.
func (p *Pace) Reset() { p.tries = 0 }

// Passing says whether the same call may succeed later: the peer did not answer,
// is busy, or does not let us in now. Anything else is its answer to the call.
func Passing(err error) bool {
	switch fault.KindOf(err) {
	case fault.Transient, fault.Exhausted, fault.Unauthenticated, fault.Denied, fault.Internal:
		return true
	}
	return false
}
