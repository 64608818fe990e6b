// Package issuance is the domain of the issuer: the request and its states, the policy that judges it, and when to try
// again. It knows no CA, no database and no protocol; its decisions are pure functions that give reasons.
//
// It guarantees one meaning of a request id: the digest binds it to what was asked, so that the same id with other content
// is told apart for ever.
package issuance

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"regexp"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Request is one wish for one certificate.
type Request struct {
	ID        string
	Digest    string // of what was asked
	Identity  string
	Profile   string
	Authority string // the profile's, when the request was accepted; empty when refused before that was known
	Names     pki.Names
	State     State
	Replaces  pki.Fingerprint // empty: renews nothing

	Chain       [][]byte // DER, leaf first, once issued
	Fingerprint pki.Fingerprint

	// The last trouble, empty when there was none, or it is over.
	Reason  string
	Message string
	// Attempts counts the troubles so far. Failures counts those with the network or the CA since the last progress.
	Attempts int
	Failures int
	// NextAttempt is when it is looked at again, zero when nothing is left to do.
	NextAttempt time.Time

	Created time.Time
	Updated time.Time
	// TraceID joins the records of the loops with those of the call that submitted the request.
	TraceID string
	// Span is the request's own span in that trace, from created to ended; Parent the one in which it began.
	Span   string
	Parent string

	Order Order
}

// Order is what the request knows of its order at an ACME CA (RFC 8555 section 7.1.3).
type Order struct {
	URL         string
	Finalize    string
	Certificate string
	Profile     string // ACME profile to name, empty for the CA's default
	// Plain: order without "replaces", because the CA said that the old certificate is replaced already (RFC 9773 section 5).
	Plain bool
	// Count is how many orders were made so far.
	Count int
}

// Content is what a request id stands for.
type Content struct {
	Identity string
	Profile  string
	CSR      []byte
	Replaces pki.Fingerprint
}

// Digest is the lower-case hex SHA-256 of the content, each part with its length before it.
func (c Content) Digest() string {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(c.Identity), []byte(c.Profile), c.CSR, []byte(c.Replaces)} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

var fingerprintPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// CheckID holds a request id against its rule: letters, digits, dashes, at most 128.
func CheckID(field, id string) error {
	if len(id) == 0 || len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	}) {
		return fault.Invalid(field, "%.140q: want 1 to 128 letters, digits and dashes", id)
	}
	return nil
}

// ParseFingerprint reads a fingerprint, empty for none.
func ParseFingerprint(field, s string) (pki.Fingerprint, error) {
	if s != "" && !fingerprintPattern.MatchString(s) {
		return "", fault.Invalid(field, "%.80q: want the SHA-256 of the certificate as 64 lower-case hex digits", s)
	}
	return pki.Fingerprint(s), nil
}

// Ended reports that nothing more will happen to a request in this state.
func (s State) Ended() bool { return s == Issued || s == Refused || s == Cancelled }
