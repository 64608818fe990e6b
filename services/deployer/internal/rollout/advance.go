package rollout

import (
	"time"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
)

// Step is an event with what it brings; each event reads only its own fields.
type Step struct {
	Event Event

	Spec        Spec             // Plan
	CSR         []byte           // TakeCSR
	Certificate Certificate      // Issue
	Chain       [][]byte         // Issue
	Renewal     renewal.Decision // Issue
	Served      string           // Serve, Install, Fail: fingerprint seen, if any
	Address     string           // Serve, Install, Fail: where, if told
	Reason      string           // Fail
	Message     string           // Fail
	Pause       func(failures int) time.Duration
}

// Advance makes the step, or gives fault.Conflict WRONG_STATE and changes nothing.
func (a *Assignment) Advance(s Step, now time.Time) error {
	next, err := Transitions.Next(a.State, s.Event)
	if err != nil {
		return err
	}
	switch s.Event {
	case Plan:
		a.plan(s.Spec)
	case TakeCSR:
		a.CSR = s.CSR
	case Issue:
		a.Certificate, a.Chain, a.Renewal = s.Certificate, s.Chain, s.Renewal
	case Serve, Install:
		a.see(s)
		a.Previous, a.Replaces = "", ""
		a.settle()
	case Fail:
		a.see(s)
		a.Failures++
		a.Reason, a.Message = s.Reason, s.Message
		a.NextAttempt = now.Add(s.Pause(a.Failures))
	case RetryRequest:
		a.Attempt++
		a.NextAttempt = time.Time{}
		a.CSR, a.Chain, a.Certificate = nil, nil, Certificate{}
	case RetryInstall:
		a.Attempt++
		a.NextAttempt = time.Time{}
	case Assign, Withdraw:
	}
	a.State, a.Updated = next, now
	return nil
}

// plan begins a generation. What was good is remembered until the new one is.
func (a *Assignment) plan(s Spec) {
	if a.Good() {
		a.Previous, a.Replaces = a.Certificate.Fingerprint, a.Certificate.Fingerprint
	}
	if s.Wanted.Identity != a.Spec.Wanted.Identity {
		a.Replaces = "" // only a certificate of the same identity is renewed
	}
	a.Spec = s
	a.Generation++
	a.Attempt = 1
	a.CSR, a.Chain, a.Certificate = nil, nil, Certificate{}
	a.settle()
}

func (a *Assignment) settle() {
	a.Failures, a.Reason, a.Message, a.NextAttempt = 0, "", "", time.Time{}
}

func (a *Assignment) see(s Step) {
	if s.Served != "" {
		a.Served = s.Served
	}
	if s.Address != "" {
		a.Address = s.Address
	}
}
