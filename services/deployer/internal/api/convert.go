package api

import (
	"encoding/base64"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/peer"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/store"
)

const (
	defaultPage = 100
	maxPage     = 1000
	maxReason   = 1 << 10
)

// page reads what every list call has.
func page(size int32, token string) (int, string, error) {
	switch {
	case size < 0 || size > maxPage:
		return 0, "", fault.Invalid("page_size", "want 0 (for %d) to %d", defaultPage, maxPage)
	case size == 0:
		size = defaultPage
	}
	after, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(after) > 512 || !plain(string(after)) {
		return 0, "", fault.Invalid("page_token", "is none of ours: take next_page_token of the page before")
	}
	return int(size), string(after), nil
}

func pageToken(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

func parseTokenPage(after string) (store.TokenAfter, error) {
	if after == "" {
		return store.TokenAfter{}, nil
	}
	var us int64
	var id string
	if n, err := fmt.Sscanf(after, "%d %s", &us, &id); err != nil || n != 2 {
		return store.TokenAfter{}, fault.Invalid("page_token", "is none of ours: take next_page_token of the page before")
	}
	return store.TokenAfter{Created: time.UnixMicro(us).UTC(), ID: id}, nil
}

// checkRef bounds a name that only refers to something: whether that exists is for the store to say.
func checkRef(field, s string) error {
	if len(s) > maxServerName || !plain(s) {
		return fault.Invalid(field, "is no name: want at most %d bytes without control characters", maxServerName)
	}
	return nil
}

func operatorText(field, s string) (string, error) {
	if len(s) > maxReason {
		return "", fault.Invalid(field, "longer than %d bytes", maxReason)
	}
	if !plain(s) {
		return "", fault.Invalid(field, "has a control character")
	}
	return s, nil
}

func parseDeployment(in *deployerv1.Deployment) (rollout.Deployment, error) {
	if in == nil {
		return rollout.Deployment{}, fault.Invalid("deployment", "is missing")
	}
	d := rollout.Deployment{
		Name: in.GetName(), Identity: in.GetIdentity(), Profile: in.GetProfile(), KeyType: peer.ParseKeyType(in.GetKeyType()), ETag: in.GetEtag(),
		Rules: rollout.Rules{MaxParallel: int(in.GetRollout().GetMaxParallel()), MaxFailures: int(in.GetRollout().GetMaxFailures())},
	}
	var err error
	if d.Names, err = peer.ParseNames(in.GetNames()); err != nil {
		return rollout.Deployment{}, fault.Invalid("deployment.names", "%v", err)
	}
	if len(in.GetTargets()) > rollout.MaxTargets {
		return rollout.Deployment{}, fault.Invalid("deployment.targets", "%d targets, at most %d are allowed", len(in.GetTargets()), rollout.MaxTargets)
	}
	for _, t := range in.GetTargets() {
		d.Targets = append(d.Targets, rollout.Target{Name: t.GetName(), Host: t.GetHost(), Connector: t.GetConnector(), Settings: t.GetSettings()})
	}
	d.Renewal.Disabled = in.GetRenewal().GetDisabled()
	if b := in.GetRenewal().GetBeforeExpiry(); b != nil {
		if b.CheckValid() != nil || b.AsDuration() <= 0 {
			return rollout.Deployment{}, fault.Invalid("deployment.renewal.before_expiry", "want a positive duration, or leave it out")
		}
		d.Renewal.Before = b.AsDuration().Truncate(time.Microsecond)
	}
	return d, nil
}

func (o *operators) deployment(v store.View) *deployerv1.Deployment {
	d := v.Deployment
	out := &deployerv1.Deployment{
		Name: d.Name, Identity: d.Identity, Profile: d.Profile, KeyType: peer.FormatKeyType(d.KeyType), Etag: d.ETag, Created: moment(d.Created),
		Rollout: &deployerv1.Rollout{MaxParallel: int32(d.Rules.MaxParallel), MaxFailures: int32(d.Rules.MaxFailures)},
	}
	if d.Names.Len() > 0 {
		out.Names = peer.FormatNames(d.Names)
	}
	for _, t := range d.Targets {
		out.Targets = append(out.Targets, target(t))
	}
	if d.Renewal != (renewal.Rule{}) {
		out.Renewal = &deployerv1.Renewal{Disabled: d.Renewal.Disabled}
		if d.Renewal.Before > 0 {
			out.Renewal.BeforeExpiry = durationpb.New(d.Renewal.Before)
		}
	}
	standing, message := rollout.Summarise(d, v.Assignments, o.Now())
	out.Status = &deployerv1.DeploymentStatus{State: standings[standing], Message: message}
	for _, a := range v.Assignments {
		out.Status.Assignments = append(out.Status.Assignments, assignment(a))
	}
	return out
}

var standings = map[rollout.Standing]deployerv1.DeploymentState{
	rollout.Progressing: deployerv1.DeploymentState_DEPLOYMENT_STATE_PROGRESSING,
	rollout.Healthy:     deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY,
	rollout.Unverified:  deployerv1.DeploymentState_DEPLOYMENT_STATE_UNVERIFIED,
	rollout.Failing:     deployerv1.DeploymentState_DEPLOYMENT_STATE_FAILED,
}

var states = map[rollout.State]deployerv1.AssignmentState{
	rollout.Planned:   deployerv1.AssignmentState_ASSIGNMENT_STATE_PLANNED,
	rollout.Assigned:  deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED,
	rollout.Requested: deployerv1.AssignmentState_ASSIGNMENT_STATE_REQUESTED,
	rollout.Issued:    deployerv1.AssignmentState_ASSIGNMENT_STATE_ISSUED,
	rollout.Served:    deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED,
	rollout.Installed: deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED,
	rollout.Failed:    deployerv1.AssignmentState_ASSIGNMENT_STATE_FAILED,
	rollout.Withdrawn: deployerv1.AssignmentState_ASSIGNMENT_STATE_WITHDRAWN,
}

func parseStates(in []deployerv1.AssignmentState) ([]rollout.State, error) {
	var out []rollout.State
next:
	for i, want := range in {
		for s, have := range states {
			if have == want {
				out = append(out, s)
				continue next
			}
		}
		return nil, fault.Invalid(fmt.Sprintf("states[%d]", i), "%v is no state", want)
	}
	return out, nil
}

func target(t rollout.Target) *deployerv1.Target {
	return &deployerv1.Target{Name: t.Name, Host: t.Host, Connector: t.Connector, Settings: t.Settings}
}

func assignment(a rollout.Assignment) *deployerv1.AssignmentStatus {
	out := &deployerv1.AssignmentStatus{
		Id: a.ID, Deployment: a.Deployment, Target: target(a.Spec.Target), Generation: a.Generation, Attempt: a.Attempt, State: states[a.State],
		Fingerprint: a.Certificate.Fingerprint, NotAfter: moment(a.Certificate.NotAfter), Served: a.Served, Address: a.Address,
		Previous: a.Previous, Reason: a.Reason, Message: a.Message, NextAttempt: moment(a.NextAttempt), Updated: moment(a.Updated),
	}
	if a.Certificate.Fingerprint != "" {
		out.RenewAt, out.RenewReason = moment(a.Renewal.At), a.Renewal.Reason
	}
	if a.CSR != nil {
		out.RequestId = a.RequestID()
	}
	return out
}

func joinToken(t fleet.Token) *deployerv1.JoinToken {
	return &deployerv1.JoinToken{Id: t.ID, Host: t.Host, Expires: moment(t.Expires), UsedBy: t.UsedBy, Used: moment(t.Used), Revoked: t.Revoked,
		CreatedBy: t.CreatedBy, Created: moment(t.Created)}
}

func agent(a fleet.Agent) *deployerv1.Agent {
	state := deployerv1.AgentState_AGENT_STATE_ENROLLED
	if a.State == fleet.Locked {
		state = deployerv1.AgentState_AGENT_STATE_LOCKED
	}
	return &deployerv1.Agent{Host: a.Host, State: state, Version: a.Info.Version, Platform: a.Info.Platform, Connectors: a.Info.Connectors,
		Enrolled: moment(a.Enrolled), LastSeen: moment(a.LastSeen), Connected: a.Connected, SvidExpires: moment(a.SVIDExpires), LockReason: a.LockReason}
}

// moment leaves the zero time out.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
