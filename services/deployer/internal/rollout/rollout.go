// Package rollout decides about deployments and their assignments: what is well formed, which assignments a deployment wants,
// which of them may begin now, what a report means, when a failed attempt is tried again, and what it all sums up to.
//
// It guarantees that its answers depend on its arguments alone; it stores nothing, asks nobody and knows no clock. The state
// machine is drawn in transitions.go.
package rollout

import (
	"maps"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
)

// Target is one place on one host where a certificate must be live.
type Target struct {
	Name      string
	Host      string
	Connector string
	Settings  map[string]string
}

// Rules say how one pass over the targets goes.
type Rules struct {
	MaxParallel int // targets under way at once
	MaxFailures int // failed targets after which no new ones are started
}

// Deployment is identity + profile + targets + rules, as applied.
type Deployment struct {
	Name     string
	Identity string
	Profile  string
	KeyType  pki.KeyType // "" takes the first the profile allows
	Names    pki.Names   // none takes all the identity has
	Targets  []Target
	Rules    Rules
	Renewal  renewal.Rule
	ETag     string
	Created  time.Time

	// Wanted is what KeyType and Names come to, by the profile and the identity as last seen.
	Wanted Wanted
	// Problem says why it does not fit its identity or profile any more, as last seen.
	Problem string
}

// Wanted is what each certificate of a deployment must be.
type Wanted struct {
	Identity string
	Profile  string
	KeyType  pki.KeyType
	Names    pki.Names
}

// Equal compares all parts.
func (w Wanted) Equal(o Wanted) bool {
	return w.Identity == o.Identity && w.Profile == o.Profile && w.KeyType == o.KeyType && w.Names.Equal(o.Names)
}

// Spec is what one assignment is about in one generation.
type Spec struct {
	Wanted Wanted
	Target Target
}

// Equal compares all parts.
func (s Spec) Equal(o Spec) bool {
	return s.Wanted.Equal(o.Wanted) && s.Target.Name == o.Target.Name && s.Target.Host == o.Target.Host &&
		s.Target.Connector == o.Target.Connector && maps.Equal(s.Target.Settings, o.Target.Settings)
}

// Certificate is the certificate of a generation. The zero value is none.
type Certificate struct {
	Fingerprint string
	NotBefore   time.Time
	NotAfter    time.Time
}

// Assignment is what one agent has to do for one target, and how far it got.
type Assignment struct {
	ID         string
	Deployment string
	Spec       Spec
	Generation int64
	Attempt    int32 // from 1 within a generation
	State      State

	Certificate Certificate // of this generation, once issued
	Chain       [][]byte    // its DER, leaf first
	CSR         []byte      // of this attempt, once handed in
	Served      string      // fingerprint last seen served
	Address     string      // where it is looked for
	Previous    string      // fingerprint of the last good generation, while a newer one is under way
	Replaces    string      // the same, where the issuer may take the new one for its renewal

	Reason      string // of the last trouble
	Message     string
	Failures    int // in a row, in this generation
	NextAttempt time.Time

	Renewal     renewal.Decision
	RenewedAt   time.Time // when renewal last began by itself
	QuickRenews int       // renewals in a row that each began soon after the one before
	Updated     time.Time
	Trace       string // joins the records of this generation
	Span        Span
}

// Span is the span of the attempt under way, so that its trace goes on after a restart.
type Span struct {
	ID     string
	Parent string
	Begun  time.Time // zero once it has ended
}

// RequestID names the request at the issuer: one per generation and attempt.
func (a Assignment) RequestID() string { return RequestID(a.ID, a.Generation, a.Attempt) }

// Good says that the agent has installed what was assigned, seen or not.
func (a Assignment) Good() bool { return a.State == Served || a.State == Installed }

// UnderWay says that the agent or the issuer is at work on it.
func (a Assignment) UnderWay() bool {
	return a.State == Assigned || a.State == Requested || a.State == Issued
}
