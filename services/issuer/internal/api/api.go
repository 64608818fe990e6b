// Package api translates between the issuer's gRPC service and its domain.
//
// It guarantees that what reaches the domain is well formed and bounded, and that what is not is refused with
// INVALID_ARGUMENT naming the field. Who may call is decided before (Methods), what may be issued after.
package api

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/catalogue"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/intake"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/issuance"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/ordering"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/revocation"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

// Methods says who may call what.
func Methods() map[string][]identity.Role {
	const (
		operator  = identity.RoleOperator
		deployer  = identity.RoleDeployer
		inventory = identity.RoleInventory
	)
	return map[string][]identity.Role{
		issuerv1.IssuerService_ApplyAuthority_FullMethodName:    {operator},
		issuerv1.IssuerService_GetAuthority_FullMethodName:      {operator, deployer, inventory},
		issuerv1.IssuerService_ListAuthorities_FullMethodName:   {operator},
		issuerv1.IssuerService_DeleteAuthority_FullMethodName:   {operator},
		issuerv1.IssuerService_ApplyProfile_FullMethodName:      {operator},
		issuerv1.IssuerService_GetProfile_FullMethodName:        {operator, deployer},
		issuerv1.IssuerService_ListProfiles_FullMethodName:      {operator},
		issuerv1.IssuerService_DeleteProfile_FullMethodName:     {operator},
		issuerv1.IssuerService_SubmitRequest_FullMethodName:     {deployer, operator},
		issuerv1.IssuerService_GetRequest_FullMethodName:        {operator, deployer},
		issuerv1.IssuerService_ListRequests_FullMethodName:      {operator},
		issuerv1.IssuerService_CancelRequest_FullMethodName:     {operator, deployer},
		issuerv1.IssuerService_ReportChallenge_FullMethodName:   {deployer},
		issuerv1.IssuerService_RevokeCertificate_FullMethodName: {operator},
		issuerv1.IssuerService_GetRevocationList_FullMethodName: {operator},
		issuerv1.IssuerService_CheckStore_FullMethodName:        {operator},
	}
}

// Config is what a Server needs; all of it is required.
type Config struct {
	Store     *store.Store
	Catalogue *catalogue.Catalogue
	Desk      *intake.Desk
	Worker    *ordering.Worker
	Checker   *check.Checker
}

// Server is the gRPC service.
type Server struct {
	issuerv1.UnsafeIssuerServiceServer
	c Config
}

// New validates c.
func New(c Config) (*Server, error) {
	if c.Store == nil || c.Catalogue == nil || c.Desk == nil || c.Worker == nil || c.Checker == nil {
		return nil, errors.New("api.New: Store, Catalogue, Desk, Worker and Checker are required")
	}
	return &Server{c: c}, nil
}

// Register adds the service to a server.
func (s *Server) Register(r grpc.ServiceRegistrar) { issuerv1.RegisterIssuerServiceServer(r, s) }

const (
	maxText    = 1000 // characters of a reason or message
	maxCSR     = 16 << 10
	maxEtag    = 64
	maxStates  = 20
	maxNamesIn = 100
	maxDomains = 1000
	maxBundle  = 256 << 10
)

// text refuses what must not reach a log or a record as it is.
func text(field, s string, limit int) error {
	switch {
	case !utf8.ValidString(s) || utf8.RuneCountInString(s) > limit:
		return fault.Invalid(field, "want at most %d characters", limit)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }):
		return fault.Invalid(field, "control characters are not allowed")
	}
	return nil
}

