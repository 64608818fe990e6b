// Package identity says who is who inside a trust domain: SPIFFE X.509-SVIDs,
// where they come from (files, Workload API, minted in memory), the authority
// that mints them, the callers they name, and the join token of a new agent.
//
// It guarantees that a SPIFFE ID outside the known forms is nobody. What a
// caller may do is decided in package rpc.
package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Role is what kind of caller somebody is.
type Role string

// The roles. Service roles carry the service's name.
const (
	RoleAnonymous Role = "anonymous"
	RoleAgent     Role = "agent"
	RoleOperator  Role = "operator"
	RoleInventory Role = "inventory"
	RoleIssuer    Role = "issuer"
	RoleDeployer  Role = "deployer"
	RoleAudit     Role = "audit"
)

// Services are the roles that are services.
var Services = []Role{RoleInventory, RoleIssuer, RoleDeployer, RoleAudit}

// Caller is who made a call. Name is the agent id, operator name or service
// name; empty for the anonymous caller, whose ID is zero too. Key is the
// SHA-256 of the SVID's SubjectPublicKeyInfo in lower-case hex, where the
// caller comes from a connection.
type Caller struct {
	ID   spiffeid.ID
	Role Role
	Name string
	Key  string
	// SVID is the certificate it has shown on its connection, verified then; nil where there is none.
	SVID *x509.Certificate
}

// Anonymous is the caller without a certificate.
var Anonymous = Caller{Role: RoleAnonymous}

// String is "role/name", or "anonymous".
func (c Caller) String() string {
	if c.Name == "" {
		return string(c.Role)
	}
	return string(c.Role) + "/" + c.Name
}

// namePattern bounds agent ids and operator names: they go into file names,
// log lines and database keys. The longest is a host name (RFC 1123).
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,251}[a-zA-Z0-9])?$`)

// CallerOf reads the caller out of a SPIFFE ID of the form
// spiffe://<trust domain>/{service,agent,operator}/<name>.
func CallerOf(id spiffeid.ID) (Caller, error) {
	kind, name, ok := strings.Cut(strings.TrimPrefix(id.Path(), "/"), "/")
	if !ok || !namePattern.MatchString(name) {
		return Caller{}, fmt.Errorf("SPIFFE ID %q is not of the form /service/NAME, /agent/ID or /operator/NAME", id)
	}
	switch kind {
	case "agent":
		return Caller{ID: id, Role: RoleAgent, Name: name}, nil
	case "operator":
		return Caller{ID: id, Role: RoleOperator, Name: name}, nil
	case "service":
		for _, r := range Services {
			if name == string(r) {
				return Caller{ID: id, Role: r, Name: name}, nil
			}
		}
	}
	return Caller{}, fmt.Errorf("SPIFFE ID %q names no known kind of caller", id)
}

// ServiceID is spiffe://<td>/service/<name>.
func ServiceID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	return makeID(td, "service", name)
}

// AgentID is spiffe://<td>/agent/<id>.
func AgentID(td spiffeid.TrustDomain, id string) (spiffeid.ID, error) {
	return makeID(td, "agent", id)
}

// OperatorID is spiffe://<td>/operator/<name>.
func OperatorID(td spiffeid.TrustDomain, name string) (spiffeid.ID, error) {
	return makeID(td, "operator", name)
}

func makeID(td spiffeid.TrustDomain, kind, name string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("%s %q: no trust domain", kind, name)
	}
	id, err := spiffeid.FromSegments(td, kind, name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%s name %q: %w", kind, name, err)
	}
	if _, err := CallerOf(id); err != nil {
		return spiffeid.ID{}, err
	}
	return id, nil
}

type callerKey struct{}

// WithCaller puts the caller into the context.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// FromContext gives the caller in the context, Anonymous when there is none.
func FromContext(ctx context.Context) Caller {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c
	}
	return Anonymous
}

// Source gives the process its own SVID and the trust bundle, always the
// current ones. *workloadapi.X509Source is one.
type Source interface {
	x509svid.Source
	x509bundle.Source
	Close() error
}
