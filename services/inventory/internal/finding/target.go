package finding

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Target is what the rules look at for a target: usually one assignment, more where deployments share its name.
type Target struct {
	Host        string
	Name        string
	Assignments []Assignment
}

// Assignment is what is assigned to a target and what was seen of it.
type Assignment struct {
	Deployment string
	Expected   []string // fingerprints that may rightly be served, the wanted one first
	Names      []string // of the wanted certificate
	Address    string   // "host:port" or a file path
	Reported   string   // fingerprint the agent last reported served, "" for none
	Changed    time.Time
	Sightings  []Sighting // of any certificate on the host, as far as they are not gone
}

// Sighting is a certificate seen on the target's host.
type Sighting struct {
	Fingerprint string
	Names       []string
	Listener    bool // else a file
	Location    string
	ServerName  string
	LastSeen    time.Time
}

// settle is how much later than the last change of the assignment a sighting must have come in to say something about it: a
// scan may have looked just before the change.
const settle = 2 * time.Minute

// OfTarget judges a target: what is served there must be what was assigned.
func OfTarget(t Target) []Finding {
	for _, a := range t.Assignments {
		if len(a.Expected) == 0 {
			continue
		}
		seen, where := a.strangest()
		if seen == "" {
			continue
		}
		return []Finding{{ServedIsNotAssigned, Critical, fmt.Sprintf(
			"target %s of deployment %s on %s shows certificate %s at %s, assigned is %s: see what else configures that server, then renew the deployment",
			t.Name, a.Deployment, t.Host, short(seen), where, short(a.Expected[0]))}}
	}
	return nil
}

// strangest gives a certificate at the assignment's address that should not be there, and where it was seen. Sightings later
// than the agent's report decide, those for a server name of the certificate before those without one.
func (a Assignment) strangest() (fingerprint, where string) {
	newest := map[[2]string]Sighting{}
	asked := false
	for _, s := range a.Sightings {
		exact, relevant := a.about(s)
		if !relevant || s.LastSeen.Before(a.Changed.Add(settle)) || asked && !exact {
			continue
		}
		if exact && !asked {
			asked = true
			clear(newest)
		}
		key := [2]string{s.Location, s.ServerName}
		if old, ok := newest[key]; !ok || s.LastSeen.After(old.LastSeen) || s.LastSeen.Equal(old.LastSeen) && s.Fingerprint < old.Fingerprint {
			newest[key] = s
		}
	}
	for _, s := range newest {
		if !slices.Contains(a.Expected, s.Fingerprint) && (fingerprint == "" || s.Fingerprint < fingerprint) {
			fingerprint, where = s.Fingerprint, s.Location
		}
	}
	if len(newest) > 0 {
		return fingerprint, where
	}
	if a.Reported != "" && !slices.Contains(a.Expected, a.Reported) {
		return a.Reported, a.Address
	}
	return "", ""
}

// about says whether a sighting is about the assignment's address. exact: the file itself, or an answer to one of the
// certificate's names. What a listener shows to those who name nobody counts if it is for the same names.
func (a Assignment) about(s Sighting) (exact, relevant bool) {
	if !s.Listener {
		same := s.Location == a.Address
		return same, same
	}
	if !SameAddress(a.Address, s.Location) {
		return false, false
	}
	if s.ServerName != "" {
		match := slices.ContainsFunc(a.Names, func(n string) bool { return covers(n, s.ServerName) })
		return match, match
	}
	return false, slices.ContainsFunc(a.Names, func(n string) bool {
		return slices.ContainsFunc(s.Names, func(p string) bool { return covers(p, n) })
	})
}

// SameAddress compares where an assignment is verified with where a listener was found: the ports must be the same, and the
// hosts as far as both are one interface's address.
func SameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB {
		return false
	}
	ipA, errA := netip.ParseAddr(hostA)
	ipB, errB := netip.ParseAddr(hostB)
	anywhere := func(ip netip.Addr, err error) bool { return err != nil || ip.IsUnspecified() || ip.IsLoopback() }
	return anywhere(ipA, errA) || anywhere(ipB, errB) || ipA.Unmap() == ipB.Unmap()
}

// covers says whether a certificate's name is good for a host name (RFC 9525 6.3).
func covers(pattern, name string) bool {
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	if pattern == name {
		return true
	}
	suffix, wild := strings.CutPrefix(pattern, "*.")
	_, rest, ok := strings.Cut(name, ".")
	return wild && ok && rest == suffix
}
