package kind

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func identities() *Kind {
	type T = *inventoryv1.Identity
	var owner string
	return &Kind{
		Singular: "identity", Plural: "identities", Aliases: []string{"id"}, Appliable: true,
		name:  named(T.GetName),
		flags: func(fs *pflag.FlagSet) { fs.StringVar(&owner, "owner", "", "only of this owner") },
		Columns: []Column{
			column("NAME", text(T.GetName)),
			column("OWNER", text(T.GetOwner)),
			column("NAMES", text(func(m T) string { return Names(m.GetNames(), 3) })),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
			wide("PURPOSE", text(T.GetPurpose)),
			wide("LABELS", text(func(m T) string { return Labels(m.GetLabels()) })),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Inventory().GetIdentity(ctx, &inventoryv1.GetIdentityRequest{Name: name})
			return r.GetIdentity(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Inventory().ListIdentities(ctx, &inventoryv1.ListIdentitiesRequest{PageSize: size, PageToken: token, Owner: owner})
			return untyped(r.GetIdentities()), r.GetNextPageToken(), err
		},
		Delete: func(ctx context.Context, c *connect.Client, name, _ string) error {
			_, err := c.Inventory().DeleteIdentity(ctx, &inventoryv1.DeleteIdentityRequest{Name: name})
			return err
		},
		DeleteHint: "nothing more is issued for the identity",
	}
}

// Labels writes labels as key=value, sorted.
func Labels(labels map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, k+"="+labels[k])
	}
	return strings.Join(all, ",")
}

func certificates() *Kind {
	type T = *inventoryv1.KnownCertificate
	var (
		filter inventoryv1.ListCertificatesRequest
		within spanFlag
	)
	return &Kind{
		Singular: "certificate", Plural: "certificates", Aliases: []string{"cert", "certs"},
		name: func(m proto.Message) string { return m.(T).GetCertificate().GetFingerprint() },
		flags: func(fs *pflag.FlagSet) {
			fs.Var(&within, "expires-within", "only those that end within this time, such as 30d, or have ended")
			fs.StringVar(&filter.Owner, "owner", "", "only of identities of this owner")
			fs.StringVar(&filter.Authority, "authority", "", "only issued by this authority")
			fs.StringVar(&filter.IssuerContains, "issuer", "", "only with this text in the issuer's distinguished name")
			fs.StringVar(&filter.Host, "host", "", "only seen on or assigned to this host")
			fs.StringVar(&filter.Identity, "identity", "", "only issued for this identity")
			fs.StringVar(&filter.Name, "name", "", "only with this DNS name or IP address")
			fs.BoolVar(&filter.Served, "served", false, "only those a listener serves")
			fs.BoolVar(&filter.IncludePast, "past", false, "also those that were replaced or have ended and are seen nowhere")
		},
		Columns: []Column{
			column("FINGERPRINT", text(func(m T) string { return Short(m.GetCertificate().GetFingerprint()) })),
			column("NAMES", text(certificateNames)),
			column("EXPIRES", func(m T, now time.Time) string { return output.Until(now, m.GetCertificate().GetNotAfter()) }),
			column("OWNER", text(T.GetOwner)),
			column("IDENTITY", text(T.GetIdentity)),
			column("AUTHORITY", text(T.GetAuthority)),
			column("SERVED", text(func(m T) string { return yes(m.GetServed()) })),
			column("HOSTS", text(func(m T) string { return strings.Join(CertificateHosts(m), ",") })),
			wide("KEY", text(func(m T) string { return m.GetCertificate().GetKey() })),
			wide("SERIAL", text(func(m T) string { return m.GetCertificate().GetSerial() })),
			wide("ISSUER", text(func(m T) string { return m.GetCertificate().GetIssuer() })),
			wide("LAST-SEEN", func(m T, now time.Time) string { return output.Age(now, m.GetLastSeen()) }),
			wide("ASSIGNED-TO", text(func(m T) string { return strings.Join(m.GetAssignedTo(), ",") })),
			wide("REVOKED", func(m T, now time.Time) string { return output.Age(now, m.GetRevoked()) }),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Inventory().GetCertificate(ctx, &inventoryv1.GetCertificateRequest{Fingerprint: name})
			return r.GetCertificate(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			q := proto.CloneOf(&filter)
			q.PageSize, q.PageToken, q.ExpiresWithin = size, token, within.message()
			r, err := c.Inventory().ListCertificates(ctx, q)
			return untyped(r.GetCertificates()), r.GetNextPageToken(), err
		},
	}
}

// certificateNames are what it is for; CA certificates have only a subject.
func certificateNames(m *inventoryv1.KnownCertificate) string {
	if names := Names(m.GetCertificate().GetNames(), 2); names != "" {
		return names
	}
	return m.GetCertificate().GetSubject()
}

// CertificateHosts are the hosts a certificate is seen on now.
func CertificateHosts(m *inventoryv1.KnownCertificate) []string {
	var all []string
	for _, s := range m.GetSightings() {
		if s.GetGone() == nil && !slices.Contains(all, s.GetHost()) {
			all = append(all, s.GetHost())
		}
	}
	slices.Sort(all)
	return all
}

func hosts() *Kind {
	type T = *inventoryv1.Host
	var silent spanFlag
	return &Kind{
		Singular: "host", Plural: "hosts",
		name: named(T.GetName),
		flags: func(fs *pflag.FlagSet) {
			fs.Var(&silent, "silent-for", "only those that have not reported for this long, such as 2h")
		},
		Columns: []Column{
			column("NAME", text(T.GetName)),
			column("AGENT", text(T.GetAgentState)),
			column("VERSION", text(T.GetAgentVersion)),
			column("PLATFORM", text(T.GetPlatform)),
			column("LAST-REPORT", func(m T, now time.Time) string { return output.Age(now, m.GetLastReport()) }),
			column("LAST-SCAN", func(m T, now time.Time) string { return output.Age(now, m.GetLastScan()) }),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetCreated()) }),
		},
		get: func(ctx context.Context, c *connect.Client, name string) (proto.Message, error) {
			r, err := c.Inventory().GetHost(ctx, &inventoryv1.GetHostRequest{Name: name})
			return r.GetHost(), err
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Inventory().ListHosts(ctx, &inventoryv1.ListHostsRequest{PageSize: size, PageToken: token, SilentFor: silent.message()})
			return untyped(r.GetHosts()), r.GetNextPageToken(), err
		},
	}
}

