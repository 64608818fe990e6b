// Package intake takes in what other services tell and has it projected.
//
// It guarantees that an event it cannot make sense of harms no other: what is wrong with it is skipped for ever and logged,
// and a sighting whose certificate cannot be read leaves the others of its scan alone.
package intake

import (
	"context"
	"errors"
	"log/slog"
	"time"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Facts lists the subjects of what others did.
func Facts() []string { return []string{event.FactsOf("issuer"), event.FactsOf("deployer")} }

// Observations lists the subjects of what hosts see.
func Observations() []string { return []string{event.ObservationsOf("deployer")} }

// Intake projects events.
type Intake struct {
	Store *store.Store
	Log   *slog.Logger
}

// Handle projects events, in the transaction that notes them as received. Those that are of no interest pass.
func (in Intake) Handle(ctx context.Context, tx db.Tx, events []*eventv1.Event) error {
	var all []catalog.Issued
	known := map[string]catalog.Certificate{}
	for _, e := range events {
		if p := e.GetRequestIssued(); p != nil {
			one, err := issued(e, p, known)
			if err != nil {
				return err
			}
			all = append(all, one)
			continue
		}
		if err := in.one(ctx, tx, e); err != nil {
			return err
		}
	}
	err := in.Store.RecordIssued(ctx, tx, all) // in whatever order, facts add up to the same
	crash.At(crash.Observed)
	return err
}

func (in Intake) one(ctx context.Context, tx db.Tx, e *eventv1.Event) error {
	switch p := e.GetPayload().(type) {
	case *eventv1.Event_AuthorityChanged:
		return in.authority(ctx, tx, e, p.AuthorityChanged)
	case *eventv1.Event_CertificateRevoked:
		r := catalog.Revoked{Fingerprint: p.CertificateRevoked.GetFingerprint(), Reason: int32(p.CertificateRevoked.GetReason())}
		if r.Fingerprint == "" || p.CertificateRevoked.GetRevoked() == nil {
			return bad(e, "no certificate, or no time")
		}
		r.Time = at(p.CertificateRevoked.GetRevoked())
		return in.Store.RecordRevoked(ctx, tx, r)
	case *eventv1.Event_AgentChanged:
		return in.agent(ctx, tx, e, p.AgentChanged)
	case *eventv1.Event_AssignmentChanged:
		return in.assignment(ctx, tx, e, p.AssignmentChanged)
	case *eventv1.Event_HostObserved:
		return in.observed(ctx, tx, e, p.HostObserved)
	}
	return nil
}

func bad(e *eventv1.Event, format string, args ...any) error {
	return fault.New(fault.Permanent, "BAD_EVENT", "event %s: "+format, append([]any{e.GetType()}, args...)...)
}

// at reads a time as it is stored, so that merges compare the same whether or not one side was stored before.
func at(t *timestamppb.Timestamp) time.Time { return t.AsTime().Truncate(time.Microsecond) }

// chain reads what can be read of a chain; the leaf must be. CA certificates that are known are not read again, and those that
// are read become known.
func chain(ders [][]byte, known map[string]catalog.Certificate) (leaf catalog.Certificate, rest []catalog.Certificate, err error) {
	const longest = 16
	if len(ders) == 0 {
		return leaf, nil, errors.New("no certificate")
	}
	if leaf, err = catalog.Read(ders[0]); err != nil {
		return leaf, nil, err
	}
	for _, der := range ders[1:min(len(ders), longest)] {
		c, ok := known[string(der)]
		if !ok {
			if c, err = catalog.Read(der); err != nil {
				continue
			}
			known[string(der)] = c
		}
		rest = append(rest, c)
	}
	return leaf, rest, nil
}

func issued(e *eventv1.Event, p *eventv1.RequestIssued, known map[string]catalog.Certificate) (catalog.Issued, error) {
	leaf, issuers, err := chain(p.GetChain(), known)
	if err != nil {
		return catalog.Issued{}, bad(e, "%w", err)
	}
	return catalog.Issued{
		Leaf: leaf, Issuers: issuers, Request: p.GetRequestId(), Identity: p.GetIdentity(), Profile: p.GetProfile(),
		Authority: p.GetAuthority(), Replaces: p.GetReplaces(), Time: at(e.GetTime()),
	}.Clean(), nil
}

func (in Intake) authority(ctx context.Context, tx db.Tx, e *eventv1.Event, p *eventv1.AuthorityChanged) error {
	if p.GetAuthority() == "" {
		return bad(e, "no authority named")
	}
	a := catalog.Authority{Name: p.GetAuthority(), Time: at(e.GetTime()), Event: e.GetId()}
	for _, der := range p.GetChain() {
		c, err := catalog.Read(der)
		if err != nil {
			return bad(e, "authority %s: %w", p.GetAuthority(), err)
		}
		a.Chain = append(a.Chain, c)
	}
	return in.Store.RecordAuthority(ctx, tx, a)
}

var agentStates = map[eventv1.AgentState]string{
	eventv1.AgentState_AGENT_STATE_ENROLLED: catalog.Enrolled,
	eventv1.AgentState_AGENT_STATE_LOCKED:   catalog.Locked,
	eventv1.AgentState_AGENT_STATE_REMOVED:  catalog.Removed,
}

func (in Intake) agent(ctx context.Context, tx db.Tx, e *eventv1.Event, p *eventv1.AgentChanged) error {
	state, ok := agentStates[p.GetState()]
	if !ok || p.GetHost() == "" {
		return bad(e, "no host, or agent state %s", p.GetState())
	}
	return in.Store.RecordAgent(ctx, tx, catalog.AgentChange{
		Host: p.GetHost(), State: state, Version: p.GetVersion(), Platform: p.GetPlatform(), Time: at(e.GetTime()), Event: e.GetId(),
	}.Clean())
}

func (in Intake) assignment(ctx context.Context, tx db.Tx, e *eventv1.Event, p *eventv1.AssignmentChanged) error {
	if p.GetAssignment() == "" || p.GetHost() == "" || p.GetTarget() == "" || p.GetState() == "" {
		return bad(e, "no assignment, host, target or state")
	}
	g := catalog.Generation{
		Assignment: p.GetAssignment(), Number: p.GetGeneration(), Deployment: p.GetDeployment(), Identity: p.GetIdentity(),
		Host: p.GetHost(), Target: p.GetTarget(), State: p.GetState(), Fingerprint: p.GetFingerprint(), Served: p.GetServed(),
		Address: p.GetAddress(), Time: at(e.GetTime()), Event: e.GetId(),
	}
	if p.GetRenewBy() != nil {
		g.RenewBy = at(p.GetRenewBy())
	}
	return in.Store.RecordAssignment(ctx, tx, g.Clean())
}

var roles = map[eventv1.SightingRole]catalog.Role{
	eventv1.SightingRole_SIGHTING_ROLE_FILE:     catalog.File,
	eventv1.SightingRole_SIGHTING_ROLE_LISTENER: catalog.Listener,
}

func (in Intake) observed(ctx context.Context, tx db.Tx, e *eventv1.Event, p *eventv1.HostObserved) error {
	o, unreadable, err := observation(e, p)
	if err != nil {
		return err
	}
	for location, why := range unreadable {
		in.Log.WarnContext(ctx, "a certificate that was seen cannot be read", "host", o.Host, "location", location, "error", why)
	}
	return in.Store.RecordObservation(ctx, tx, o)
}

// observation reads what a host told, and gives the places whose certificate cannot be read.
func observation(e *eventv1.Event, p *eventv1.HostObserved) (o catalog.Observation, unreadable map[string]error, err error) {
	o = catalog.Observation{Host: p.GetHost(), Time: at(e.GetTime()), Version: p.GetVersion(), Platform: p.GetPlatform(), Scan: p.GetScanId(), Complete: p.GetScanComplete()}
	if p.GetTime() != nil {
		o.Time = at(p.GetTime())
	}
	unreadable = map[string]error{}
	known := map[string]catalog.Certificate{}
	for _, s := range p.GetSightings() {
		leaf, issuers, err := chain(s.GetChain(), known)
		if err != nil {
			unreadable[s.GetLocation()] = err
			continue
		}
		o.Seen = append(o.Seen, catalog.Seen{
			Place: catalog.Place{Role: roles[s.GetRole()], Location: s.GetLocation(), ServerName: s.GetServerName()},
			Leaf:  leaf, Issuers: issuers,
		})
	}
	o, err = o.Check()
	return o, unreadable, err
}
