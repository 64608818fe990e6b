package rollout

import (
	"cmp"
	"slices"
	"time"
)

// Changes are what a deployment wants of its assignments.
type Changes struct {
	Create   []Spec       // new targets
	Replan   []Replan     // another spec than before: a new generation
	Withdraw []Assignment // whose target is gone
}

// Replan gives an assignment a new spec.
type Replan struct {
	Assignment Assignment
	Spec       Spec
}

// Empty says that all is as wanted.
func (c Changes) Empty() bool { return len(c.Create)+len(c.Replan)+len(c.Withdraw) == 0 }

// Reconcile compares what the deployment wants with the assignments there are, the withdrawn ones left out.
func Reconcile(d Deployment, current []Assignment) Changes {
	var c Changes
	have := make(map[string]Assignment, len(current))
	for _, a := range current {
		if a.State != Withdrawn {
			have[a.Spec.Target.Key()] = a
		}
	}
	for _, t := range d.Targets {
		spec := Spec{Wanted: d.Wanted, Target: t}
		a, ok := have[t.Key()]
		delete(have, t.Key())
		switch {
		case !ok:
			c.Create = append(c.Create, spec)
		case !a.Spec.Equal(spec):
			c.Replan = append(c.Replan, Replan{Assignment: a, Spec: spec})
		}
	}
	for _, a := range have {
		c.Withdraw = append(c.Withdraw, a)
	}
	slices.SortFunc(c.Withdraw, byID)
	return c
}

// Startable lists the planned assignments of one deployment whose turn has come: their agent is there, no more than
// MaxParallel are under way at once, and fewer than MaxFailures targets fail. A renewal that is overdue is not held up by
// others' failures: an old certificate that runs out is the greater harm. An agent that is away takes nobody's place.
func Startable(r Rules, all []Assignment, there func(host string) bool, now time.Time) []Assignment {
	underWay, failing := 0, 0
	var waiting []Assignment
	for _, a := range all {
		if a.UnderWay() && there(a.Spec.Target.Host) {
			underWay++
		}
		if a.Failures > 0 && (a.UnderWay() || a.State == Failed) {
			failing++
		}
		if a.State == Planned && there(a.Spec.Target.Host) {
			waiting = append(waiting, a)
		}
	}
	slices.SortFunc(waiting, func(a, b Assignment) int {
		if u, v := a.overdue(now), b.overdue(now); u != v {
			if u {
				return -1
			}
			return 1
		}
		return byID(a, b)
	})
	var start []Assignment
	for _, a := range waiting {
		if underWay >= r.MaxParallel {
			break
		}
		if failing >= r.MaxFailures && !a.overdue(now) {
			continue
		}
		start = append(start, a)
		underWay++
	}
	return start
}

func byID(a, b Assignment) int { return cmp.Compare(a.ID, b.ID) }

// overdue says that the certificate still in use should have been renewed by now.
func (a Assignment) overdue(now time.Time) bool {
	return !a.Renewal.By.IsZero() && a.Renewal.By.Before(now)
}