// ApplyAuthority creates or changes an authority.
func (s *Server) ApplyAuthority(ctx context.Context, req *issuerv1.ApplyAuthorityRequest) (*issuerv1.ApplyAuthorityResponse, error) {
	spec, err := specIn(req.GetAuthority())
	if err != nil {
		return nil, err
	}
	if spec.ACME != nil && len(spec.ACME.CABundlePEM) > maxBundle {
		return nil, fault.Invalid("authority.acme.ca_bundle_pem", "larger than %d bytes", maxBundle)
	}
	if err := text("authority.etag", req.GetAuthority().GetEtag(), maxEtag); err != nil {
		return nil, err
	}
	a, changed, err := s.c.Catalogue.ApplyAuthority(ctx, spec, req.GetAuthority().GetEtag(), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	return &issuerv1.ApplyAuthorityResponse{Authority: authorityOut(a), Changed: changed}, nil
}

// GetAuthority shows one authority.
func (s *Server) GetAuthority(ctx context.Context, req *issuerv1.GetAuthorityRequest) (*issuerv1.GetAuthorityResponse, error) {
	if err := profile.CheckName("name", req.GetName()); err != nil {
		return nil, err
	}
	a, err := s.c.Store.Authority(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &issuerv1.GetAuthorityResponse{Authority: authorityOut(a)}, nil
}

// ListAuthorities lists them by name.
func (s *Server) ListAuthorities(ctx context.Context, req *issuerv1.ListAuthoritiesRequest) (*issuerv1.ListAuthoritiesResponse, error) {
	list, next, err := listByName(ctx, "authorities", req.GetPageSize(), req.GetPageToken(), s.c.Store.Authorities, authorityOut)
	if err != nil {
		return nil, err
	}
	return &issuerv1.ListAuthoritiesResponse{Authorities: list, NextPageToken: next}, nil
}

// listByName reads a page and makes each item a message.
func listByName[T any, M interface {
	proto.Message
	GetName() string
}](ctx context.Context, list string, size int32, pageToken string,
	read func(ctx context.Context, after string, limit int) ([]T, error), message func(T) M,
) (all []M, next string, err error) {
	limit, err := pageSize(size)
	if err != nil {
		return nil, "", err
	}
	q := question(list)
	after, err := readToken[string](pageToken, q)
	if err != nil {
		return nil, "", err
	}
	from := ""
	if after != nil {
		from = *after
	}
	items, err := read(ctx, from, limit+1)
	if err != nil {
		return nil, "", err
	}
	all, more := page(items, limit, message)
	if more {
		next = writeToken(q, all[len(all)-1].GetName())
	}
	return all, next, nil
}

// DeleteAuthority removes an authority that no profile names.
func (s *Server) DeleteAuthority(ctx context.Context, req *issuerv1.DeleteAuthorityRequest) (*issuerv1.DeleteAuthorityResponse, error) {
	if err := profile.CheckName("name", req.GetName()); err != nil {
		return nil, err
	}
	if err := s.c.Catalogue.DeleteAuthority(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &issuerv1.DeleteAuthorityResponse{}, nil
}

// ApplyProfile creates or changes a profile.
func (s *Server) ApplyProfile(ctx context.Context, req *issuerv1.ApplyProfileRequest) (*issuerv1.ApplyProfileResponse, error) {
	if n := len(req.GetProfile().GetAllowedDomains()); n > maxDomains {
		return nil, fault.Invalid("profile.allowed_domains", "%d given, at most %d allowed", n, maxDomains)
	}
	if n := len(req.GetProfile().GetKeyTypes()) + len(req.GetProfile().GetUsages()); n > maxStates {
		return nil, fault.Invalid("profile.key_types", "%d key types and usages given, at most %d allowed", n, maxStates)
	}
	p, err := profileIn(req.GetProfile())
	if err != nil {
		return nil, err
	}
	if err := text("profile.etag", req.GetProfile().GetEtag(), maxEtag); err != nil {
		return nil, err
	}
	p, changed, err := s.c.Catalogue.ApplyProfile(ctx, p, req.GetProfile().GetEtag(), req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	return &issuerv1.ApplyProfileResponse{Profile: profileOut(p), Changed: changed}, nil
}

// GetProfile shows one profile.
func (s *Server) GetProfile(ctx context.Context, req *issuerv1.GetProfileRequest) (*issuerv1.GetProfileResponse, error) {
	if err := profile.CheckName("name", req.GetName()); err != nil {
		return nil, err
	}
	p, err := s.c.Store.Profile(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &issuerv1.GetProfileResponse{Profile: profileOut(p)}, nil
}

// ListProfiles lists them by name.
func (s *Server) ListProfiles(ctx context.Context, req *issuerv1.ListProfilesRequest) (*issuerv1.ListProfilesResponse, error) {
	list, next, err := listByName(ctx, "profiles", req.GetPageSize(), req.GetPageToken(), s.c.Store.Profiles, profileOut)
	if err != nil {
		return nil, err
	}
	return &issuerv1.ListProfilesResponse{Profiles: list, NextPageToken: next}, nil
}

// DeleteProfile removes a profile.
func (s *Server) DeleteProfile(ctx context.Context, req *issuerv1.DeleteProfileRequest) (*issuerv1.DeleteProfileResponse, error) {
	if err := profile.CheckName("name", req.GetName()); err != nil {
		return nil, err
	}
	if err := s.c.Catalogue.DeleteProfile(ctx, req.GetName()); err != nil {
		return nil, err
	}
	return &issuerv1.DeleteProfileResponse{}, nil
}

// SubmitRequest hands in a CSR.
func (s *Server) SubmitRequest(ctx context.Context, req *issuerv1.SubmitRequestRequest) (*issuerv1.SubmitRequestResponse, error) {
	w, err := wishIn(req)
	if err != nil {
		return nil, err
	}
	r, err := s.c.Desk.Submit(ctx, w)
	if err != nil {
		return nil, err
	}
	return &issuerv1.SubmitRequestResponse{Request: requestOut(r)}, nil
}

func wishIn(req *issuerv1.SubmitRequestRequest) (intake.Wish, error) {
	w := intake.Wish{ID: req.GetRequestId(), Identity: req.GetIdentity(), Profile: req.GetProfile(), CSR: req.GetCsr(), Reason: req.GetReason()}
	if err := issuance.CheckID("request_id", w.ID); err != nil {
		return w, err
	}
	if err := profile.CheckName("identity", w.Identity); err != nil {
		return w, err
	}
	if err := profile.CheckName("profile", w.Profile); err != nil {
		return w, err
	}
	switch n := len(w.CSR); {
	case n == 0:
		return w, fault.Invalid("csr", "must be given")
	case n > maxCSR:
		return w, fault.Invalid("csr", "%d bytes, at most %d allowed", n, maxCSR)
	}
	var err error
	if w.Replaces, err = issuance.ParseFingerprint("replaces", req.GetReplaces()); err != nil {
		return w, err
	}
	if n := len(req.GetNames().GetDns()) + len(req.GetNames().GetIp()); n == 0 || n > maxNamesIn {
		return w, fault.Invalid("names", "%d given: want 1 to %d, the names that should be in the CSR", n, maxNamesIn)
	}
	if w.Expected, err = pki.ParseNames(req.GetNames().GetDns(), req.GetNames().GetIp()); err != nil {
		return w, fault.Invalid("names", "%v", err)
	}
	return w, text("reason", w.Reason, maxText)
}

// GetRequest shows a request, with the chain once issued.
func (s *Server) GetRequest(ctx context.Context, req *issuerv1.GetRequestRequest) (*issuerv1.GetRequestResponse, error) {
	if err := issuance.CheckID("request_id", req.GetRequestId()); err != nil {
		return nil, err
	}
	r, err := s.c.Store.Request(ctx, req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &issuerv1.GetRequestResponse{Request: requestOut(r)}, nil
}

// ListRequests lists requests, newest first.
func (s *Server) ListRequests(ctx context.Context, req *issuerv1.ListRequestsRequest) (*issuerv1.ListRequestsResponse, error) {
	f, err := filterIn(req)
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	q := question("requests", f.Identity, f.Authority, f.States)
	after, err := readToken[store.Position](req.GetPageToken(), q)
	if err != nil {
		return nil, err
	}
	all, err := s.c.Store.Requests(ctx, f, after, limit+1)
	if err != nil {
		return nil, err
	}
	list, more := page(all, limit, requestOut)
	out := &issuerv1.ListRequestsResponse{Requests: list}
	if more {
		out.NextPageToken = writeToken(q, store.PositionOf(all[len(list)-1]))
	}
	return out, nil
}

func filterIn(req *issuerv1.ListRequestsRequest) (store.Filter, error) {
	f := store.Filter{Identity: req.GetIdentity(), Authority: req.GetAuthority()}
	if f.Identity != "" {
		if err := profile.CheckName("identity", f.Identity); err != nil {
			return f, err
		}
	}
	if f.Authority != "" {
		if err := profile.CheckName("authority", f.Authority); err != nil {
			return f, err
		}
	}
	if len(req.GetStates()) > maxStates {
		return f, fault.Invalid("states", "%d given, at most %d allowed", len(req.GetStates()), maxStates)
	}
	for _, st := range req.GetStates() {
		one, ok := stateOf(st)
		if !ok {
			return f, fault.Invalid("states", "unknown state %d", int32(st))
		}
		f.States = append(f.States, one)
	}
	return f, nil
}

// CancelRequest gives a request up that has not been issued.
func (s *Server) CancelRequest(ctx context.Context, req *issuerv1.CancelRequestRequest) (*issuerv1.CancelRequestResponse, error) {
	if err := issuance.CheckID("request_id", req.GetRequestId()); err != nil {
		return nil, err
	}
	if err := text("reason", req.GetReason(), maxText); err != nil {
		return nil, err
	}
	r, err := s.c.Store.Cancel(ctx, req.GetRequestId(), req.GetReason())
	if err != nil {
		return nil, err
	}
	return &issuerv1.CancelRequestResponse{Request: requestOut(r)}, nil
}

// ReportChallenge says that the answer to a challenge is being served, or cannot be.
func (s *Server) ReportChallenge(ctx context.Context, req *issuerv1.ReportChallengeRequest) (*issuerv1.ReportChallengeResponse, error) {
	if err := issuance.CheckID("challenge_id", req.GetChallengeId()); err != nil {
		return nil, err
	}
	if err := text("message", req.GetMessage(), maxText); err != nil {
		return nil, err
	}
	if err := s.c.Worker.Report(ctx, req.GetChallengeId(), req.GetReady(), req.GetMessage()); err != nil {
		return nil, err
	}
	crash.At(crash.ChallengeHere)
	return &issuerv1.ReportChallengeResponse{}, nil
}

// RevokeCertificate takes a certificate of an internal authority back, for ever.
func (s *Server) RevokeCertificate(ctx context.Context, req *issuerv1.RevokeCertificateRequest) (*issuerv1.RevokeCertificateResponse, error) {
	f, err := issuance.ParseFingerprint("fingerprint", req.GetFingerprint())
	if err != nil {
		return nil, err
	}
	if f == "" {
		return nil, fault.Invalid("fingerprint", "must be given")
	}
	reason := revocation.Reason(req.GetReason())
	if !reason.Known() {
		return nil, fault.Invalid("reason", "%d is none of the reasons there are", int32(req.GetReason()))
	}
	if err := text("comment", req.GetComment(), maxText); err != nil {
		return nil, err
	}
	if err := issuance.CheckID("request_id", req.GetRequestId()); err != nil {
		return nil, err
	}
	r, err := s.c.Store.Revoke(ctx, f, reason, req.GetRequestId(), req.GetComment())
	if err != nil {
		return nil, err
	}
	crash.At(crash.Revoked)
	return &issuerv1.RevokeCertificateResponse{Revocation: revocationOut(r)}, nil
}

// GetRevocationList gives the newest CRLs of an internal authority.
func (s *Server) GetRevocationList(ctx context.Context, req *issuerv1.GetRevocationListRequest) (*issuerv1.GetRevocationListResponse, error) {
	if err := profile.CheckName("authority", req.GetAuthority()); err != nil {
		return nil, err
	}
	a, err := s.c.Store.Authority(ctx, req.GetAuthority())
	if err != nil {
		return nil, err
	}
	if a.Spec.Internal == nil {
		return nil, fault.New(fault.Precondition, store.ReasonCannotRevoke, "authority %q is a CA of others, which publishes its own list: its certificates name the place", a.Spec.Name)
	}
	lists, err := s.c.Store.CRLs(ctx, a.UID)
	if err != nil {
		return nil, err
	}
	if len(lists) == 0 {
		return nil, fault.New(fault.Transient, store.ReasonCRLNotFound, "the first CRL of authority %q is not made yet: try again in some seconds", a.Spec.Name)
	}
	out := &issuerv1.GetRevocationListResponse{}
	for _, c := range lists {
		out.Lists = append(out.Lists, crlOut(c))
	}
	return out, nil
}

// CheckStore examines the issuer's own store.
func (s *Server) CheckStore(req *issuerv1.CheckStoreRequest, stream grpc.ServerStreamingServer[issuerv1.CheckStoreResponse]) error {
	return s.c.Checker.Run(stream.Context(), req.GetFull(), func(r *typev1.StoreReport) error {
		return stream.Send(&issuerv1.CheckStoreResponse{Report: r})
	})
}
