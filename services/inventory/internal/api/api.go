// Package api answers the inventory's gRPC calls: it translates, package store and the domain decide.
package api

import (
	"context"
	"regexp"
	"strings"
	"time"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/registry"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Methods gives each method the roles that may call it, as the comments in the proto say.
func Methods() map[string][]identity.Role {
	operator := []identity.Role{identity.RoleOperator}
	return map[string][]identity.Role{
		inventoryv1.InventoryService_ApplyIdentity_FullMethodName:    operator,
		inventoryv1.InventoryService_GetIdentity_FullMethodName:      {identity.RoleOperator, identity.RoleIssuer, identity.RoleDeployer},
		inventoryv1.InventoryService_ListIdentities_FullMethodName:   operator,
		inventoryv1.InventoryService_DeleteIdentity_FullMethodName:   operator,
		inventoryv1.InventoryService_GetCertificate_FullMethodName:   operator,
		inventoryv1.InventoryService_ListCertificates_FullMethodName: operator,
		inventoryv1.InventoryService_GetHost_FullMethodName:          operator,
		inventoryv1.InventoryService_ListHosts_FullMethodName:        operator,
		inventoryv1.InventoryService_ListFindings_FullMethodName:     operator,
		inventoryv1.InventoryService_CheckStore_FullMethodName:       operator,
	}
}

// Server implements the InventoryService.
type Server struct {
	inventoryv1.UnsafeInventoryServiceServer
	Store   *store.Store
	Checker *check.Checker
	Now     func() time.Time
}

var _ inventoryv1.InventoryServiceServer = (*Server)(nil)

// ApplyIdentity creates or changes an identity.
func (s *Server) ApplyIdentity(ctx context.Context, req *inventoryv1.ApplyIdentityRequest) (*inventoryv1.ApplyIdentityResponse, error) {
	if req.GetIdentity() == nil {
		return nil, fault.Invalid("identity", "is missing")
	}
	want, err := registry.New(wish(req.GetIdentity()))
	if err != nil {
		return nil, err
	}
	stored, changed, err := s.Store.ApplyIdentity(ctx, want, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.ApplyIdentityResponse{Identity: identityMessage(stored), Changed: changed}, nil
}

// GetIdentity shows one.
func (s *Server) GetIdentity(ctx context.Context, req *inventoryv1.GetIdentityRequest) (*inventoryv1.GetIdentityResponse, error) {
	if err := registry.CheckName("name", req.GetName()); err != nil {
		return nil, err
	}
	i, err := s.Store.Identity(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetIdentityResponse{Identity: identityMessage(i)}, nil
}

// ListIdentities lists them by name.
func (s *Server) ListIdentities(ctx context.Context, req *inventoryv1.ListIdentitiesRequest) (*inventoryv1.ListIdentitiesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := decodeToken[string](req, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	if err := text("owner", req.GetOwner()); err != nil {
		return nil, err
	}
	items, err := s.Store.Identities(ctx, req.GetOwner(), after, size+1)
	if err != nil {
		return nil, err
	}
	out, next, err := page(req, size, items, identityMessage, func(i registry.Identity) string { return i.Name })
	return &inventoryv1.ListIdentitiesResponse{Identities: out, NextPageToken: next}, err
}

// DeleteIdentity removes one.
func (s *Server) DeleteIdentity(ctx context.Context, req *inventoryv1.DeleteIdentityRequest) (*inventoryv1.DeleteIdentityResponse, error) {
	if err := registry.CheckName("name", req.GetName()); err != nil {
		return nil, err
	}
	if err := s.Store.DeleteIdentity(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &inventoryv1.DeleteIdentityResponse{}, nil
}

var fingerprintPattern = regexp.MustCompile(`^[0-9a-f]{8,64}$`)

// GetCertificate shows one with its sightings.
func (s *Server) GetCertificate(ctx context.Context, req *inventoryv1.GetCertificateRequest) (*inventoryv1.GetCertificateResponse, error) {
	prefix := strings.ToLower(strings.ReplaceAll(req.GetFingerprint(), ":", ""))
	if !fingerprintPattern.MatchString(prefix) {
		return nil, fault.Invalid("fingerprint", "want 8 to 64 hexadecimal digits: the SHA-256 of the certificate, or its beginning")
	}
	k, err := s.Store.Certificate(ctx, prefix)
	if err != nil {
		return nil, err
	}
	m := knownMessage(k)
	m.Pem = pemOf(k)
	return &inventoryv1.GetCertificateResponse{Certificate: m}, nil
}

// ListCertificates lists certificates, soonest end first.
func (s *Server) ListCertificates(ctx context.Context, req *inventoryv1.ListCertificatesRequest) (*inventoryv1.ListCertificatesResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := decodeToken[store.CertificateKey](req, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	for field, value := range map[string]string{"owner": req.GetOwner(), "authority": req.GetAuthority(), "issuer_contains": req.GetIssuerContains(), "host": req.GetHost(), "identity": req.GetIdentity(), "name": req.GetName()} {
		if err := text(field, value); err != nil {
			return nil, err
		}
	}
	q := store.CertificateQuery{
		Limit: size + 1, After: after, Owner: req.GetOwner(), Authority: req.GetAuthority(), IssuerContains: req.GetIssuerContains(),
		Host: req.GetHost(), Identity: req.GetIdentity(), Name: req.GetName(), Served: req.GetServed(), Past: req.GetIncludePast(),
	}
	if req.GetExpiresWithin() != nil {
		within, err := duration("expires_within", req.GetExpiresWithin())
		if err != nil {
			return nil, err
		}
		q.EndsBefore = s.Now().Add(within)
	}
	items, err := s.Store.Certificates(ctx, q)
	if err != nil {
		return nil, err
	}
	out, next, err := page(req, size, items, knownMessage, store.KeyOf)
	return &inventoryv1.ListCertificatesResponse{Certificates: out, NextPageToken: next}, err
}

// GetHost shows one host with what is seen there now.
func (s *Server) GetHost(ctx context.Context, req *inventoryv1.GetHostRequest) (*inventoryv1.GetHostResponse, error) {
	if req.GetName() == "" {
		return nil, fault.Invalid("name", "must not be empty")
	}
	if err := text("name", req.GetName()); err != nil {
		return nil, err
	}
	h, seen, err := s.Store.Host(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &inventoryv1.GetHostResponse{Host: hostMessage(h), Sightings: sightingMessages(seen)}, nil
}

// ListHosts lists hosts by name.
func (s *Server) ListHosts(ctx context.Context, req *inventoryv1.ListHostsRequest) (*inventoryv1.ListHostsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := decodeToken[string](req, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	q := store.HostQuery{Limit: size + 1, After: after}
	if req.GetSilentFor() != nil {
		silent, err := duration("silent_for", req.GetSilentFor())
		if err != nil {
			return nil, err
		}
		q.SilentSince = s.Now().Add(-silent)
	}
	items, err := s.Store.Hosts(ctx, q)
	if err != nil {
		return nil, err
	}
	out, next, err := page(req, size, items, hostMessage, hostName)
	return &inventoryv1.ListHostsResponse{Hosts: out, NextPageToken: next}, err
}

// ListFindings lists what is wrong, worst first.
func (s *Server) ListFindings(ctx context.Context, req *inventoryv1.ListFindingsRequest) (*inventoryv1.ListFindingsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := decodeToken[store.FindingKey](req, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	if err := text("owner", req.GetOwner()); err != nil {
		return nil, err
	}
	q := store.FindingQuery{Limit: size + 1, After: after, Closed: req.GetIncludeClosed(), Owner: req.GetOwner(), Least: finding.Severity(req.GetMinSeverity())}
	if q.Least < 0 || q.Least > finding.Critical {
		return nil, fault.Invalid("min_severity", "%d is no severity", req.GetMinSeverity())
	}
	for _, r := range req.GetRules() {
		rule, ok := rules[r]
		if !ok {
			return nil, fault.Invalid("rules", "%d is no rule", r)
		}
		q.Rules = append(q.Rules, rule)
	}
	items, err := s.Store.Findings(ctx, q)
	if err != nil {
		return nil, err
	}
	out, next, err := page(req, size, items, findingMessage, store.Finding.Key)
	return &inventoryv1.ListFindingsResponse{Findings: out, NextPageToken: next}, err
}

// text refuses what no stored text can be.
func text(field, value string) error {
	const longest = 1024
	if len(value) > longest || strings.ContainsRune(value, 0) {
		return fault.Invalid(field, "longer than %d bytes, or with a NUL character", longest)
	}
	return nil
}

func duration(field string, d *durationpb.Duration) (time.Duration, error) {
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		return 0, fault.Invalid(field, "want a duration that is not negative")
	}
	return d.AsDuration(), nil
}

// CheckStore examines the inventory's own store.
func (s *Server) CheckStore(req *inventoryv1.CheckStoreRequest, stream grpc.ServerStreamingServer[inventoryv1.CheckStoreResponse]) error {
	return s.Checker.Run(stream.Context(), req.GetFull(), func(r *typev1.StoreReport) error {
		return stream.Send(&inventoryv1.CheckStoreResponse{Report: r})
	})
}
