package rollout

import "github.com/sallyport-pki/sallyport/services/internal/fsm"

// State is where an assignment stands; each is defined by what survives a crash.
type State string

// The states, as in sallyport.deployer.v1.AssignmentState.
const (
	Planned   State = "planned"   // stored; waits for its turn in the rollout
	Assigned  State = "assigned"  // given to the agent; waits for its CSR
	Requested State = "requested" // the CSR is stored; waits for the issuer
	Issued    State = "issued"    // the certificate is stored and given to the agent; waits for its report
	Served    State = "served"    // installed and seen served
	Installed State = "installed" // installed, could not be seen
	Failed    State = "failed"    // this attempt failed; the next begins at NextAttempt
	Withdrawn State = "withdrawn" // no longer wanted
)

// Event is what moves an assignment.
type Event string

// The events.
const (
	Plan         Event = "plan"          // a new generation: what is wanted changed, or renewal is due
	Assign       Event = "assign"        // its turn has come
	TakeCSR      Event = "take csr"      // the agent handed in a CSR that is right
	Issue        Event = "issue"         // the issuer delivered the certificate
	Serve        Event = "serve"         // the agent saw the certificate served
	Install      Event = "install"       // the agent installed it and cannot see
	Fail         Event = "fail"          // the attempt went wrong, at the agent or at the issuer
	RetryRequest Event = "retry request" // the pause is over: a new attempt from the CSR on
	RetryInstall Event = "retry install" // the pause is over: a new attempt with the same certificate
	Withdraw     Event = "withdraw"      // the target is no longer wanted
)

// Transitions is the machine. A report for another generation or attempt than the present one never gets here.
var Transitions = fsm.New(Planned,
	fsm.Transition[State, Event]{Event: Assign, From: []State{Planned}, To: Assigned},
	fsm.Transition[State, Event]{Event: TakeCSR, From: []State{Assigned}, To: Requested},
	fsm.Transition[State, Event]{Event: Issue, From: []State{Requested}, To: Issued},
	fsm.Transition[State, Event]{Event: Serve, From: []State{Issued, Installed, Failed}, To: Served},
	fsm.Transition[State, Event]{Event: Install, From: []State{Issued, Failed}, To: Installed},
	fsm.Transition[State, Event]{Event: Fail, From: []State{Assigned, Requested, Issued, Served, Installed}, To: Failed},
	fsm.Transition[State, Event]{Event: RetryRequest, From: []State{Failed}, To: Assigned},
	fsm.Transition[State, Event]{Event: RetryInstall, From: []State{Failed}, To: Issued},
	fsm.Transition[State, Event]{Event: Plan, From: []State{Planned, Assigned, Requested, Issued, Served, Installed, Failed}, To: Planned},
	fsm.Transition[State, Event]{Event: Withdraw, From: []State{Planned, Assigned, Requested, Issued, Served, Installed, Failed}, To: Withdrawn},
)
