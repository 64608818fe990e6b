package finding

import (
	"fmt"
	"time"
)

// Certificate is what the rules look at for a certificate.
type Certificate struct {
	Fingerprint string
	Names       []string
	Issuer      string
	NotBefore   time.Time
	NotAfter    time.Time // last second of validity (RFC 5280 4.1.2.5)
	IsCA        bool
	SelfSigned  bool
	Weakness    string // why key or signature is too weak, "" when it is not

	OwnCA       bool // among the CA certificates of an authority as it stands now
	IssuerKnown bool // one of our authorities issued it, or a chain of signatures leads to one
	Identity    string
	Owner       string

	Served   bool // by a listener when last looked at, or reported so
	InFile   bool // seen in a file
	Assigned bool // to some target, where it may be live now
	Replaced bool // another certificate was issued in its place
	RenewBy  time.Time
	Revoked  time.Time // by its authority; zero: it was not
}

// use says how much depends on a certificate. One that was replaced and that nobody serves does not alarm, wherever its file
// still lies; nor does one that is nowhere any more, or a CA certificate in somebody's trust store.
type use int

const (
	unused use = iota
	stored     // in files only
	live       // served, assigned, or a CA certificate of our own
)

func (c Certificate) use() use {
	switch {
	case c.Served || c.Assigned || c.OwnCA:
		return live
	case c.InFile && !c.Replaced && !c.IsCA:
		return stored
	}
	return unused
}

func (c Certificate) life() time.Duration { return max(c.NotAfter.Sub(c.NotBefore), 0) }

// end is the first moment at which it is no longer valid.
func (c Certificate) end() time.Time { return c.NotAfter.Add(time.Second) }

func (c Certificate) ended(now time.Time) bool { return !now.Before(c.end()) }

func (c Certificate) expiring(l Limits) time.Time {
	most := l.Expiring
	if c.IsCA {
		most *= 6 // what a CA has issued must be replaced before it ends
	}
	return c.NotAfter.Add(-min(most, c.life()/5))
}

func (c Certificate) critical(l Limits) time.Time {
	return c.NotAfter.Add(-min(l.Critical, c.life()/20))
}

const (
	shortLife = 10 * 24 * time.Hour
	mostGrace = 24 * time.Hour
)

// overdue is when it should have been replaced. Renewal must have begun by RenewBy, as it was decided when the certificate
// was assigned; where none was told, by the general rule: a third of the life before the end (half of a life below ten days),
// plus a quarter of the rest. What began then has a tenth of the rest, at most a day, to get done.
func (c Certificate) overdue() time.Time {
	by := c.RenewBy
	if by.IsZero() || !by.Before(c.NotAfter) {
		rest := c.life() / 3
		if c.life() < shortLife {
			rest = c.life() / 2
		}
		by = c.NotAfter.Add(-rest + rest/4)
	}
	return by.Add(min(c.NotAfter.Sub(by)/10, mostGrace))
}

// OfCertificate judges a certificate.
func OfCertificate(c Certificate, l Limits, now time.Time) []Finding {
	u := c.use()
	if u == unused || u == stored && c.ended(now) {
		return nil
	}
	var found []Finding
	for _, rule := range []func(Certificate, use, Limits, time.Time) (Finding, bool){expired, revoked, expiring, overdue, unknownIssuer, weakKey, noOwner} {
		if f, ok := rule(c, u, l, now); ok {
			found = append(found, f)
		}
	}
	return found
}

// CertificateChanges is when the judgement of a certificate may next change by the passing of time; zero for never.
func CertificateChanges(c Certificate, l Limits, now time.Time) time.Time {
	if c.use() == unused {
		return time.Time{}
	}
	return earliest(now, c.end(), c.expiring(l), c.critical(l), c.overdue())
}

// level is Info for what lies in files only, else the level given.
func level(u use, s Severity) Severity {
	if u == stored {
		return Info
	}
	return s
}

