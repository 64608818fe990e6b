package catalog

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Generation is the newest that was told of one assignment in one generation.
type Generation struct {
	Assignment  string
	Number      int64
	Deployment  string
	Identity    string
	Host        string
	Target      string
	State       string // as in sallyport.deployer.v1.AssignmentState, lower case
	Fingerprint string // assigned, "" until issued
	Served      string // seen served when last verified, "" when not seen
	Address     string // where it is verified: "host:port" or a file path
	RenewBy     time.Time
	Time        time.Time
	Event       string
}

const (
	stateIssued    = "issued"
	stateServed    = "served"
	stateInstalled = "installed"
	stateFailed    = "failed"
	stateWithdrawn = "withdrawn"
)

// atListener says that the generation is verified by a TLS handshake, not by reading a file.
func atListener(address string) bool {
	return strings.Contains(address, ":") && !strings.HasPrefix(address, "/")
}

// Placement tells since when a certificate was in place by an assignment: reported installed, and reported served by a
// listener. It holds even if the assignment fails later: then something else has taken its place.
type Placement struct {
	Host        string
	Assignment  string
	Fingerprint string
	Placed      time.Time
	Served      time.Time // zero: never
}

// Placement is what the generation says of its certificate being in place; ok is false when it does not.
func (g Generation) Placement() (p Placement, ok bool) {
	if g.Fingerprint == "" || g.State != stateServed && g.State != stateInstalled {
		return p, false
	}
	p = Placement{Host: g.Host, Assignment: g.Assignment, Fingerprint: g.Fingerprint, Placed: g.Time}
	if g.State == stateServed && g.Served == g.Fingerprint && atListener(g.Address) {
		p.Served = g.Time
	}
	return p, true
}

// report is the certificate that the generation tells was seen, "" for none. What was seen in an earlier one is carried along
// until something else is, so it counts only in states that say that somebody has looked. placed: its own was in place before.
func (g Generation) report(placed bool) string {
	switch {
	case g.State == stateServed, g.State == stateFailed, placed && g.State == stateIssued, g.State == stateInstalled && g.Served == g.Fingerprint:
		return g.Served
	}
	return ""
}

// Newer says whether g was told after o: by time, and by event id where the time is the same.
func (g Generation) Newer(o Generation) bool {
	if !g.Time.Equal(o.Time) {
		return g.Time.After(o.Time)
	}
	return g.Event > o.Event
}

// Assignment is what the generations of one assignment add up to.
type Assignment struct {
	ID         string
	Deployment string
	Identity   string
	Host       string
	Target     string
	Address    string
	Withdrawn  bool
	Wanted     string    // fingerprint assigned by the newest generation that has one
	Previous   []string  // what may still be served until Wanted is in place; none once it is
	Seen       string    // fingerprint last reported served, "" for none
	Changed    time.Time // when it was last told of
	RenewBy    map[string]time.Time
}

// Fingerprints are those that may rightly be served now.
func (a Assignment) Fingerprints() []string {
	if a.Wanted == "" {
		return nil
	}
	return append([]string{a.Wanted}, a.Previous...)
}

// SeenByListener says that Seen was told by a TLS listener, not read from a file.
func (a Assignment) SeenByListener() bool { return a.Seen != "" && atListener(a.Address) }

// Sum adds up the generations of one assignment, in any order; placed are the fingerprints that were ever in place by it. A
// withdrawal ends all that was told before it, so an assignment that is wanted again may count its generations anew.
func Sum(generations []Generation, placed []string) Assignment {
	if len(generations) == 0 {
		return Assignment{Withdrawn: true}
	}
	var ended Generation
	for _, g := range generations {
		if g.State == stateWithdrawn && g.Newer(ended) {
			ended = g
		}
	}
	live := slices.Clone(generations)
	if ended.State != "" {
		live = slices.DeleteFunc(live, func(g Generation) bool { return !g.Newer(ended) })
	}
	if len(live) == 0 {
		return Assignment{ID: ended.Assignment, Deployment: ended.Deployment, Identity: ended.Identity, Host: ended.Host,
			Target: ended.Target, Address: ended.Address, Withdrawn: true, Changed: ended.Time}
	}
	slices.SortFunc(live, func(a, b Generation) int { return cmp.Compare(b.Number, a.Number) })
	newest := live[0]
	a := Assignment{ID: newest.Assignment, Deployment: newest.Deployment, Identity: newest.Identity, Host: newest.Host, Target: newest.Target, RenewBy: map[string]time.Time{}}
	inPlace := false
	var report Generation
	for _, g := range live {
		if a.Address == "" {
			a.Address = g.Address
		}
		if g.Time.After(a.Changed) {
			a.Changed = g.Time
		}
		// What was reported before the newest one was in place says nothing about it.
		if seen := g.report(slices.Contains(placed, g.Fingerprint)); seen != "" && !inPlace && (a.Seen == "" || g.Newer(report)) {
			report, a.Seen = g, seen
		}
		if g.Fingerprint == "" {
			continue
		}
		if _, ok := a.RenewBy[g.Fingerprint]; !ok {
			a.RenewBy[g.Fingerprint] = g.RenewBy
		}
		if a.Wanted == "" {
			a.Wanted = g.Fingerprint
		} else if !inPlace && !slices.Contains(a.Fingerprints(), g.Fingerprint) {
			a.Previous = append(a.Previous, g.Fingerprint)
		}
		inPlace = inPlace || slices.Contains(placed, g.Fingerprint)
	}
	return a
}

// Clean makes all text of the generation fit to be stored.
func (g Generation) Clean() Generation {
	for _, s := range []*string{&g.Assignment, &g.Deployment, &g.Identity, &g.Host, &g.Target, &g.State, &g.Fingerprint, &g.Served, &g.Address, &g.Event} {
		*s = clean(*s)
	}
	return g
}
