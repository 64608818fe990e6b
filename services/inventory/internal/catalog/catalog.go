// Package catalog says what the inventory knows of certificates, hosts, sightings and assignments, and how single facts add
// up to it.
//
// It guarantees that facts add up to the same in whatever order and however often they arrive: everything merged carries a
// time or a generation, and the merge looks at nothing else. Storing is left to package store, judging to package finding.
package catalog

import (
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Role says in what role a certificate was seen.
type Role string

// The roles.
const (
	File     Role = "file"
	Listener Role = "listener"
)

const (
	maxHost       = 253
	maxLocation   = 1024
	maxServerName = 253
	maxShortText  = 100
	maxScanID     = 128
)

// Place is where on a host a certificate was seen.
type Place struct {
	Role       Role
	Location   string // a file path or "address:port"
	ServerName string // TLS server name asked for, listeners only
}

// Seen is one certificate at one place.
type Seen struct {
	Place
	Leaf    Certificate
	Issuers []Certificate // the rest of the chain as far as it could be read
}

// Observation is what one host told at one time: a heartbeat, or one part of a scan.
type Observation struct {
	Host     string
	Time     time.Time
	Version  string
	Platform string
	Seen     []Seen
	Scan     string // the scan this is a part of, "" for none
	Complete bool   // the last part: what the scan has not seen by now is gone
}

// Check puts an observation within bounds: text is cut and cleaned, sightings at impossible places are dropped. It refuses
// one that cannot be told to be of a host, with fault.Permanent BAD_OBSERVATION.
func (o Observation) Check() (Observation, error) {
	if o.Host == "" || len(o.Host) > maxHost || clean(o.Host) != o.Host || o.Time.IsZero() || len(o.Scan) > maxScanID || clean(o.Scan) != o.Scan {
		return o, fault.New(fault.Permanent, "BAD_OBSERVATION", "observation without host or time, or with an impossible host or scan id")
	}
	o.Version, o.Platform = cut(o.Version), cut(o.Platform)
	var seen []Seen
	for _, s := range o.Seen {
		s.Location, s.ServerName = clean(s.Location), clean(s.ServerName)
		if s.Role != File && s.Role != Listener || s.Location == "" || len(s.Location) > maxLocation || len(s.ServerName) > maxServerName {
			continue
		}
		seen = append(seen, s)
	}
	o.Seen = seen
	return o, nil
}

func cut(s string) string {
	s = clean(s)
	for i := range s {
		if i > maxShortText {
			return s[:i]
		}
	}
	return s
}

// Sighting is a certificate seen at a place from a first to a last time. Gone is when a whole scan found it gone; zero while
// it is there.
type Sighting struct {
	Host string
	Place
	Fingerprint string
	FirstSeen   time.Time
	LastSeen    time.Time
	Gone        time.Time
}

// Issued tells that a request ended in a certificate.
type Issued struct {
	Leaf      Certificate
	Issuers   []Certificate // the rest of the chain
	Request   string
	Identity  string
	Profile   string
	Authority string
	Replaces  string // fingerprint, "" for none
	Time      time.Time
}

// Clean makes all text of the fact fit to be stored.
func (i Issued) Clean() Issued {
	for _, s := range []*string{&i.Request, &i.Identity, &i.Profile, &i.Authority, &i.Replaces} {
		*s = clean(*s)
	}
	return i
}

// Revoked tells that a certificate was revoked. Reason is its number in RFC 5280 section 5.3.1.
type Revoked struct {
	Fingerprint string
	Time        time.Time
	Reason      int32
}

// Authority tells which CA certificates an authority has.
type Authority struct {
	Name  string
	Chain []Certificate
	Time  time.Time
	Event string
}

// Known is a certificate with what is known around it.
type Known struct {
	Certificate
	Identity   string
	Owner      string
	Authority  string
	Profile    string
	Request    string
	Sightings  []Sighting
	Served     bool     // by some listener when last looked at
	AssignedTo []string // "host/target"
	FirstSeen  time.Time
	LastSeen   time.Time
	ReplacedBy string
	Revoked    Revoked // zero Time: it was not
}
