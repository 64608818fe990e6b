package deployer

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-pki/sallyport/internal/monitor"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/session"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sallyport_deployer_"+name, help, labels, nil)
}

var (
	agents       = desc("agents", "Agents by state: enrolled or locked.", "state")
	silent       = desc("agents_silent", "Enrolled agents that were not heard for longer than agents.away_after.")
	lastHeard    = desc("agent_longest_silent_timestamp_seconds", "When the longest silent of the enrolled agents was last heard.")
	assignments  = desc("assignments", "Assignments by state, without the withdrawn.", "state")
	longest      = desc("assignment_oldest_age_seconds", "How long the oldest assignment has been in this state, for states that should not last; 0 when there is none.", "state")
	due          = desc("renewals_due", "Renewals that are due and have not begun.")
	overdue      = desc("renewals_overdue", "Certificates that should have been replaced by now, whether their renewal has begun or not.")
	overdueSince = desc("renewals_overdue_oldest_seconds", "How long the most overdue renewal is past its latest moment; 0 when none is overdue.")
)

// under are the states that are not to last.
var under = []rollout.State{rollout.Planned, rollout.Assigned, rollout.Requested, rollout.Issued, rollout.Failed}

// show lets the monitor show the fleet and what is assigned to it.
func (s *Service) show(streams *session.Streams) error {
	connected := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sallyport_deployer_agents_connected", Help: "Agents that are connected to this replica.",
	}, func() float64 { return float64(streams.Len()) })
	if err := s.deps.Monitor.Register(connected); err != nil {
		return err
	}
	return s.deps.Monitor.Survey(monitor.Survey{
		Name: "fleet", Metrics: []*prometheus.Desc{agents, silent, lastHeard, assignments, longest, due, overdue, overdueSince}, Read: s.survey,
	})
}

func (s *Service) survey(ctx context.Context, sheet *monitor.Sheet) error {
	v, err := s.store.Survey(ctx)
	if err != nil {
		return fmt.Errorf("surveying the deployer: %w", err)
	}
	now := s.deps.Now()
	since := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return max(now.Sub(t).Seconds(), 0)
	}
	for _, state := range []fleet.State{fleet.Enrolled, fleet.Locked} {
		sheet.Gauge(agents, float64(v.Agents[state]), string(state))
	}
	sheet.Gauge(silent, float64(v.Silent))
	sheet.Time(lastHeard, v.LastHeard)
	for _, state := range append([]rollout.State{rollout.Served, rollout.Installed}, under...) {
		sheet.Gauge(assignments, float64(v.Assignments[state]), string(state))
	}
	for _, state := range under {
		sheet.Gauge(longest, since(v.Since[state]), string(state))
	}
	sheet.Gauge(due, float64(v.Due))
	sheet.Gauge(overdue, float64(v.Overdue))
	sheet.Gauge(overdueSince, since(v.OverdueSince))
	return nil
}
