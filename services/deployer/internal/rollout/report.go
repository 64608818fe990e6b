package rollout

import (
	"time"
)

// Reasons that decide how a failed attempt goes on, or that this package gives itself.
const (
	ReasonServedIsNotAssigned = "SERVED_IS_NOT_ASSIGNED"
	ReasonKeyLost             = "KEY_LOST"
	ReasonChainMismatch       = "CHAIN_MISMATCH"
	ReasonNotServed           = "NOT_SERVED"
	ReasonBroken              = "BROKEN"
)

// Outcome says how an agent's work on a target ended.
type Outcome string

// The outcomes, as in sallyport.agent.v1.Outcome.
const (
	OutcomeServed    Outcome = "served"
	OutcomeInstalled Outcome = "installed"
	OutcomeRestored  Outcome = "restored"
	OutcomeBroken    Outcome = "broken"
	OutcomeDrifted   Outcome = "drifted"
)

// Report is what an agent says about an assignment.
type Report struct {
	ID         string // chosen by the agent, once per report
	Assignment string
	Generation int64
	Attempt    int32
	Outcome    Outcome
	Served     string // fingerprint seen
	Address    string
	Reason     string
	Message    string
	Time       time.Time // by the host's clock
}

// Verdict is what a report changes.
type Verdict struct {
	Event   Event // "" when the state stays
	Stale   bool  // about another generation or attempt, or a state that is over: recorded, no more
	Reason  string
	Message string
}

// Judge says what a report means for the assignment as it stands.
func Judge(a Assignment, r Report) Verdict {
	if r.Generation != a.Generation || r.Attempt != a.Attempt || a.State == Planned || a.State == Withdrawn {
		return Verdict{Stale: true}
	}
	switch r.Outcome {
	case OutcomeServed:
		return judgeServed(a, r)
	case OutcomeInstalled:
		return judgeInstalled(a)
	case OutcomeDrifted:
		return judgeFailure(a, Verdict{Event: Fail, Reason: ReasonServedIsNotAssigned, Message: r.Message})
	case OutcomeBroken:
		return judgeFailure(a, Verdict{Event: Fail, Reason: or(r.Reason, ReasonBroken), Message: r.Message})
	case OutcomeRestored:
		return judgeFailure(a, Verdict{Event: Fail, Reason: or(r.Reason, ReasonNotServed), Message: r.Message})
	}
	return Verdict{Stale: true}
}

func judgeServed(a Assignment, r Report) Verdict {
	if !a.installable() {
		return Verdict{Stale: true}
	}
	if r.Served != a.Certificate.Fingerprint {
		return judgeFailure(a, Verdict{Event: Fail, Reason: ReasonServedIsNotAssigned, Message: or(r.Message, "the agent says served and names another certificate")})
	}
	if a.State == Served {
		return Verdict{}
	}
	return Verdict{Event: Serve}
}

func judgeInstalled(a Assignment) Verdict {
	switch {
	case !a.installable():
		return Verdict{Stale: true}
	case a.State == Served || a.State == Installed:
		return Verdict{}
	}
	return Verdict{Event: Install}
}

// installable says that the agent was given a certificate in this attempt.
func (a Assignment) installable() bool {
	return a.Certificate.Fingerprint != "" && a.State != Assigned && a.State != Requested
}

func judgeFailure(a Assignment, v Verdict) Verdict {
	if a.State == Failed {
		return Verdict{}
	}
	return v
}

// Retry says how a failed attempt goes on: with the same certificate where there is one that still serves, else from a new
// CSR. A certificate whose own renewal is due is not worth installing.
func Retry(a Assignment, now time.Time) Event {
	if a.Certificate.Fingerprint == "" || len(a.Chain) == 0 || a.Reason == ReasonKeyLost || a.Reason == ReasonChainMismatch || a.Renewal.Due(now) {
		return RetryRequest
	}
	return RetryInstall
}

// Pause is the back-off after so many failures in a row. schedule grows; its last step repeats. unit in [0,1) spreads by up
// to a fifth.
func Pause(schedule []time.Duration, failures int, unit float64) time.Duration {
	step := schedule[min(max(failures, 1), len(schedule))-1]
	return step + time.Duration(unit*float64(step)/5)
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
