// Package api answers the deployer's two gRPC services: operators' and agents'.
//
// It guarantees that what reaches the domain is well formed and bounded, and that an agent acts on itself alone: which host
// it is comes from its SVID. It translates; deciding is left to the domain packages, keeping to package store.
package api

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/check"
)

// Methods says who may call what, as the "Callers:" comments of the protos.
func Methods() map[string][]identity.Role {
	anonymous, agent, operator := []identity.Role{identity.RoleAnonymous}, []identity.Role{identity.RoleAgent}, []identity.Role{identity.RoleOperator}
	return map[string][]identity.Role{
		deployerv1.DeployerService_ApplyDeployment_FullMethodName:  operator,
		deployerv1.DeployerService_GetDeployment_FullMethodName:    operator,
		deployerv1.DeployerService_ListDeployments_FullMethodName:  operator,
		deployerv1.DeployerService_DeleteDeployment_FullMethodName: operator,
		deployerv1.DeployerService_RenewDeployment_FullMethodName:  operator,
		deployerv1.DeployerService_WatchDeployment_FullMethodName:  operator,
		deployerv1.DeployerService_ListAssignments_FullMethodName:  operator,
		deployerv1.DeployerService_CreateJoinToken_FullMethodName:  operator,
		deployerv1.DeployerService_ListJoinTokens_FullMethodName:   operator,
		deployerv1.DeployerService_RevokeJoinToken_FullMethodName:  operator,
		deployerv1.DeployerService_GetAgent_FullMethodName:         operator,
		deployerv1.DeployerService_ListAgents_FullMethodName:       operator,
		deployerv1.DeployerService_LockAgent_FullMethodName:        operator,
		deployerv1.DeployerService_UnlockAgent_FullMethodName:      operator,
		deployerv1.DeployerService_RemoveAgent_FullMethodName:      operator,
		deployerv1.DeployerService_CheckStore_FullMethodName:       operator,
		agentv1.AgentService_Enroll_FullMethodName:                 anonymous,
		agentv1.AgentService_Return_FullMethodName:                 anonymous,
		agentv1.AgentService_RenewIdentity_FullMethodName:          agent,
		agentv1.AgentService_Subscribe_FullMethodName:              agent,
		agentv1.AgentService_SubmitCSR_FullMethodName:              agent,
		agentv1.AgentService_ReportAssignment_FullMethodName:       agent,
		agentv1.AgentService_ReportChallenge_FullMethodName:        agent,
		agentv1.AgentService_ReportObservation_FullMethodName:      agent,
	}
}

// Config is what the handlers need; all but ReturnWithin is required.
type Config struct {
	Store     *store.Store
	Peers     *peer.Peers
	Checker   *check.Checker
	Hub       *session.Hub
	Streams   *session.Streams
	Admission *session.Admission
	Standing  *fleet.Standing
	Granter   *fleet.Granter
	Replica   string
	// ReturnWithin is how long after its SVID ran out an agent may come back; 0 means never.
	ReturnWithin time.Duration
	// Heartbeat and Scan are what agents are told.
	Heartbeat time.Duration
	Scan      time.Duration
	// Start is told the name of a deployment whose assignments may get their turn; it must not wait.
	Start func(deployment string)
	Now   func() time.Time
	Log   *slog.Logger
}

// API holds both services.
type API struct {
	operators *operators
	agents    *agents
}

// New validates c.
func New(c Config) (*API, error) {
	if c.Store == nil || c.Peers == nil || c.Checker == nil || c.Hub == nil || c.Streams == nil || c.Admission == nil || c.Standing == nil || c.Granter == nil ||
		c.Replica == "" || c.Heartbeat <= 0 || c.Scan <= 0 || c.Start == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("api.New: every field but ReturnWithin is required")
	}
	return &API{
		operators: &operators{Config: c},
		agents:    &agents{Config: c, heard: newHeard(c.Now)},
	}, nil
}

// Register adds both services to a server.
func (a *API) Register(r grpc.ServiceRegistrar) {
	deployerv1.RegisterDeployerServiceServer(r, a.operators)
	agentv1.RegisterAgentServiceServer(r, a.agents)
}

// host is the calling agent's, from its SVID. A key used for the first time takes over here.
func (a *agents) host(ctx context.Context) (string, error) {
	c := identity.FromContext(ctx)
	if c.Role != identity.RoleAgent {
		return "", fault.New(fault.Denied, "ROLE_NOT_ALLOWED", "only an agent may call this")
	}
	if a.Standing.Pending(c) {
		if err := a.Store.Promote(ctx, c.Name, c.Key); err != nil {
			return "", err
		}
	}
	return c.Name, nil
}
