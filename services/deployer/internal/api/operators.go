package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

const (
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 7 * 24 * time.Hour
	// pageBytes ends a page early, so that a message stays well below its limit.
	pageBytes = 2 << 20
	// A watch pauses after each message for so many times what the message took, within these bounds: a small deployment is
	// followed closely, a large one does not keep the server busy.
	watchPause  = 10
	watchLeast  = 5 * time.Millisecond
	watchMost   = 100 * time.Millisecond
	maxWarnings = 50
)

// operators is sallyport.deployer.v1.DeployerService.
type operators struct {
	deployerv1.UnsafeDeployerServiceServer
	Config
}

// ApplyDeployment creates or changes a deployment.
func (o *operators) ApplyDeployment(ctx context.Context, req *deployerv1.ApplyDeploymentRequest) (*deployerv1.ApplyDeploymentResponse, error) {
	d, err := parseDeployment(req.GetDeployment())
	if err != nil {
		return nil, err
	}
	if err := d.Normalise(); err != nil {
		return nil, err
	}
	was, err := o.Store.Deployment(ctx, d.Name)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, err
	}
	d.Wanted = was.Deployment.Wanted // what it came to, so that an unchanged profile changes nothing
	if d.Wanted, err = o.Peers.Want(ctx, d); err != nil {
		return nil, err
	}
	applied, err := o.Store.Apply(ctx, d, req.GetValidateOnly())
	crash.At(crash.Deployed)
	if err != nil {
		return nil, err
	}
	warnings, err := o.warnings(ctx, d)
	if err != nil {
		return nil, err
	}
	return &deployerv1.ApplyDeploymentResponse{Deployment: o.deployment(applied.View), Changed: applied.Changed, Warnings: warnings}, nil
}

// warnings are about hosts that cannot work on the deployment as they are now.
func (o *operators) warnings(ctx context.Context, d rollout.Deployment) ([]string, error) {
	var hosts []string
	for _, t := range d.Targets {
		if !slices.Contains(hosts, t.Host) {
			hosts = append(hosts, t.Host)
		}
	}
	agents, err := o.Store.AgentsOf(ctx, hosts)
	if err != nil {
		return nil, err
	}
	known := make(map[string]fleet.Agent, len(agents))
	for _, a := range agents {
		known[a.Host] = a
	}
	var list []string
	told := map[string]bool{}
	for _, t := range d.Targets {
		w := warning(t, known)
		if w == "" || told[w] {
			continue
		}
		told[w] = true
		list = append(list, w)
	}
	if n := len(list); n > maxWarnings {
		list = append(list[:maxWarnings], fmt.Sprintf("and %d more", n-maxWarnings))
	}
	return list, nil
}

func warning(t rollout.Target, known map[string]fleet.Agent) string {
	a, ok := known[t.Host]
	switch {
	case !ok:
		return fmt.Sprintf("host %q has not enrolled yet: its targets wait until it does", t.Host)
	case a.State == fleet.Locked:
		return fmt.Sprintf("the agent on host %q is locked: its targets wait until it is unlocked", t.Host)
	case len(a.Info.Connectors) > 0 && !slices.Contains(a.Info.Connectors, t.Connector):
		return fmt.Sprintf("host %q does not enable the connector %q: add it to the host's own configuration", t.Host, t.Connector)
	}
	return ""
}

