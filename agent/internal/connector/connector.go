// Package connector says what the agent's code for one kind of server software
// has to do: see what is installed, put a new pair beside it, make it active,
// look whether it is served, and put the old one back. Every connector is held
// to the conformance suite in connectortest, against the real server.
//
// It guarantees that only a checked Pair can be installed. What to install,
// when, and what to do after a crash is decided in package apply.
package connector

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Connector is the code for one kind of server software, as the host's own
// configuration enables it.
type Connector interface {
	// At gives the place that an assignment's settings name. It fails with a
	// reason if the host's configuration does not allow it.
	At(settings map[string]string) (Place, error)
	// Check looks whether the host's configuration of the connector can work, and
	// gives one line for each thing that is wrong.
	Check(ctx context.Context) []string
	// Touches says in words what an assignment may touch.
	Touches() []string
}

// Place is where one certificate is live. Its verbs are called one at a time,
// but that Verify may go on during Stage.
// All errors are of type *fault.Error with a reason of this package.
type Place interface {
	// Inspect says what is installed now. Only a place that cannot be read at all
	// is an error.
	Inspect(ctx context.Context) (Found, error)
	// Stage puts the pair beside what is installed, complete and durable, and
	// touches nothing else. Its answer is what Activate, Restore and Commit need,
	// in this process or the next.
	Stage(ctx context.Context, pair Pair) (Staged, error)
	// Activate makes the staged pair the installed one and has the server load
	// it. It may be called again after a crash in its middle.
	Activate(ctx context.Context, staged Staged) error
	// Verify looks whether the certificate is served, waiting at most so long for
	// it to become so.
	Verify(ctx context.Context, want *x509.Certificate, wait time.Duration) Sight
	// Restore puts back what was installed before Stage and has the server load
	// it; where nothing was, it removes what was put. It may be called at any
	// point after Stage began, with the zero Staged if Stage did not come to its
	// end, and again after a crash in its middle. Where the old files are back and
	// the server refuses its configuration with them too, the error's reason is
	// SERVER_CONFIG_BROKEN.
	Restore(ctx context.Context, staged Staged) error
	// Commit removes what only Restore would need.
	Commit(ctx context.Context, staged Staged) error
	// Address is where Verify looks, empty if nowhere.
	Address() string
}

// Found is what Inspect found.
type Found struct {
	// Chain is the installed chain, leaf first; empty when there is none that can
	// be read.
	Chain []*x509.Certificate
	// Key is the installed key, nil when there is none that can be read.
	Key crypto.Signer
	// Empty says that nothing is installed.
	Empty bool
	// Problem says why what is installed is no whole pair, empty when it is one.
	Problem string
}

// Whole says that certificate and key are there and belong together.
func (f Found) Whole() bool { return !f.Empty && f.Problem == "" }

// Has says whether exactly this certificate is installed, with its key.
func (f Found) Has(cert *x509.Certificate) bool {
	return f.Whole() && len(f.Chain) > 0 && f.Chain[0].Equal(cert)
}

// Staged is what a connector wants to know again when it goes on. It holds no
// secret.
type Staged json.RawMessage

// Pair is a certificate chain and its key, checked. The zero value cannot be
// installed.
type Pair struct {
	chain []*x509.Certificate
	key   crypto.Signer
}

// NewPair checks that the chain is one path from the leaf up, that the key is
// the leaf's, and that the leaf is valid now.
func NewPair(chain []*x509.Certificate, key crypto.Signer, now time.Time) (Pair, error) {
	ordered, err := pki.OrderChain(chain)
	if err != nil {
		return Pair{}, fault.New(fault.Permanent, ReasonChainInvalid, "the certificate chain is not one path: %w", err)
	}
	if err := pki.CheckPair(ordered, key); err != nil {
		return Pair{}, fault.New(fault.Permanent, ReasonChainMismatch, "refused: %w", err)
	}
	leaf := ordered[0]
	switch {
	case now.Before(leaf.NotBefore):
		return Pair{}, fault.New(fault.Precondition, ReasonNotYetValid, "the certificate is valid from %s and this host's clock says %s: check the clock",
			stamp(leaf.NotBefore), stamp(now))
	case now.After(leaf.NotAfter):
		return Pair{}, fault.New(fault.Permanent, ReasonExpired, "the certificate was valid until %s and this host's clock says %s: check the clock",
			stamp(leaf.NotAfter), stamp(now))
	}
	return Pair{chain: ordered, key: key}, nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Leaf is the certificate itself.
func (p Pair) Leaf() *x509.Certificate { return p.chain[0] }

// Chain is the leaf and the CA certificates above it.
func (p Pair) Chain() []*x509.Certificate { return p.chain }

// Key is the leaf's private key.
func (p Pair) Key() crypto.Signer { return p.key }

// Valid says that the pair was made by NewPair.
func (p Pair) Valid() bool { return len(p.chain) > 0 && p.key != nil }

// View is what a look at a server shows.
type View int

// The views.
const (
	CannotSee View = iota // nothing answered, or nowhere to look
	Wrong                 // another certificate is served
	Right                 // the wanted certificate is served
)

func (v View) String() string {
	switch v {
	case Right:
		return "right"
	case Wrong:
		return "wrong"
	}
	return "cannot see"
}

// Sight is the outcome of Verify.
type Sight struct {
	View    View
	Served  pki.Fingerprint // of what was seen, empty when nothing was
	Address string          // where was looked, empty when nowhere
	Detail  string          // why nothing could be seen
}

func (s Sight) String() string {
	switch s.View {
	case Right:
		return fmt.Sprintf("%s serves the certificate", s.Address)
	case Wrong:
		return fmt.Sprintf("%s serves another certificate (%s)", s.Address, s.Served)
	}
	if s.Address == "" {
		return s.Detail
	}
	return fmt.Sprintf("%s cannot be seen: %s", s.Address, s.Detail)
}
