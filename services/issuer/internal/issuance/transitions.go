package issuance

import "github.com/sallyport-pki/sallyport/services/internal/fsm"

// State is where a request stands. Each is defined by what survives a crash.
type State string

// The states.
const (
	// Accepted: checked and stored; no CA knows of it, or what one knew is over for good.
	Accepted State = "accepted"
	// Ordering: the intent to order is stored; the CA may or may not have an order.
	Ordering State = "ordering"
	// Ordered: the CA has an order; authorizations are being proved.
	Ordered State = "ordered"
	// Authorized: all authorizations are valid.
	Authorized State = "authorized"
	// Finalizing: the intent to finalize is stored; the CA may or may not have issued.
	Finalizing State = "finalizing"
	// Issued: the certificate is stored.
	Issued State = "issued"
	// Refused by policy or by the CA, for good.
	Refused State = "refused"
	// Cancelled: given up by the submitter before anything was issued.
	Cancelled State = "cancelled"
)

// Event is what moves a request.
type Event string

// The events.
const (
	// BeginOrder records the intent to order.
	BeginOrder Event = "begin order"
	// HaveOrder records the order the CA has made.
	HaveOrder Event = "have order"
	// Authorize records that the CA is ready to issue.
	Authorize Event = "authorize"
	// BeginFinalize records the intent to finalize.
	BeginFinalize Event = "begin finalize"
	// Issue records the certificate.
	Issue Event = "issue"
	// Reorder records that the order is over without a certificate and another will be made.
	Reorder Event = "reorder"
	// Refuse ends the request.
	Refuse Event = "refuse"
	// Cancel ends the request. Not while Finalizing: the CA may have issued.
	Cancel Event = "cancel"
)

// Machine is every transition there is.
var Machine = fsm.New(Accepted,
	fsm.Transition[State, Event]{Event: BeginOrder, From: []State{Accepted}, To: Ordering},
	fsm.Transition[State, Event]{Event: HaveOrder, From: []State{Ordering}, To: Ordered},
	fsm.Transition[State, Event]{Event: Authorize, From: []State{Ordered}, To: Authorized},
	fsm.Transition[State, Event]{Event: BeginFinalize, From: []State{Authorized}, To: Finalizing},
	fsm.Transition[State, Event]{Event: Issue, From: []State{Accepted, Finalizing}, To: Issued},
	fsm.Transition[State, Event]{Event: Reorder, From: []State{Ordered, Authorized, Finalizing}, To: Accepted},
	fsm.Transition[State, Event]{Event: Refuse, From: []State{Accepted, Ordering, Ordered, Authorized, Finalizing}, To: Refused},
	fsm.Transition[State, Event]{Event: Cancel, From: []State{Accepted, Ordering, Ordered, Authorized}, To: Cancelled},
)
