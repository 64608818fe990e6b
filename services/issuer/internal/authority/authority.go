// Package authority says what the issuer needs of a CA, whatever its kind, and what an operator may set of it.
//
// An Authority guarantees that one request never ends in two certificates, however often its steps are repeated, given that
// the caller stores each Progress before it takes the next step. Package authoritytest holds every kind to that.
package authority

import (
	"context"
	"crypto/x509"
	"math/big"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// Authority obtains certificates from one CA.
type Authority interface {
	// Step does at the CA what the request's state asks for, and tells what is true now. It waits for no host and for no CA
	// that is still working: it says After how long to ask again.
	//
	// Errors are faults. Transient: the same step may succeed later, not before RetryAfter. Precondition: an operator must
	// change something first; the request waits. Permanent: the request is to be refused.
	Step(ctx context.Context, w Work) (Progress, error)
}

// Work is one request as an authority sees it.
type Work struct {
	Request issuance.Request
	CSR     *pki.CSR
	// Usages and Lifetime are the profile's; an ACME CA is not asked for them.
	Usages   []profile.Usage
	Lifetime time.Duration
	// Challenges are those of the request that are not withdrawn.
	Challenges []issuance.Challenge
	// Replaces is the certificate to be renewed, if this same authority issued it; nil otherwise.
	Replaces *x509.Certificate
	// Fresh says that the intent the state speaks of was stored by this very run and nothing was done about it yet. Without
	// it the CA may have acted already, and is asked first.
	Fresh bool
}

// Progress is what one step led to.
type Progress struct {
	// Event moves the request; empty: nothing has moved.
	Event issuance.Event
	// Order is what is to be known of the order from now on.
	Order issuance.Order
	// Present are new challenges for hosts.
	Present []issuance.Challenge
	// Again are the ids of failed challenges to be presented once more.
	Again []string
	// Trigger are the ids of challenges the CA is to look at: store that, then step again.
	Trigger []string
	// Issued comes with the event Issue.
	Issued *Issued
	// Trouble comes with the event Reorder: why the order is over. It also tells why nothing moves.
	Trouble *fault.Error
	// Wait says that the next thing to happen is a host's report; After then only bounds the silence.
	Wait bool
	// After is how long to leave the CA alone, as the CA asks; 0: no wish.
	After time.Duration
	// Adopted tells that an order from before a crash was found at the CA and taken up.
	Adopted bool
	// Dropped says why the order is to be made without "replaces": store that, then step again.
	Dropped string
}

// Issued is a certificate that has been made, with what is told about it.
type Issued struct {
	Chain       [][]byte // DER, leaf first
	Fingerprint pki.Fingerprint
	Serial      *big.Int
	Names       pki.Names
	NotBefore   time.Time
	NotAfter    time.Time
	SPKI        string // lower-case hex SHA-256
	// RenewalID is the certificate's name for renewal information (RFC 9773 section 4.1), empty where the CA gives none.
	RenewalID string
}

// Reasons that authorities of every kind give.
const (
	ReasonExpiring = "AUTHORITY_EXPIRING"
	ReasonClock    = "AUTHORITY_CLOCK"
)
