//go:build linux

package reconcile

import (
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/apply"
	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
)

func TestJudge(t *testing.T) {
	ca := connectortest.NewCA(t)
	pair, other := ca.Pair(t, "x.test"), ca.Pair(t, "x.test")
	has := connector.Found{Chain: pair.Chain(), Key: pair.Key()}
	hasOther := connector.Found{Chain: other.Chain(), Key: other.Key()}
	for i, c := range []struct {
		found   connector.Found
		view    connector.View
		last    apply.Outcome
		outcome apply.Outcome
		reason  string
	}{
		{has, connector.Right, apply.Served, apply.Served, ""},
		{has, connector.Right, apply.Installed, apply.Served, ""},
		{has, connector.Right, apply.Drifted, apply.Served, ""},
		{has, connector.Wrong, apply.Served, apply.Drifted, ReasonServedOther},
		{has, connector.Wrong, apply.Installed, apply.Drifted, ReasonServedOther},
		{has, connector.CannotSee, apply.Served, apply.Served, "as before"},
		{has, connector.CannotSee, apply.Installed, apply.Installed, apply.ReasonCannotSee},
		{has, connector.CannotSee, apply.Drifted, apply.Installed, apply.ReasonCannotSee},
		{hasOther, connector.Right, apply.Served, apply.Drifted, ReasonFilesChanged},
		{hasOther, connector.Wrong, apply.Served, apply.Drifted, ReasonServedOther},
		{hasOther, connector.CannotSee, apply.Served, apply.Drifted, ReasonFilesChanged},
		{connector.Found{Empty: true}, connector.CannotSee, apply.Served, apply.Drifted, ReasonFilesChanged},
		{connector.Found{Chain: pair.Chain(), Problem: "no key"}, connector.Right, apply.Served, apply.Drifted, ReasonFilesChanged},
	} {
		last := apply.Report{Outcome: c.last, Reason: "as before"}
		v := judge(c.found, pair.Leaf(), connector.Sight{View: c.view, Served: "f"}, last)
		if v.Outcome != c.outcome || v.Reason != c.reason || v.Served != "f" {
			t.Errorf("case %d: %+v", i, v)
		}
		if v.Outcome == apply.Drifted && v.Message == "" {
			t.Errorf("case %d: without a message", i)
		}
	}
}
