package issuance

import (
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/fsm"
)

// Challenge is one HTTP-01 challenge (RFC 8555 section 8.3) that a host answers.
type Challenge struct {
	ID               string // ours
	Request          string // the request's id
	URL              string // at the CA
	Authorization    string // URL at the CA
	Domain           string
	Token            string
	KeyAuthorization string
	State            ChallengeState
	Message          string // why the host cannot answer
	Updated          time.Time
}

// ChallengeState is where a challenge stands.
type ChallengeState string

// The states of a challenge.
const (
	// Presented: stored, and the host is asked to answer.
	Presented ChallengeState = "presented"
	// Ready: the host says that it answers.
	Ready ChallengeState = "ready"
	// Triggered: the intent to have the CA look is stored; the CA may or may not have been told.
	Triggered ChallengeState = "triggered"
	// Failed: the host says that it cannot answer.
	Failed ChallengeState = "failed"
	// Withdrawn: no longer needed.
	Withdrawn ChallengeState = "withdrawn"
)

// ChallengeEvent is what moves a challenge.
type ChallengeEvent string

// The events of a challenge.
const (
	Answered     ChallengeEvent = "answered"
	Unanswerable ChallengeEvent = "unanswerable"
	Trigger      ChallengeEvent = "trigger"
	PresentAgain ChallengeEvent = "present again"
	Withdraw     ChallengeEvent = "withdraw"
)

// ChallengeMachine is every transition of a challenge.
var ChallengeMachine = fsm.New(Presented,
	fsm.Transition[ChallengeState, ChallengeEvent]{Event: Answered, From: []ChallengeState{Presented, Failed}, To: Ready},
	fsm.Transition[ChallengeState, ChallengeEvent]{Event: Unanswerable, From: []ChallengeState{Presented, Ready}, To: Failed},
	fsm.Transition[ChallengeState, ChallengeEvent]{Event: Trigger, From: []ChallengeState{Ready}, To: Triggered},
	fsm.Transition[ChallengeState, ChallengeEvent]{Event: PresentAgain, From: []ChallengeState{Failed}, To: Presented},
	fsm.Transition[ChallengeState, ChallengeEvent]{Event: Withdraw, From: []ChallengeState{Presented, Ready, Triggered, Failed}, To: Withdrawn},
)
