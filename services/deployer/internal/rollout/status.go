package rollout

import (
	"fmt"
	"strings"
	"time"
)

// Standing sums a deployment's targets up.
type Standing string

// The standings, as in sallyport.deployer.v1.DeploymentState.
const (
	Progressing Standing = "progressing"
	Healthy     Standing = "healthy"
	Unverified  Standing = "unverified"
	Failing     Standing = "failed"
)

// Summarise derives a deployment's standing from its assignments, the withdrawn ones left out, and says it in words.
// Healthy means that every target was seen to serve what was assigned to it.
func Summarise(d Deployment, all []Assignment, now time.Time) (Standing, string) {
	standing, message := summarise(d, all, now)
	if d.Problem != "" {
		message += "; it will not renew: " + d.Problem
	}
	return standing, message
}

func summarise(d Deployment, all []Assignment, now time.Time) (Standing, string) {
	count := map[State]int{}
	var failed *Assignment
	total := 0
	for i, a := range all {
		if a.State == Withdrawn {
			continue
		}
		total++
		state := a.State
		if state == Served && a.Served != a.Certificate.Fingerprint {
			state = Issued // never call that healthy
		}
		count[state]++
		if state == Failed && failed == nil {
			failed = &all[i]
		}
	}
	done := count[Served] + count[Installed]
	switch {
	case count[Failed] > 0:
		return Failing, sayFailed(d, count, total, failed, now)
	case done < total || total < len(d.Targets):
		return Progressing, sayProgress(d, all, count, total)
	case count[Installed] > 0:
		return Unverified, fmt.Sprintf("%d of %d targets are installed but could not be seen: set \"verify\" to an address that answers on the host", count[Installed], total)
	}
	return Healthy, fmt.Sprintf("%d of %d targets serve what was assigned", total, total)
}

func sayFailed(d Deployment, count map[State]int, total int, a *Assignment, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d targets failed; %s: %s", count[Failed], total, a.Spec.Target.Key(), a.Reason)
	if a.Message != "" {
		fmt.Fprintf(&b, ": %s", a.Message)
	}
	if wait := a.NextAttempt.Sub(now); wait > 0 {
		fmt.Fprintf(&b, "; next attempt in %s", wait.Round(time.Second))
	} else {
		b.WriteString("; next attempt now")
	}
	if count[Planned] > 0 && count[Failed] >= d.Rules.MaxFailures {
		fmt.Fprintf(&b, "; %d targets are not started until it succeeds (max_failures %d)", count[Planned], d.Rules.MaxFailures)
	}
	return b.String()
}

func sayProgress(d Deployment, all []Assignment, count map[State]int, total int) string {
	parts := []string{fmt.Sprintf("%d of %d targets served", count[Served], max(total, len(d.Targets)))}
	for _, p := range []struct {
		state State
		text  string
	}{
		{Planned, "wait for their turn or their agent"},
		{Assigned, "wait for the agent's CSR"},
		{Requested, "wait for the issuer"},
		{Issued, "wait for the agent to install"},
	} {
		if n := count[p.state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, p.text))
		}
	}
	for _, a := range all {
		if a.UnderWay() && a.Failures > 0 {
			parts = append(parts, fmt.Sprintf("%s is at attempt %d after %s", a.Spec.Target.Key(), a.Attempt, a.Reason))
			break
		}
	}
	return strings.Join(parts, "; ")
}