// GetDeployment shows one with the state of each target.
func (o *operators) GetDeployment(ctx context.Context, req *deployerv1.GetDeploymentRequest) (*deployerv1.GetDeploymentResponse, error) {
	if err := checkRef("name", req.GetName()); err != nil {
		return nil, err
	}
	v, err := o.Store.Deployment(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &deployerv1.GetDeploymentResponse{Deployment: o.deployment(v)}, nil
}

// ListDeployments lists them by name. A page also ends where its message would grow too large.
func (o *operators) ListDeployments(ctx context.Context, req *deployerv1.ListDeploymentsRequest) (*deployerv1.ListDeploymentsResponse, error) {
	if err := errors.Join(checkRef("identity", req.GetIdentity()), checkRef("host", req.GetHost())); err != nil {
		return nil, err
	}
	size, after, err := page(req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	f := store.DeploymentFilter{Identity: req.GetIdentity(), Host: req.GetHost(), After: after, Limit: 50}
	resp, bytes := &deployerv1.ListDeploymentsResponse{}, 0
	for {
		views, err := o.Store.ListDeployments(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, v := range views {
			d := o.deployment(v)
			f.After = d.GetName()
			if len(req.GetStates()) > 0 && !slices.Contains(req.GetStates(), d.GetStatus().GetState()) {
				continue
			}
			resp.Deployments = append(resp.Deployments, d)
			if bytes += proto.Size(d); len(resp.Deployments) == size || bytes > pageBytes {
				resp.NextPageToken = pageToken(d.GetName())
				return resp, nil
			}
		}
		if len(views) < f.Limit {
			return resp, nil
		}
	}
}

// DeleteDeployment withdraws its assignments; what is installed stays where it is.
func (o *operators) DeleteDeployment(ctx context.Context, req *deployerv1.DeleteDeploymentRequest) (*deployerv1.DeleteDeploymentResponse, error) {
	if err := checkRef("name", req.GetName()); err != nil {
		return nil, err
	}
	reason, err := operatorText("reason", req.GetReason())
	if err != nil {
		return nil, err
	}
	if err := o.Store.DeleteDeployment(ctx, req.GetName(), reason); err != nil {
		return nil, err
	}
	crash.At(crash.Withdrawn)
	return &deployerv1.DeleteDeploymentResponse{}, nil
}

// RenewDeployment starts a new generation now.
func (o *operators) RenewDeployment(ctx context.Context, req *deployerv1.RenewDeploymentRequest) (*deployerv1.RenewDeploymentResponse, error) {
	if err := errors.Join(checkRef("name", req.GetName()), checkRef("host", req.GetHost())); err != nil {
		return nil, err
	}
	reason, err := operatorText("reason", req.GetReason())
	if err != nil {
		return nil, err
	}
	if req.GetRequestId() != "" {
		if err := checkID("request_id", req.GetRequestId()); err != nil {
			return nil, err
		}
	}
	list, err := o.Store.Renew(ctx, req.GetName(), req.GetHost(), reason, req.GetRequestId())
	crash.At(crash.RenewalStored)
	if err != nil {
		return nil, err
	}
	resp := &deployerv1.RenewDeploymentResponse{}
	for _, a := range list {
		resp.Assignments = append(resp.Assignments, assignment(a))
	}
	return resp, nil
}

// WatchDeployment streams a deployment whenever it changes, beginning with what is now. Changes in quick succession come as one.
func (o *operators) WatchDeployment(req *deployerv1.WatchDeploymentRequest, out deployerv1.DeployerService_WatchDeploymentServer) error {
	if err := checkRef("name", req.GetName()); err != nil {
		return err
	}
	ctx := out.Context()
	woken := o.Hub.Wait(session.DeploymentKey(req.GetName()))
	defer woken.Stop()
	var last *deployerv1.Deployment
	for {
		begun := time.Now()
		v, err := o.Store.Deployment(ctx, req.GetName())
		if err != nil {
			return ended(ctx, err)
		}
		if d := o.deployment(v); !proto.Equal(d, last) {
			if err := out.Send(&deployerv1.WatchDeploymentResponse{Deployment: d}); err != nil {
				return err
			}
			last = d
		}
		pause := min(max(watchPause*time.Since(begun), watchLeast), watchMost)
		if !wait(ctx, pause, nil) || !wait(ctx, lookAnyway, woken.C) {
			return ended(ctx, ctx.Err())
		}
	}
}

// wait waits for d or a signal; it is false when ctx ended first.
func wait(ctx context.Context, d time.Duration, signal <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-signal:
	}
	return true
}

// ListAssignments lists assignments by deployment and host.
func (o *operators) ListAssignments(ctx context.Context, req *deployerv1.ListAssignmentsRequest) (*deployerv1.ListAssignmentsResponse, error) {
	if err := errors.Join(checkRef("deployment", req.GetDeployment()), checkRef("host", req.GetHost())); err != nil {
		return nil, err
	}
	size, after, err := page(req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	states, err := parseStates(req.GetStates())
	if err != nil {
		return nil, err
	}
	list, err := o.Store.ListAssignments(ctx, store.AssignmentFilter{
		Deployment: req.GetDeployment(), Host: req.GetHost(), States: states, After: after, Limit: size + 1})
	if err != nil {
		return nil, err
	}
	resp, bytes := &deployerv1.ListAssignmentsResponse{}, 0
	for i, a := range list {
		if i == size || bytes > pageBytes {
			resp.NextPageToken = pageToken(list[i-1].ID)
			break
		}
		s := assignment(a)
		resp.Assignments = append(resp.Assignments, s)
		bytes += proto.Size(s)
	}
	return resp, nil
}

// CreateJoinToken makes a one-time token; its secret is shown this once.
func (o *operators) CreateJoinToken(ctx context.Context, req *deployerv1.CreateJoinTokenRequest) (*deployerv1.CreateJoinTokenResponse, error) {
	ttl := defaultTokenTTL
	if d := req.GetTtl(); d != nil && (d.GetSeconds() != 0 || d.GetNanos() != 0) {
		if ttl = d.AsDuration(); d.CheckValid() != nil || ttl < time.Second || ttl > maxTokenTTL {
			return nil, fault.Invalid("ttl", "want 1 second to 7 days")
		}
	}
	host := req.GetHost()
	if host != "" {
		var err error
		if host, err = fleet.ParseHost(host); err != nil {
			return nil, fault.Invalid("host", "%v", err)
		}
	}
	id := make([]byte, 8)
	rand.Read(id)
	text, token, err := o.Granter.Token(hex.EncodeToString(id))
	if err != nil {
		return nil, fault.New(fault.Internal, fault.ReasonInternal, "making a join token: %w", err)
	}
	now := o.Now().UTC().Truncate(time.Microsecond)
	token.Host, token.Created, token.Expires, token.CreatedBy = host, now, now.Add(ttl), identity.FromContext(ctx).ID.String()
	if err := o.Store.CreateToken(ctx, token); err != nil {
		return nil, err
	}
	return &deployerv1.CreateJoinTokenResponse{JoinToken: joinToken(token), Token: text}, nil
}

// ListJoinTokens lists tokens without secrets, newest first.
func (o *operators) ListJoinTokens(ctx context.Context, req *deployerv1.ListJoinTokensRequest) (*deployerv1.ListJoinTokensResponse, error) {
	size, after, err := page(req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	from, err := parseTokenPage(after)
	if err != nil {
		return nil, err
	}
	list, err := o.Store.ListTokens(ctx, from, size+1)
	if err != nil {
		return nil, err
	}
	resp := &deployerv1.ListJoinTokensResponse{}
	for i, t := range list {
		if i == size {
			last := list[i-1]
			resp.NextPageToken = pageToken(fmt.Sprintf("%d %s", last.Created.UnixMicro(), last.ID))
			break
		}
		resp.JoinTokens = append(resp.JoinTokens, joinToken(t))
	}
	return resp, nil
}

// RevokeJoinToken makes a token useless.
func (o *operators) RevokeJoinToken(ctx context.Context, req *deployerv1.RevokeJoinTokenRequest) (*deployerv1.RevokeJoinTokenResponse, error) {
	if err := checkRef("id", req.GetId()); err != nil {
		return nil, err
	}
	if err := o.Store.RevokeToken(ctx, req.GetId()); err != nil {
		return nil, err
	}
	return &deployerv1.RevokeJoinTokenResponse{}, nil
}

// GetAgent shows one agent.
func (o *operators) GetAgent(ctx context.Context, req *deployerv1.GetAgentRequest) (*deployerv1.GetAgentResponse, error) {
	if err := checkRef("host", req.GetHost()); err != nil {
		return nil, err
	}
	a, err := o.Store.Agent(ctx, req.GetHost())
	if err != nil {
		return nil, err
	}
	return &deployerv1.GetAgentResponse{Agent: agent(a)}, nil
}

// ListAgents lists agents by host.
func (o *operators) ListAgents(ctx context.Context, req *deployerv1.ListAgentsRequest) (*deployerv1.ListAgentsResponse, error) {
	size, after, err := page(req.GetPageSize(), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, err := o.Store.ListAgents(ctx, after, size+1)
	if err != nil {
		return nil, err
	}
	resp := &deployerv1.ListAgentsResponse{}
	for i, a := range list {
		if i == size {
			resp.NextPageToken = pageToken(list[i-1].Host)
			break
		}
		resp.Agents = append(resp.Agents, agent(a))
	}
	return resp, nil
}

// LockAgent refuses an agent from now on.
func (o *operators) LockAgent(ctx context.Context, req *deployerv1.LockAgentRequest) (*deployerv1.LockAgentResponse, error) {
	if err := checkRef("host", req.GetHost()); err != nil {
		return nil, err
	}
	reason, err := operatorText("reason", req.GetReason())
	if err != nil {
		return nil, err
	}
	a, err := o.Store.Lock(ctx, req.GetHost(), reason)
	if err != nil {
		return nil, err
	}
	return &deployerv1.LockAgentResponse{Agent: agent(a)}, nil
}

// UnlockAgent lets a locked agent work again.
func (o *operators) UnlockAgent(ctx context.Context, req *deployerv1.UnlockAgentRequest) (*deployerv1.UnlockAgentResponse, error) {
	if err := checkRef("host", req.GetHost()); err != nil {
		return nil, err
	}
	reason, err := operatorText("reason", req.GetReason())
	if err != nil {
		return nil, err
	}
	a, err := o.Store.Unlock(ctx, req.GetHost(), reason)
	if err != nil {
		return nil, err
	}
	return &deployerv1.UnlockAgentResponse{Agent: agent(a)}, nil
}

// RemoveAgent forgets an agent for good; the host may enrol anew.
func (o *operators) RemoveAgent(ctx context.Context, req *deployerv1.RemoveAgentRequest) (*deployerv1.RemoveAgentResponse, error) {
	if err := checkRef("host", req.GetHost()); err != nil {
		return nil, err
	}
	reason, err := operatorText("reason", req.GetReason())
	if err != nil {
		return nil, err
	}
	if err := o.Store.Remove(ctx, req.GetHost(), reason); err != nil {
		return nil, err
	}
	return &deployerv1.RemoveAgentResponse{}, nil
}

// CheckStore examines the deployer's own store.
func (o *operators) CheckStore(req *deployerv1.CheckStoreRequest, stream grpc.ServerStreamingServer[deployerv1.CheckStoreResponse]) error {
	return o.Checker.Run(stream.Context(), req.GetFull(), func(r *typev1.StoreReport) error {
		return stream.Send(&deployerv1.CheckStoreResponse{Report: r})
	})
}
