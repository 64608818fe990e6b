package fleet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// State is the standing of an agent.
type State string

// The standings. Removed agents are unknown to everybody; their row remains so that other replicas learn of it.
const (
	Enrolled State = "enrolled"
	Locked   State = "locked"
	Removed  State = "removed"
)

// Key is an agent's public key. The zero value is none.
type Key struct {
	Hash string // hex SHA-256 of the SubjectPublicKeyInfo
	DER  []byte // the SubjectPublicKeyInfo
}

// Info is what an agent tells about its program and host.
type Info struct {
	Version    string
	Platform   string
	Connectors []string
	Capability int32
}

// Agent is the program on one host.
type Agent struct {
	Host        string
	State       State
	Info        Info
	Enrolled    time.Time
	LastSeen    time.Time
	SVIDExpires time.Time
	LockReason  string
	Key         Key // the one in use
	Pending     Key // granted by renewal, in use from its first call on
	ClockWrong  bool
	Connected   bool      // output only
	Changed     time.Time // when its standing or keys last changed; grows with every change
}

// Knows says whether hash names a key of the agent.
func (a Agent) Knows(hash string) bool {
	return hash != "" && (hash == a.Key.Hash || hash == a.Pending.Hash)
}

// The reasons this package gives.
const (
	ReasonTokenInvalid  = "TOKEN_INVALID"
	ReasonTokenExpired  = "TOKEN_EXPIRED"
	ReasonTokenRevoked  = "TOKEN_REVOKED"
	ReasonTokenUsed     = "TOKEN_USED"
	ReasonTokenHost     = "TOKEN_HOST"
	ReasonHostTaken     = "HOST_TAKEN"
	ReasonAgentLocked   = "AGENT_LOCKED"
	ReasonAgentUnknown  = "AGENT_UNKNOWN"
	ReasonKeyUnknown    = "KEY_UNKNOWN"
	ReasonReturnOff     = "RETURN_OFF"
	ReasonReturnRefused = "RETURN_REFUSED"
	ReasonReturnLate    = "RETURN_TOO_LATE"
	ReasonReturnStale   = "RETURN_NOT_FRESH"
)

// Token is a join token as stored: without its secret.
type Token struct {
	ID         string
	SecretHash [sha256.Size]byte
	Host       string // the one host it is for; "" lets the agent say
	Expires    time.Time
	UsedBy     string // host
	UsedKey    string // hash of the key it is bound to
	Used       time.Time
	Revoked    bool
	CreatedBy  string
	Created    time.Time
}

// Join is what an agent shows to enrol.
type Join struct {
	Secret []byte
	Host   string
	Key    Key
}

// Judge says whether the agent may enrol: nil, or a fault. t is nil when there is no such token, a is nil when the host has
// no agent. Who does not know the secret gets one answer whatever is the matter.
func (j Join) Judge(t *Token, a *Agent, now time.Time) error {
	var want [sha256.Size]byte
	if t != nil {
		want = t.SecretHash
	}
	got := sha256.Sum256(j.Secret)
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 || t == nil {
		return fault.New(fault.Unauthenticated, ReasonTokenInvalid, "the join token is not known here: ask an operator for a new one")
	}
	switch {
	case t.Revoked:
		return fault.New(fault.Denied, ReasonTokenRevoked, "the join token was revoked: ask an operator for a new one")
	case !now.Before(t.Expires):
		return fault.New(fault.Denied, ReasonTokenExpired, "the join token expired at %s: ask an operator for a new one", t.Expires.UTC().Format(time.RFC3339))
	case t.UsedKey != "" && (t.UsedKey != j.Key.Hash || t.UsedBy != j.Host):
		return fault.New(fault.Denied, ReasonTokenUsed, "the join token was used already, by another key or host: ask an operator for a new one")
	case t.Host != "" && t.Host != j.Host:
		return fault.New(fault.Denied, ReasonTokenHost, "the join token is for another host name than %q", j.Host)
	case a == nil || a.State == Removed:
		return nil
	case a.State == Locked:
		return locked()
	case !a.Knows(j.Key.Hash):
		return fault.New(fault.Denied, ReasonHostTaken, "an agent with another key is enrolled as %q: remove it first (sallyport agent remove %s) if that host is gone", j.Host, j.Host)
	}
	return nil
}

