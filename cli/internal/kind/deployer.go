package kind

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func deployments() *Kind {
	type T = *deployerv1.Deployment
	var (
		filter deployerv1.ListDeploymentsRequest
		states enumsFlag[deployerv1.DeploymentState]
	)
	return &Kind{
		Singular: "deployment", Plural: "deployments", Aliases: []string{"deploy", "dep"}, Appliable: true,
		name: named(T.GetName),
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&filter.Identity, "identity", "", "only of this identity")
			fs.StringVar(&filter.Host, "host", "", "only with a target on this host")
			fs.Var(&states, "state", "only in these states, parted by commas: "+strings.Join(states.Words(), ", "))
		},
		Columns: []Column{
			column("NAME", text(T.GetName)),
			column("IDENTITY", text(T.GetIdentity)),
			column("PROFILE", text(T.GetProfile)),
			column("STATE", text(func(m T) string { return output.Word(m.GetStatus().GetState()) })),
			column("SERVED", text(Served)),
			column("EXPIRES", func(m T, now time.Time) string {
				return output.Until(now, soonest(m, (*deployerv1.AssignmentStatus).GetNotAfter))
			}),
			column("RENEWS", func(m T, now time.Time) string {
				return output.Until(now, soonest(m, (*deployerv1.AssignmentStatus).GetRenewAt))
			}),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
			wide("HOSTS", text(deploymentHosts)),
			wide("MESSAGE", text(func(m T) string { return m.GetStatus().GetMessage() })),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Deployer().GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: name})
			return r.GetDeployment(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Deployer().ListDeployments(ctx, &deployerv1.ListDeploymentsRequest{
				PageSize: size, PageToken: token, Identity: filter.GetIdentity(), Host: filter.GetHost(), States: states.vs,
			})
			return untyped(r.GetDeployments()), r.GetNextPageToken(), err
		},
		Delete: func(ctx context.Context, c *connect.Client, name, reason string) error {
			_, err := c.Deployer().DeleteDeployment(ctx, &deployerv1.DeleteDeploymentRequest{Name: name, Reason: reason})
			return err
		},
		DeleteHint: "its assignments are withdrawn and nothing is renewed; what is installed on hosts stays there",
	}
}

// Served is "2/3": targets seen serving what was assigned, of all.
func Served(m *deployerv1.Deployment) string {
	n := 0
	for _, a := range m.GetStatus().GetAssignments() {
		if a.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(m.GetTargets()))
}

func soonest(m *deployerv1.Deployment, at func(*deployerv1.AssignmentStatus) *timestamppb.Timestamp) *timestamppb.Timestamp {
	var first *timestamppb.Timestamp
	for _, a := range m.GetStatus().GetAssignments() {
		if t := at(a); t != nil && (first == nil || t.AsTime().Before(first.AsTime())) {
			first = t
		}
	}
	return first
}

func deploymentHosts(m *deployerv1.Deployment) string {
	var all []string
	for _, t := range m.GetTargets() {
		if !slices.Contains(all, t.GetHost()) {
			all = append(all, t.GetHost())
		}
	}
	return strings.Join(all, ",")
}

func assignments() *Kind {
	type T = *deployerv1.AssignmentStatus
	var (
		filter deployerv1.ListAssignmentsRequest
		states enumsFlag[deployerv1.AssignmentState]
	)
	return &Kind{
		Singular: "assignment", Plural: "assignments", Aliases: []string{"as"},
		name: named(T.GetId),
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&filter.Deployment, "deployment", "", "only of this deployment")
			fs.StringVar(&filter.Host, "host", "", "only on this host")
			fs.Var(&states, "state", "only in these states, parted by commas: "+strings.Join(states.Words(), ", "))
		},
		Columns: []Column{
			column("ID", text(T.GetId)),
			column("DEPLOYMENT", text(T.GetDeployment)),
			column("HOST", text(func(m T) string { return m.GetTarget().GetHost() })),
			column("TARGET", text(func(m T) string { return m.GetTarget().GetName() })),
			column("STATE", text(func(m T) string { return output.Word(m.GetState()) })),
			column("GEN", text(func(m T) string { return fmt.Sprint(m.GetGeneration()) })),
			column("EXPIRES", func(m T, now time.Time) string { return output.Until(now, m.GetNotAfter()) }),
			column("RENEWS", func(m T, now time.Time) string { return output.Until(now, m.GetRenewAt()) }),
			column("REASON", text(T.GetReason)),
			wide("ASSIGNED", text(func(m T) string { return Short(m.GetFingerprint()) })),
			wide("SERVED", text(func(m T) string { return Short(m.GetServed()) })),
			wide("ADDRESS", text(T.GetAddress)),
			wide("WHY", text(T.GetRenewReason)),
			wide("NEXT-TRY", func(m T, now time.Time) string { return output.Until(now, m.GetNextAttempt()) }),
			wide("MESSAGE", text(T.GetMessage)),
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Deployer().ListAssignments(ctx, &deployerv1.ListAssignmentsRequest{
				PageSize: size, PageToken: token, Deployment: filter.GetDeployment(), Host: filter.GetHost(), States: states.vs,
			})
			return untyped(r.GetAssignments()), r.GetNextPageToken(), err
		},
	}
}

