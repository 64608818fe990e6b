package kind

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func authorities() *Kind {
	type T = *issuerv1.Authority
	return &Kind{
		Singular: "authority", Plural: "authorities", Aliases: []string{"auth", "ca"}, Appliable: true,
		name: named(T.GetName),
		Columns: []Column{
			column("NAME", text(T.GetName)),
			column("TYPE", text(authorityType)),
			column("CA", text(authorityCA)),
			column("PROBLEM", text(T.GetProblem)),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
			wide("KEY", text(func(m T) string { return manifest.KeyTypeName(m.GetInternal().GetKeyType()) })),
			wide("ETAG", text(T.GetEtag)),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Issuer().GetAuthority(ctx, &issuerv1.GetAuthorityRequest{Name: name})
			return r.GetAuthority(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Issuer().ListAuthorities(ctx, &issuerv1.ListAuthoritiesRequest{PageSize: size, PageToken: token})
			return untyped(r.GetAuthorities()), r.GetNextPageToken(), err
		},
		Delete: func(ctx context.Context, c *connect.Client, name, _ string) error {
			_, err := c.Issuer().DeleteAuthority(ctx, &issuerv1.DeleteAuthorityRequest{Name: name})
			return err
		},
		DeleteHint: "the keys of an internal authority are lost",
	}
}

func authorityType(m *issuerv1.Authority) string {
	switch m.GetKind().(type) {
	case *issuerv1.Authority_Internal:
		return "internal"
	case *issuerv1.Authority_Acme:
		return "acme"
	}
	return ""
}

func authorityCA(m *issuerv1.Authority) string {
	if d := m.GetAcme().GetDirectory(); d != "" {
		return d
	}
	if cn := m.GetInternal().GetCommonName(); cn != "" {
		return cn
	}
	return m.GetName()
}

func profiles() *Kind {
	type T = *issuerv1.Profile
	return &Kind{
		Singular: "profile", Plural: "profiles", Aliases: []string{"prof"}, Appliable: true,
		name: named(T.GetName),
		Columns: []Column{
			column("NAME", text(T.GetName)),
			column("AUTHORITY", text(T.GetAuthority)),
			column("KEYS", text(ProfileKeys)),
			column("USAGES", text(ProfileUsages)),
			column("LIFETIME", text(func(m T) string { return lifetime(m.GetLifetime()) })),
			column("DOMAINS", text(func(m T) string { return strings.Join(m.GetAllowedDomains(), ",") })),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
			wide("WILDCARDS", text(func(m T) string { return yes(m.GetAllowWildcards()) })),
			wide("IP", text(func(m T) string { return yes(m.GetAllowIp()) })),
			wide("ACME-PROFILE", text(T.GetAcmeProfile)),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Issuer().GetProfile(ctx, &issuerv1.GetProfileRequest{Name: name})
			return r.GetProfile(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Issuer().ListProfiles(ctx, &issuerv1.ListProfilesRequest{PageSize: size, PageToken: token})
			return untyped(r.GetProfiles()), r.GetNextPageToken(), err
		},
		Delete: func(ctx context.Context, c *connect.Client, name, _ string) error {
			_, err := c.Issuer().DeleteProfile(ctx, &issuerv1.DeleteProfileRequest{Name: name})
			return err
		},
		DeleteHint: "deployments that name the profile cannot renew any more",
	}
}

// ProfileKeys are the key types a profile allows.
func ProfileKeys(m *issuerv1.Profile) string {
	var all []string
	for _, k := range m.GetKeyTypes() {
		all = append(all, manifest.KeyTypeName(k))
	}
	return strings.Join(all, ",")
}

// ProfileUsages are the extended key usages of a profile.
func ProfileUsages(m *issuerv1.Profile) string {
	var all []string
	for _, u := range m.GetUsages() {
		all = append(all, manifest.UsageName(u))
	}
	return strings.Join(all, ",")
}

func requests() *Kind {
	type T = *issuerv1.Request
	var (
		filter issuerv1.ListRequestsRequest
		states enumsFlag[issuerv1.RequestState]
	)
	return &Kind{
		Singular: "request", Plural: "requests", Aliases: []string{"req"},
		name: named(T.GetId),
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&filter.Identity, "identity", "", "only of this identity")
			fs.StringVar(&filter.Authority, "authority", "", "only of this authority")
			fs.Var(&states, "state", "only in these states, parted by commas: "+strings.Join(states.Words(), ", "))
		},
		Columns: []Column{
			column("ID", text(T.GetId)),
			column("IDENTITY", text(T.GetIdentity)),
			column("PROFILE", text(T.GetProfile)),
			column("STATE", text(func(m T) string { return output.Word(m.GetState()) })),
			column("REASON", text(T.GetReason)),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
			wide("AUTHORITY", text(T.GetAuthority)),
			wide("FINGERPRINT", text(func(m T) string { return Short(m.GetFingerprint()) })),
			wide("NAMES", text(func(m T) string { return Names(m.GetNames(), 3) })),
			wide("NEXT-TRY", func(m T, now time.Time) string { return output.Until(now, m.GetNextAttempt()) }),
			wide("MESSAGE", text(T.GetMessage)),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Issuer().GetRequest(ctx, &issuerv1.GetRequestRequest{RequestId: name})
			return r.GetRequest(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Issuer().ListRequests(ctx, &issuerv1.ListRequestsRequest{
				PageSize: size, PageToken: token, Identity: filter.GetIdentity(), Authority: filter.GetAuthority(), States: states.vs,
			})
			return untyped(r.GetRequests()), r.GetNextPageToken(), err
		},
	}
}