func locked() error {
	return fault.New(fault.Denied, ReasonAgentLocked, "the agent is locked by an operator")
}

// Freshness is how far the time in a return may be from ours, before and after.
const Freshness = 5 * time.Minute

// Return is what a known agent shows to get a new identity after its SVID has run out.
type Return struct {
	Host      string
	CSR       []byte
	Key       Key // of the CSR
	Time      time.Time
	Signature []byte // ECDSA, ASN.1 form, over the SHA-256 of ReturnText, by the same key
}

// ReturnText is what the agent signs: "sallyport agent return v1\n" host "\n" unix seconds "\n" hex SHA-256 of the CSR.
func ReturnText(host string, t time.Time, csr []byte) []byte {
	sum := sha256.Sum256(csr)
	return fmt.Appendf(nil, "sallyport agent return v1\n%s\n%d\n%s", host, t.Unix(), hex.EncodeToString(sum[:]))
}

// Judge says whether the agent may come back: nil, or a fault. a is nil when there is no such agent; within is the policy.
// What is told depends on what was proved: who cannot sign with the enrolled key gets one answer.
func (r Return) Judge(a *Agent, within time.Duration, now time.Time) error {
	if within <= 0 {
		return fault.New(fault.Denied, ReasonReturnOff, "agents do not come back by themselves here: enrol again with a join token")
	}
	if d := now.Sub(r.Time); d > Freshness || d < -Freshness {
		return fault.New(fault.Denied, ReasonReturnStale, "signed at %s, and the clock here says %s: set the host's clock", r.Time.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	refused := fault.New(fault.Denied, ReasonReturnRefused, "no such agent with this key: enrol again with a join token")
	if a == nil || a.State == Removed || !a.Knows(r.Key.Hash) {
		return refused
	}
	pub, err := r.Key.public()
	if err != nil {
		return refused
	}
	digest := sha256.Sum256(ReturnText(r.Host, r.Time, r.CSR))
	if !ecdsa.VerifyASN1(pub, digest[:], r.Signature) {
		return refused
	}
	if a.State == Locked {
		return locked()
	}
	if away := now.Sub(a.SVIDExpires); away > within {
		return fault.New(fault.Denied, ReasonReturnLate, "the agent's identity ran out %d days ago, more than the %d days allowed: enrol again with a join token",
			int(away.Hours()/24), int(within.Hours()/24))
	}
	return nil
}

const maxCSR = 16 << 10

// ParseCSR reads the CSR of an agent's own key: PKCS#10 in DER, at most 16 KiB, ECDSA on P-256 or P-384, rightly signed.
// Its names mean nothing.
func ParseCSR(der []byte) (Key, error) {
	if len(der) == 0 || len(der) > maxCSR {
		return Key{}, fmt.Errorf("want a PKCS#10 request of at most %d bytes", maxCSR)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return Key{}, fmt.Errorf("not a PKCS#10 request: %w", err)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() && pub.Curve != elliptic.P384() {
		return Key{}, errors.New("an agent's key is ECDSA on P-256 or P-384")
	}
	if err := req.CheckSignature(); err != nil {
		return Key{}, fmt.Errorf("the signature does not prove possession of the key: %w", err)
	}
	der, err = x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Key{}, fmt.Errorf("encoding the key: %w", err)
	}
	return Key{Hash: string(pki.FingerprintOf(der)), DER: der}, nil
}

func (k Key) public() (*ecdsa.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(k.DER)
	if err != nil {
		return nil, fmt.Errorf("reading an agent's key: %w", err)
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("an agent's key is %T", pub)
	}
	return ec, nil
}
