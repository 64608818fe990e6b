// Package peer is how the deployer asks the issuer and the inventory.
//
// It guarantees that an answer is checked before anybody relies on it: a chain belongs to the CSR it was asked with. It
// decides nothing and repeats nothing; what a failed call means is told by the kind of its fault.
package peer

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
)

// timeout bounds one call.
const timeout = 10 * time.Second

// Peers are the services the deployer asks.
type Peers struct {
	issuer    issuerv1.IssuerServiceClient
	inventory inventoryv1.InventoryServiceClient
}

// New takes a connection to each.
func New(issuer, inventory grpc.ClientConnInterface) *Peers {
	return &Peers{issuer: issuerv1.NewIssuerServiceClient(issuer), inventory: inventoryv1.NewInventoryServiceClient(inventory)}
}

// Want says what the certificates of a deployment must be, by its profile and its identity. A profile or identity that does
// not exist or does not fit is a fault.InvalidArgument that names the field.
func (p *Peers) Want(ctx context.Context, d rollout.Deployment) (rollout.Wanted, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var identity *inventoryv1.GetIdentityResponse
	var unknown error // of the identity
	var both sync.WaitGroup
	both.Go(func() {
		identity, unknown = p.inventory.GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: d.Identity})
	})
	profile, err := p.issuer.GetProfile(ctx, &issuerv1.GetProfileRequest{Name: d.Profile})
	both.Wait()
	if fault.KindOf(err) == fault.NotFound && err != nil {
		return rollout.Wanted{}, fault.Invalid("deployment.profile", "no profile %q: apply it first", d.Profile)
	}
	if err != nil {
		return rollout.Wanted{}, away("issuer", err)
	}
	if unknown != nil && fault.KindOf(unknown) == fault.NotFound {
		return rollout.Wanted{}, fault.Invalid("deployment.identity", "no identity %q: apply it first", d.Identity)
	}
	if unknown != nil {
		return rollout.Wanted{}, away("inventory", unknown)
	}
	names, err := ParseNames(identity.GetIdentity().GetNames())
	if err != nil {
		return rollout.Wanted{}, fault.New(fault.Internal, fault.ReasonInternal, "names of identity %s: %w", d.Identity, err)
	}
	types := make([]pki.KeyType, 0, len(profile.GetProfile().GetKeyTypes()))
	for _, kt := range profile.GetProfile().GetKeyTypes() {
		types = append(types, ParseKeyType(kt))
	}
	return rollout.Want(d, types, names)
}

// away hides why another service does not answer: that is for the log.
func away(service string, err error) error {
	f := fault.Of(err)
	return &fault.Error{Kind: fault.Transient, Reason: "PEER_UNAVAILABLE", Message: "the " + service + " does not answer: try again", RetryAfter: f.RetryAfter, Cause: err}
}

// Answer is where a request stands at the issuer.
type Answer struct {
	Certificate rollout.Certificate // once issued
	Chain       [][]byte
	Ended       bool // refused or cancelled: it will never be issued
	Reason      string
	Message     string
	NextAttempt time.Time // of the issuer with its CA, if it says
}

// Submit hands in an assignment's CSR. The same again is harmless.
func (p *Peers) Submit(ctx context.Context, a rollout.Assignment) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := p.issuer.SubmitRequest(ctx, &issuerv1.SubmitRequestRequest{
		RequestId: a.RequestID(), Identity: a.Spec.Wanted.Identity, Profile: a.Spec.Wanted.Profile, Csr: a.CSR, Replaces: a.Replaces,
		Names:  FormatNames(a.Spec.Wanted.Names),
		Reason: fmt.Sprintf("deployment %s, %s on %s", a.Deployment, a.Spec.Target.Name, a.Spec.Target.Host),
	})
	if err != nil {
		return Answer{}, fmt.Errorf("submitting request %s: %w", a.RequestID(), err)
	}
	return answer(a, resp.GetRequest())
}

// Ask asks where an assignment's request stands.
func (p *Peers) Ask(ctx context.Context, a rollout.Assignment) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := p.issuer.GetRequest(ctx, &issuerv1.GetRequestRequest{RequestId: a.RequestID()})
	if err != nil {
		return Answer{}, fmt.Errorf("asking for request %s: %w", a.RequestID(), err)
	}
	return answer(a, resp.GetRequest())
}

