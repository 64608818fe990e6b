package describe

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/pki"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func authority(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Issuer().GetAuthority(ctx, &issuerv1.GetAuthorityRequest{Name: name})
	if err != nil {
		return err
	}
	m := r.GetAuthority()
	p.Field("Name", m.GetName())
	if i := m.GetInternal(); i != nil {
		p.Field("Type", "internal").
			Field("Common name", cmp.Or(i.GetCommonName(), m.GetName())).
			Field("Key type", manifest.KeyTypeName(i.GetKeyType()))
	}
	if k := m.GetAcme(); k != nil {
		p.Field("Type", "acme").
			Field("Directory", k.GetDirectory()).
			Field("Contacts", strings.Join(k.GetContacts(), ", ")).
			Field("EAB key id", k.GetEabKeyId()).
			Field("Terms agreed", yes(k.GetTermsAgreed()))
	}
	p.Time("Created", m.GetCreated()).Field("Problem", m.GetProblem())
	t := &output.Table{Columns: []string{"NAME", "KEYS", "USAGES", "DOMAINS"}}
	profiles, err := c.Issuer().ListProfiles(ctx, &issuerv1.ListProfilesRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	for _, one := range profiles.GetProfiles() {
		if one.GetAuthority() == m.GetName() {
			t.Add(one.GetName(), kind.ProfileKeys(one), kind.ProfileUsages(one), strings.Join(one.GetAllowedDomains(), ","))
		}
	}
	if err := p.Table("Profiles", t); err != nil {
		return err
	}
	certs, err := pki.ParseChainPEM([]byte(m.GetChainPem()))
	if err != nil {
		return nil //nolint:nilerr // an authority may not know its chain
	}
	t = &output.Table{Columns: []string{"SUBJECT", "FINGERPRINT", "ENDS"}}
	for _, one := range certs {
		t.Add(one.Subject.String(), string(pki.FingerprintOf(one.Raw)), one.NotAfter.UTC().Format("2006-01-02"))
	}
	return p.Table("CA certificates", t)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func profile(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Issuer().GetProfile(ctx, &issuerv1.GetProfileRequest{Name: name})
	if err != nil {
		return err
	}
	m := r.GetProfile()
	life := "the CA decides"
	if d := m.GetLifetime().AsDuration(); d > 0 {
		life = config.Duration(d).String()
	}
	p.Field("Name", m.GetName()).
		Field("Authority", m.GetAuthority()).
		Field("Key types", kind.ProfileKeys(m)).
		Field("Usages", kind.ProfileUsages(m)).
		Field("Lifetime", life).
		Field("Domains", strings.Join(m.GetAllowedDomains(), ", ")).
		Field("Wildcards", yes(m.GetAllowWildcards())).
		Field("IP addresses", yes(m.GetAllowIp())).
		Field("ACME profile", m.GetAcmeProfile()).
		Time("Created", m.GetCreated())
	return nil
}

func request(ctx context.Context, c *connect.Client, p *Page, name string) error {
	r, err := c.Issuer().GetRequest(ctx, &issuerv1.GetRequestRequest{RequestId: name})
	if err != nil {
		return err
	}
	m := r.GetRequest()
	p.Field("ID", m.GetId()).
		Field("Identity", m.GetIdentity()).
		Field("Profile", m.GetProfile()).
		Field("Authority", m.GetAuthority()).
		Field("Names", kind.Names(m.GetNames(), 0)).
		Field("State", output.Word(m.GetState())).
		Field("Trouble", strings.TrimSpace(m.GetMessage()+" "+bracket(m.GetReason()))).
		Field("Tries", fmt.Sprint(m.GetAttempts())).
		Time("Next try", m.GetNextAttempt()).
		Field("Certificate", m.GetFingerprint()).
		Field("Replaces", m.GetReplaces()).
		Field("Order", m.GetOrderUrl()).
		Time("Accepted", m.GetCreated()).
		Time("Changed", m.GetUpdated())
	return nil
}