func findings() *Kind {
	type T = *inventoryv1.Finding
	var (
		filter   inventoryv1.ListFindingsRequest
		rules    enumsFlag[inventoryv1.Rule]
		severity enumFlag[inventoryv1.Severity]
	)
	return &Kind{
		Singular: "finding", Plural: "findings",
		name: func(m proto.Message) string { return m.(T).GetSubject() + "/" + output.Word(m.(T).GetRule()) },
		flags: func(fs *pflag.FlagSet) {
			fs.Var(&rules, "rule", "only of these rules, parted by commas: "+strings.Join(rules.Words(), ", "))
			fs.Var(&severity, "severity", "at least this bad: "+strings.Join(severity.Words(), ", "))
			fs.StringVar(&filter.Owner, "owner", "", "only what this owner answers for")
			fs.BoolVar(&filter.IncludeClosed, "closed", false, "also those that are over")
		},
		Columns: []Column{
			column("SEVERITY", text(func(m T) string { return output.Word(m.GetSeverity()) })),
			column("RULE", text(func(m T) string { return output.Word(m.GetRule()) })),
			column("SUBJECT", text(func(m T) string { return shortSubject(m.GetSubject()) })),
			column("OWNER", text(T.GetOwner)),
			column("AGE", func(m T, now time.Time) string { return output.Age(now, m.GetOpened()) }),
			column("MESSAGE", text(T.GetMessage)),
			wide("CLOSED", func(m T, now time.Time) string { return output.Age(now, m.GetClosed()) }),
		},
		list: func(ctx context.Context, c *connect.Client, size int32, token string) ([]proto.Message, string, error) {
			r, err := c.Inventory().ListFindings(ctx, &inventoryv1.ListFindingsRequest{
				PageSize: size, PageToken: token, Rules: rules.vs, MinSeverity: severity.v,
				Owner: filter.GetOwner(), IncludeClosed: filter.GetIncludeClosed(),
			})
			return untyped(r.GetFindings()), r.GetNextPageToken(), err
		},
	}
}

// shortSubject shortens a fingerprint at the end of a resource name.
func shortSubject(s string) string {
	if f, ok := strings.CutPrefix(s, "certificates/"); ok {
		return "certificates/" + Short(f)
	}
	return s
}
