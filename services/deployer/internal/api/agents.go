package api

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
)

// agents is sallyport.agent.v1.AgentService.
type agents struct {
	agentv1.UnsafeAgentServiceServer
	Config
	heard *heard
}

// Enroll trades a join token and a CSR for the agent's SVID.
func (a *agents) Enroll(ctx context.Context, req *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	in, err := parseEnroll(req)
	if err != nil {
		if fault.Of(err).Field == "host" {
			err = a.Store.RefuseEnrol(ctx, req.GetTokenId(), req.GetHost(), err)
		}
		return nil, err
	}
	if err := a.Store.Enrol(ctx, in.token, in.join, in.info, a.Granter.Expires()); err != nil {
		return nil, err
	}
	grant, err := a.grant(in.join.Host, in.join.Key)
	if err != nil {
		return nil, err
	}
	return &agentv1.EnrollResponse{Grant: grant}, nil
}

// Return gives a known agent whose SVID has expired a new one.
func (a *agents) Return(ctx context.Context, req *agentv1.ReturnRequest) (*agentv1.ReturnResponse, error) {
	in, info, err := parseReturn(req)
	if err != nil {
		if fault.Of(err).Field == "host" {
			err = a.Store.RefuseReturn(ctx, req.GetHost(), err)
		}
		return nil, err
	}
	if err := a.Store.Return(ctx, in, a.ReturnWithin, info, a.Granter.Expires()); err != nil {
		return nil, err
	}
	grant, err := a.grant(in.Host, in.Key)
	if err != nil {
		return nil, err
	}
	return &agentv1.ReturnResponse{Grant: grant}, nil
}

// RenewIdentity gives the caller a fresh SVID.
func (a *agents) RenewIdentity(ctx context.Context, req *agentv1.RenewIdentityRequest) (*agentv1.RenewIdentityResponse, error) {
	host, err := a.host(ctx)
	if err != nil {
		return nil, err
	}
	key, err := fleet.ParseCSR(req.GetCsr())
	if err != nil {
		return nil, fault.Invalid("csr", "%v", err)
	}
	if err := a.Store.RenewIdentity(ctx, host, key, a.Granter.Expires()); err != nil {
		return nil, err
	}
	grant, err := a.grant(host, key)
	if err != nil {
		return nil, err
	}
	return &agentv1.RenewIdentityResponse{Grant: grant}, nil
}

func (a *agents) grant(host string, k fleet.Key) (*agentv1.IdentityGrant, error) {
	crash.At(crash.AgentStored)
	g, err := a.Granter.Grant(host, k)
	if err != nil {
		return nil, fault.New(fault.Internal, fault.ReasonInternal, "granting an identity to %s: %w", host, err)
	}
	crash.At(crash.SVIDSigned)
	return &agentv1.IdentityGrant{Chain: g.Chain, Bundle: g.Bundle, RenewAt: timestamppb.New(g.RenewAt)}, nil
}

// SubmitCSR hands in the CSR for an assignment.
func (a *agents) SubmitCSR(ctx context.Context, req *agentv1.SubmitCSRRequest) (*agentv1.SubmitCSRResponse, error) {
	host, err := a.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkSubmitCSR(req); err != nil {
		return nil, err
	}
	if err := a.Store.TakeCSR(ctx, host, req.GetAssignment(), req.GetGeneration(), req.GetAttempt(), req.GetCsr(), parseSteps(req.GetSteps())...); err != nil {
		return nil, err
	}
	crash.At(crash.CSRStored)
	return &agentv1.SubmitCSRResponse{}, nil
}

// ReportAssignment says how an assignment went.
func (a *agents) ReportAssignment(ctx context.Context, req *agentv1.ReportAssignmentRequest) (*agentv1.ReportAssignmentResponse, error) {
	host, err := a.host(ctx)
	if err != nil {
		return nil, err
	}
	report, err := parseReport(req)
	if err != nil {
		return nil, err
	}
	if err := a.Store.TakeReport(ctx, host, report, parseSteps(req.GetSteps())...); err != nil {
		return nil, err
	}
	crash.At(crash.ReportStored)
	return &agentv1.ReportAssignmentResponse{}, nil
}

// ReportChallenge says whether an ACME challenge can be answered now.
func (a *agents) ReportChallenge(ctx context.Context, req *agentv1.ReportChallengeRequest) (*agentv1.ReportChallengeResponse, error) {
	host, err := a.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkID("challenge", req.GetChallenge()); err != nil {
		return nil, err
	}
	message, err := agentText("message", req.GetMessage(), maxMessage)
	if err != nil {
		return nil, err
	}
	if err := a.Store.ReportChallenge(ctx, host, req.GetChallenge(), req.GetReady(), message); err != nil {
		return nil, err
	}
	return &agentv1.ReportChallengeResponse{}, nil
}

// ReportObservation is the heartbeat, and carries what a scan saw.
func (a *agents) ReportObservation(ctx context.Context, req *agentv1.ReportObservationRequest) (*agentv1.ReportObservationResponse, error) {
	host, err := a.host(ctx)
	if err != nil {
		return nil, err
	}
	now := a.Now()
	seen, err := parseObservation(req, host, now)
	if err != nil {
		return nil, err
	}
	bare := req.GetScanId() == ""
	if !bare || a.heard.tell(host, seen.ClockWrong) {
		if err := a.Store.Hear(ctx, seen); err != nil {
			a.heard.forget(host)
			return nil, err
		}
	}
	return &agentv1.ReportObservationResponse{Time: timestamppb.New(now)}, nil
}
