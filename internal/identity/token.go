package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	tokenPrefix    = "spj1."
	tokenSecretLen = 32
	tokenMaxLen    = 512
	tokenMaxID     = 64
)

var b64 = base64.RawURLEncoding.Strict()

// JoinToken lets one new agent in. RootHash is the SHA-256 of the DER of the
// trust domain's root certificate: by it the agent knows the control plane
// before it sends anything. As a log value a token shows
// its id only.
type JoinToken struct {
	TrustDomain spiffeid.TrustDomain
	ID          string // public: names the token in lists and logs
	Secret      []byte
	RootHash    [sha256.Size]byte
}

// NewJoinToken makes a token with a fresh random secret.
func NewJoinToken(td spiffeid.TrustDomain, id string, rootHash [sha256.Size]byte) (JoinToken, error) {
	t := JoinToken{TrustDomain: td, ID: id, Secret: make([]byte, tokenSecretLen), RootHash: rootHash}
	rand.Read(t.Secret)
	return t, t.check()
}

// ParseJoinToken reads "spj1.<td>.<id>.<secret b64url>.<roothash b64url>".
// Errors never repeat the text.
func ParseJoinToken(s string) (JoinToken, error) {
	s = strings.TrimSpace(s)
	if len(s) > tokenMaxLen {
		return JoinToken{}, errors.New("join token: too long")
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return JoinToken{}, errors.New(`join token: does not begin with "spj1."`)
	}
	// A trust domain may contain dots, so the other parts are taken from the right.
	var part [3]string
	for i := range part {
		dot := strings.LastIndexByte(rest, '.')
		if dot < 0 {
			return JoinToken{}, errors.New("join token: incomplete: copy the whole line")
		}
		part[i], rest = rest[dot+1:], rest[:dot]
	}
	td, err := spiffeid.TrustDomainFromString(rest)
	if err != nil || td.Name() != rest {
		return JoinToken{}, errors.New("join token: wrong trust domain")
	}
	t := JoinToken{TrustDomain: td, ID: part[2]}
	hash, err := b64.DecodeString(part[0])
	if err != nil || len(hash) != sha256.Size {
		return JoinToken{}, errors.New("join token: wrong root hash: copy the whole line")
	}
	copy(t.RootHash[:], hash)
	if t.Secret, err = b64.DecodeString(part[1]); err != nil {
		return JoinToken{}, errors.New("join token: wrong secret part")
	}
	return t, t.check()
}

func (t JoinToken) check() error {
	switch {
	case t.TrustDomain.IsZero():
		return errors.New("join token: no trust domain")
	case len(t.ID) > tokenMaxID || !namePattern.MatchString(t.ID) || strings.Contains(t.ID, "."):
		return errors.New("join token: wrong id")
	case len(t.Secret) != tokenSecretLen:
		return errors.New("join token: the secret must have 32 bytes")
	}
	return nil
}

// String is the token itself: a secret.
func (t JoinToken) String() string {
	return tokenPrefix + t.TrustDomain.Name() + "." + t.ID + "." + b64.EncodeToString(t.Secret) + "." + b64.EncodeToString(t.RootHash[:])
}

// LogValue keeps the secret out of logs.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue("join token " + t.ID) }

// SecretHash is the SHA-256 of the secret: all that a server keeps.
func (t JoinToken) SecretHash() [sha256.Size]byte { return sha256.Sum256(t.Secret) }