func expired(c Certificate, u use, _ Limits, now time.Time) (Finding, bool) {
	if u != live || !c.ended(now) {
		return Finding{}, false
	}
	what := "is still served"
	switch {
	case c.OwnCA:
		what = "is a CA certificate in use"
	case !c.Served:
		what = "is still assigned"
	}
	return Finding{Expired, Critical, fmt.Sprintf("certificate %s ended %s and %s: replace it now", named(c.Names), day(c.NotAfter), what)}, true
}

func revoked(c Certificate, u use, _ Limits, now time.Time) (Finding, bool) {
	if u != live || c.Revoked.IsZero() || c.ended(now) {
		return Finding{}, false
	}
	what := "is still served"
	if !c.Served {
		what = "is still assigned"
	}
	return Finding{Revoked, Critical, fmt.Sprintf("certificate %s was revoked %s and %s: see why its replacement is not in place", named(c.Names), day(c.Revoked), what)}, true
}

func expiring(c Certificate, u use, l Limits, now time.Time) (Finding, bool) {
	if c.ended(now) || now.Before(c.expiring(l)) {
		return Finding{}, false
	}
	severity := Warning
	if !now.Before(c.critical(l)) {
		severity = Critical
	}
	todo := "renew it, or find out why it was not renewed"
	switch {
	case c.OwnCA:
		todo = "replace the authority's CA certificate, and what it has issued, before then"
	case u == stored:
		todo = "renew it if its file is in use"
	case c.Identity == "":
		todo = "find its owner and renew it; Sallyport did not issue it"
	}
	return Finding{Expiring, level(u, severity), fmt.Sprintf("certificate %s ends %s: %s", named(c.Names), day(c.NotAfter), todo)}, true
}

func overdue(c Certificate, u use, l Limits, now time.Time) (Finding, bool) {
	if u != live || c.OwnCA || c.Identity == "" && !c.Assigned || c.ended(now) || now.Before(c.overdue()) {
		return Finding{}, false
	}
	severity := Warning
	if !now.Before(c.expiring(l)) {
		severity = Critical
	}
	what := "has no replacement: see whether the deployer runs and what its assignment says"
	if c.Replaced {
		what = "was replaced, but is still in use: see why the new one is not installed"
	}
	return Finding{Overdue, severity, fmt.Sprintf("certificate %s ends %s, should have been renewed by %s and %s", named(c.Names), day(c.NotAfter), day(c.overdue()), what)}, true
}

func unknownIssuer(c Certificate, u use, _ Limits, _ time.Time) (Finding, bool) {
	if c.IssuerKnown || c.OwnCA || c.IsCA && c.SelfSigned {
		return Finding{}, false
	}
	if c.SelfSigned {
		return Finding{UnknownIssuer, level(u, Warning), fmt.Sprintf("certificate %s is signed by itself: replace it by one from a known authority", named(c.Names))}, true
	}
	return Finding{UnknownIssuer, level(u, Warning), fmt.Sprintf("certificate %s was issued by %q, which no known authority vouches for: replace it, or apply that authority", named(c.Names), c.Issuer)}, true
}

func weakKey(c Certificate, u use, _ Limits, _ time.Time) (Finding, bool) {
	if c.Weakness == "" {
		return Finding{}, false
	}
	return Finding{WeakKey, level(u, Warning), fmt.Sprintf("certificate %s: %s; replace it", named(c.Names), c.Weakness)}, true
}

func noOwner(c Certificate, u use, _ Limits, _ time.Time) (Finding, bool) {
	if c.Owner != "" || c.OwnCA {
		return Finding{}, false
	}
	if c.Identity != "" {
		return Finding{NoOwner, level(u, Warning), fmt.Sprintf("certificate %s was issued for identity %s, which is not there any more: apply the identity again, or take the certificate out of use", named(c.Names), c.Identity)}, true
	}
	return Finding{NoOwner, level(u, Warning), fmt.Sprintf("nobody answers for the certificate %s, which Sallyport did not issue: find out whose it is, and deploy one from here in its place", named(c.Names))}, true
}
