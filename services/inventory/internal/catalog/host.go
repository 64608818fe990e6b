package catalog

import "time"

// The standings of an agent.
const (
	Enrolled = "enrolled"
	Locked   = "locked"
	Removed  = "removed"
)

// Host is a machine that an agent reports from. Times are zero where nothing happened yet.
type Host struct {
	Name       string
	State      string // of its agent, "" while only observations are known
	Version    string
	Platform   string
	LastReport time.Time
	LastScan   time.Time
	Created    time.Time

	StateTold  time.Time // when the standing was told of
	StateEvent string
	InfoTold   time.Time // when version and platform were
}

// AgentChange tells of an agent's standing.
type AgentChange struct {
	Host     string
	State    string
	Version  string
	Platform string
	Time     time.Time
	Event    string
}

// Change merges an agent's standing: the newest one counts.
func (h *Host) Change(a AgentChange) {
	if a.Time.After(h.StateTold) || a.Time.Equal(h.StateTold) && a.Event > h.StateEvent {
		h.State, h.StateTold, h.StateEvent = a.State, a.Time, a.Event
	}
	h.inform(a.Version, a.Platform, a.Time)
}

// Observe merges an observation.
func (h *Host) Observe(o Observation) {
	if o.Time.After(h.LastReport) {
		h.LastReport = o.Time
	}
	if o.Scan != "" && o.Complete && o.Time.After(h.LastScan) {
		h.LastScan = o.Time
	}
	h.inform(o.Version, o.Platform, o.Time)
}

func (h *Host) inform(version, platform string, told time.Time) {
	if h.Created.IsZero() || told.Before(h.Created) {
		h.Created = told
	}
	if version == "" && platform == "" {
		return
	}
	if told.After(h.InfoTold) || told.Equal(h.InfoTold) && version+" "+platform > h.Version+" "+h.Platform {
		h.Version, h.Platform, h.InfoTold = version, platform, told
	}
}

// Heard is when it last reported, or, if it never has, since when it has had the chance to.
func (h Host) Heard() time.Time {
	if !h.LastReport.IsZero() && (h.State != Enrolled || h.LastReport.After(h.StateTold)) {
		return h.LastReport
	}
	if h.StateTold.After(h.Created) {
		return h.StateTold
	}
	return h.Created
}

// Clean makes all text of the change fit to be stored.
func (a AgentChange) Clean() AgentChange {
	a.Host, a.Version, a.Platform, a.Event = clean(a.Host), cut(a.Version), cut(a.Platform), clean(a.Event)
	return a
}