// ReportChallenge tells whether the answer to a challenge is being served.
func (p *Peers) ReportChallenge(ctx context.Context, id string, ready bool, message string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := p.issuer.ReportChallenge(ctx, &issuerv1.ReportChallengeRequest{ChallengeId: id, Ready: ready, Message: message})
	if err != nil {
		return fmt.Errorf("reporting challenge %s: %w", id, err)
	}
	return nil
}

// Cancel gives a request up.
func (p *Peers) Cancel(ctx context.Context, request, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := p.issuer.CancelRequest(ctx, &issuerv1.CancelRequestRequest{RequestId: request, Reason: reason})
	if err != nil {
		return fmt.Errorf("cancelling request %s: %w", request, err)
	}
	return nil
}

func answer(a rollout.Assignment, r *issuerv1.Request) (Answer, error) {
	out := Answer{Reason: r.GetReason(), Message: r.GetMessage()}
	if t := r.GetNextAttempt(); t != nil {
		out.NextAttempt = t.AsTime()
	}
	switch r.GetState() {
	case issuerv1.RequestState_REQUEST_STATE_ISSUED:
		leaf, err := checkChain(a, r.GetChain())
		if err != nil {
			return Answer{}, fault.New(fault.Permanent, rollout.ReasonChainMismatch, "the issuer's chain for %s: %v", a.RequestID(), err)
		}
		out.Chain = r.GetChain()
		out.Certificate = rollout.Certificate{Fingerprint: string(pki.FingerprintOf(leaf.Raw)), NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC()}
	case issuerv1.RequestState_REQUEST_STATE_REFUSED, issuerv1.RequestState_REQUEST_STATE_CANCELLED:
		out.Ended = true
	default:
	}
	return out, nil
}

const (
	maxChain = 10
	maxCert  = 16 << 10
)

// checkChain wants a leaf for the key and all names of the CSR.
func checkChain(a rollout.Assignment, chain [][]byte) (*x509.Certificate, error) {
	if len(chain) > maxChain {
		return nil, fmt.Errorf("%d certificates, more than %d", len(chain), maxChain)
	}
	for _, der := range chain {
		if len(der) > maxCert {
			return nil, fmt.Errorf("a certificate of %d bytes, more than %d", len(der), maxCert)
		}
	}
	certs, err := pki.ParseChainDER(chain)
	if err != nil {
		return nil, err
	}
	csr, err := pki.CheckCSR(a.CSR)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.Request.RawSubjectPublicKeyInfo) {
		return nil, errors.New("its first certificate is for another key than the CSR's")
	}
	if names := pki.Facts(leaf).Names; !names.Contains(csr.Names) {
		return nil, fmt.Errorf("its first certificate is for %v, asked for was %v", names.Strings(), csr.Names.Strings())
	}
	return leaf, nil
}

// ParseNames reads names as they come over the wire.
func ParseNames(n *typev1.Names) (pki.Names, error) { return pki.ParseNames(n.GetDns(), n.GetIp()) }

// FormatNames writes names for the wire.
func FormatNames(n pki.Names) *typev1.Names {
	return &typev1.Names{Dns: n.DNS, Ip: n.IPStrings()}
}

var keyTypes = map[typev1.KeyType]pki.KeyType{
	typev1.KeyType_KEY_TYPE_ECDSA_P256: pki.ECDSAP256,
	typev1.KeyType_KEY_TYPE_ECDSA_P384: pki.ECDSAP384,
	typev1.KeyType_KEY_TYPE_RSA_2048:   pki.RSA2048,
	typev1.KeyType_KEY_TYPE_RSA_3072:   pki.RSA3072,
	typev1.KeyType_KEY_TYPE_RSA_4096:   pki.RSA4096,
}

// ParseKeyType gives "" for unspecified and "unknown" for one that is newer than this program.
func ParseKeyType(t typev1.KeyType) pki.KeyType {
	if t == typev1.KeyType_KEY_TYPE_UNSPECIFIED {
		return ""
	}
	if kt, ok := keyTypes[t]; ok {
		return kt
	}
	return "unknown"
}

// FormatKeyType is the inverse.
func FormatKeyType(kt pki.KeyType) typev1.KeyType {
	for t, k := range keyTypes {
		if k == kt {
			return t
		}
	}
	return typev1.KeyType_KEY_TYPE_UNSPECIFIED
}
