package describe

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
	"github.com/sallyport-pki/sallyport/internal/config"
)

func deployment(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Deployer().GetDeployment(ctx, &deployerv1.GetDeploymentRequest{Name: name})
	if err != nil {
		return err
	}
	d := r.GetDeployment()
	owner := ""
	if id, err := c.Inventory().GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: d.GetIdentity()}); err == nil {
		owner = id.GetIdentity().GetOwner()
	}
	p.Field("Name", d.GetName()).
		Field("Identity", d.GetIdentity()).
		Field("Owner", owner).
		Field("Profile", d.GetProfile()).
		Field("Key type", cmp.Or(manifest.KeyTypeName(d.GetKeyType()), "the profile's first")).
		Field("Names", cmp.Or(kind.Names(d.GetNames(), 0), "all of the identity's")).
		Field("Rollout", rollout(d.GetRollout())).
		Field("Renewal", renewal(d.GetRenewal())).
		Time("Created", d.GetCreated()).
		Field("State", output.Word(d.GetStatus().GetState())).
		Field("Served", kind.Served(d)).
		Field("Message", d.GetStatus().GetMessage())
	for _, s := range d.GetStatus().GetAssignments() {
		assignment(p, s)
	}
	return nil
}

func assignment(p *Page, s *deployerv1.AssignmentStatus) {
	p.Section(fmt.Sprintf("Target %s/%s", output.Clean(s.GetTarget().GetHost()), output.Clean(s.GetTarget().GetName())))
	add := func(label, value string) { p.field(1, label, value) }
	add("Connector", s.GetTarget().GetConnector())
	add("Settings", kind.Labels(s.GetTarget().GetSettings()))
	state := output.Word(s.GetState())
	if g := s.GetGeneration(); g > 0 {
		state += fmt.Sprintf(", generation %d, attempt %d", g, s.GetAttempt())
	}
	add("State", state)
	if s.GetReason() != "" || s.GetMessage() != "" {
		add("Trouble", strings.TrimSpace(fmt.Sprintf("%s %s", s.GetMessage(), bracket(s.GetReason()))))
	}
	add("Next attempt", output.Stamp(p.Now, s.GetNextAttempt()))
	add("Assigned", s.GetFingerprint())
	served := s.GetServed()
	switch {
	case served == "":
	case served == s.GetFingerprint():
		served = "the assigned one, at " + s.GetAddress()
	default:
		served += " at " + s.GetAddress() + " (not the assigned one)"
	}
	add("Served", served)
	add("Before it", s.GetPrevious())
	add("Expires", output.Stamp(p.Now, s.GetNotAfter()))
	renews := output.Stamp(p.Now, s.GetRenewAt())
	if renews != "" && s.GetRenewReason() != "" {
		renews += ", because: " + s.GetRenewReason()
	}
	add("Renews", renews)
	add("Request", s.GetRequestId())
	add("Changed", output.Stamp(p.Now, s.GetUpdated()))
	add("Assignment", s.GetId())
}

func bracket(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

func rollout(r *deployerv1.Rollout) string {
	return fmt.Sprintf("%d targets at once, stop after %d failures", cmp.Or(r.GetMaxParallel(), 10), cmp.Or(r.GetMaxFailures(), 1))
}

func renewal(r *deployerv1.Renewal) string {
	switch {
	case r.GetDisabled():
		return "never by itself"
	case r.GetBeforeExpiry().AsDuration() > 0:
		return config.Duration(r.GetBeforeExpiry().AsDuration()).String() + " before the end"
	}
	return "by the rule"
}

func agent(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Deployer().GetAgent(ctx, &deployerv1.GetAgentRequest{Host: name})
	if err != nil {
		return err
	}
	m := r.GetAgent()
	connected := "no"
	if m.GetConnected() {
		connected = "yes"
	}
	p.Field("Host", m.GetHost()).
		Field("State", output.Word(m.GetState())).
		Field("Locked because", m.GetLockReason()).
		Field("Connected", connected).
		Time("Last seen", m.GetLastSeen()).
		Time("Enrolled", m.GetEnrolled()).
		Time("SVID expires", m.GetSvidExpires()).
		Field("Version", m.GetVersion()).
		Field("Platform", m.GetPlatform()).
		Field("Connectors", strings.Join(m.GetConnectors(), ", "))
	return assignmentsTable(ctx, c, p, &deployerv1.ListAssignmentsRequest{Host: m.GetHost(), PageSize: 100})
}

func assignmentsTable(ctx context.Context, c *connect.Client, p *Page, q *deployerv1.ListAssignmentsRequest) error {
	r, err := c.Deployer().ListAssignments(ctx, q)
	if err != nil {
		return err
	}
	t := &output.Table{Columns: []string{"DEPLOYMENT", "TARGET", "STATE", "GEN", "EXPIRES", "TROUBLE"}}
	for _, s := range r.GetAssignments() {
		t.Add(s.GetDeployment(), s.GetTarget().GetHost()+"/"+s.GetTarget().GetName(), output.Word(s.GetState()),
			fmt.Sprint(s.GetGeneration()), output.Until(p.Now, s.GetNotAfter()), s.GetReason())
	}
	return p.Table("Assignments", t)
}