func agents() *Kind {
	type T = *deployerv1.Agent
	return &Kind{
		Singular: "agent", Plural: "agents",
		name: named(T.GetHost),
		Columns: []Column{
			column("HOST", text(T.GetHost)),
			column("STATE", text(func(m T) string { return output.Word(m.GetState()) })),
			column("CONNECTED", text(func(m T) string { return yes(m.GetConnected()) })),
			column("LAST-SEEN", func(m T, now time.Time) string { return output.Age(now, m.GetLastSeen()) }),
			column("VERSION", text(T.GetVersion)),
			column("PLATFORM", text(T.GetPlatform)),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetEnrolled()) }),
			wide("CONNECTORS", text(func(m T) string { return strings.Join(m.GetConnectors(), ",") })),
			wide("SVID-EXPIRES", func(m T, now time.Time) string { return output.Until(now, m.GetSvidExpires()) }),
			wide("LOCK-REASON", text(T.GetLockReason)),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Deployer().GetAgent(ctx, &deployerv1.GetAgentRequest{Host: name})
			return r.GetAgent(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Deployer().ListAgents(ctx, &deployerv1.ListAgentsRequest{PageSize: size, PageToken: token})
			return untyped(r.GetAgents()), r.GetNextPageToken(), err
		},
		Delete: func(ctx context.Context, c *connect.Client, name, reason string) error {
			_, err := c.Deployer().RemoveAgent(ctx, &deployerv1.RemoveAgentRequest{Host: name, Reason: reason})
			return err
		},
		DeleteHint: "the agent is refused from now on; its host may enrol again with a new token",
	}
}

func tokens() *Kind {
	type T = *deployerv1.JoinToken
	return &Kind{
		Singular: "token", Plural: "tokens",
		name: named(T.GetId),
		Columns: []Column{
			column("ID", text(T.GetId)),
			column("HOST", text(func(m T) string {
				if m.GetHost() == "" {
					return "any"
				}
				return m.GetHost()
			})),
			column("STATE", tokenState),
			column("EXPIRES", func(m T, now time.Time) string { return output.Until(now, m.GetExpires()) }),
			column("USED-BY", text(T.GetUsedBy)),
			column("CREATED-BY", text(func(m T) string { return Actor(m.GetCreatedBy()) })),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Deployer().ListJoinTokens(ctx, &deployerv1.ListJoinTokensRequest{PageSize: size, PageToken: token})
			return untyped(r.GetJoinTokens()), r.GetNextPageToken(), err
		},
		Delete: func(ctx context.Context, c *connect.Client, name, _ string) error {
			_, err := c.Deployer().RevokeJoinToken(ctx, &deployerv1.RevokeJoinTokenRequest{Id: name})
			return err
		},
		DeleteHint: "no agent can enrol with the token any more",
	}
}

func tokenState(m *deployerv1.JoinToken, now time.Time) string {
	switch {
	case m.GetRevoked():
		return "revoked"
	case m.GetUsed() != nil:
		return "used"
	case m.GetExpires() != nil && !m.GetExpires().AsTime().After(now):
		return "expired"
	}
	return "unused"
}

// Actor is a SPIFFE ID without its trust domain, which is the same for all.
func Actor(id string) string {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return id
	}
	if _, path, ok := strings.Cut(rest, "/"); ok {
		return path
	}
	return id
}
