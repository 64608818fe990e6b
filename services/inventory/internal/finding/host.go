package finding

import (
	"fmt"
	"time"
)

// Host is what the rules look at for a host.
type Host struct {
	Name  string
	Works bool      // its agent is neither locked nor removed
	Heard time.Time // when it last reported, or else when it became known
	Never bool      // it has not reported yet
}

// OfHost judges a host.
func OfHost(h Host, l Limits, now time.Time) []Finding {
	if !h.Works || now.Before(h.Heard.Add(l.HostSilent)) {
		return nil
	}
	since := "has not reported since " + day(h.Heard)
	if h.Never {
		since = "is known since " + day(h.Heard) + " and has never reported"
	}
	return []Finding{{HostSilent, Warning, fmt.Sprintf("host %s %s: see whether the host and its agent run and reach the deployer; lock or remove the agent if they should not", h.Name, since)}}
}

// HostChanges is when the judgement of a host may next change by the passing of time; zero for never.
func HostChanges(h Host, l Limits, now time.Time) time.Time {
	if !h.Works {
		return time.Time{}
	}
	return earliest(now, h.Heard.Add(l.HostSilent))
}
