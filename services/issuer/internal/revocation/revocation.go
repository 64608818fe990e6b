// Package revocation says what it means that a certificate is taken back before its time, and when lists of such certificates
// (CRLs, RFC 5280 section 5) are to be made.
//
// It guarantees that an answer depends on its arguments alone. Storing, signing and publishing are left to others.
package revocation

import (
	"math/big"
	"time"

	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Reason is why, by its number in RFC 5280 section 5.3.1.
type Reason int

// The reasons. Those that are left out are not for a certificate that has ended for ever, or not for one of a host.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	PrivilegeWithdrawn   Reason = 9
)

var names = map[Reason]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", AffiliationChanged: "affiliationChanged", Superseded: "superseded",
	CessationOfOperation: "cessationOfOperation", PrivilegeWithdrawn: "privilegeWithdrawn",
}

// Known says whether it is one of the reasons.
func (r Reason) Known() bool { return names[r] != "" }

// String is the reason as the RFC writes it.
func (r Reason) String() string { return names[r] }

// Revocation is a certificate that was taken back.
type Revocation struct {
	Fingerprint pki.Fingerprint
	Serial      *big.Int
	Authority   string
	Identity    string
	Reason      Reason
	Revoked     time.Time
	NotAfter    time.Time
	Request     string // the caller's id
}

// Last says whether a list made then is the last one that has to show the certificate: it shows it when it has ended by itself
// (RFC 5280 section 3.3).
func (r Revocation) Last(thisUpdate time.Time) bool { return thisUpdate.After(r.NotAfter) }

// Term is how long a list is good, and after how long the next one is made.
type Term struct{ Valid, Remade time.Duration }

const day = 24 * time.Hour

// TermOf is for the lists of an issuing CA: BR section 4.9.7 wants one a week, good for ten days at most. The list of a root,
// which says that its issuing CA stands, is good for a year at most; with less the root's key would be in use all the time.
func TermOf(root bool) Term {
	if root {
		return Term{Valid: 365 * day, Remade: 180 * day}
	}
	return Term{Valid: 7 * day, Remade: day}
}

// Standing is how far the list of one CA is.
type Standing struct {
	AuthorityUID string
	Authority    string
	Root         bool
	Number       int64 // of the newest list; 0: there is none
	ThisUpdate   time.Time
	Unlisted     bool // a revocation is on no list yet
}

// backdate lets those whose clock is a little behind accept a fresh list.
const backdate = time.Minute

// Due says whether the next list is to be made. A list from the future is made again: the clock was wrong then.
func (s Standing) Due(now time.Time) bool {
	age := now.Sub(s.ThisUpdate)
	return s.Number == 0 || s.Unlisted || age >= TermOf(s.Root).Remade || age < 0
}

// Next begins the list that follows. Its number is greater than any before, even if the store has forgotten the newest of
// them because it was restored from a backup: it is not less than the milliseconds since 1970. Where the clock cannot be
// relied upon for that, above is a number that none of them had reached.
func (s Standing) Next(now time.Time, above int64) (number int64, thisUpdate, nextUpdate time.Time) {
	thisUpdate = now.Add(-backdate).UTC().Truncate(time.Second)
	return max(s.Number+1, above+1, now.UnixMilli()), thisUpdate, thisUpdate.Add(TermOf(s.Root).Valid)
}
