package manifest

import (
	"google.golang.org/protobuf/proto"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
)

// Authority is a CA as the issuer uses it.
type Authority struct {
	Internal *Internal `yaml:"internal,omitempty" doc:"The company's own: a root and an issuing intermediate, made once; they never change afterwards. Either this or acme."`
	ACME     *ACME     `yaml:"acme,omitempty" doc:"An account at a CA that speaks ACME (RFC 8555)."`
	Etag     string    `yaml:"etag,omitempty" doc:"Guard against overwriting somebody else's change: refuse unless the stored object has this etag. See get -o json."`
}

// Internal is the company's own CA.
type Internal struct {
	CommonName           string          `yaml:"common_name,omitempty" doc:"Common name of the root; the intermediate appends \" Issuing 1\". Default: the authority's name."`
	KeyType              KeyType         `yaml:"key_type,omitempty" doc:"Key of root and intermediate. Default: ecdsa-p256."`
	RootLifetime         config.Duration `yaml:"root_lifetime,omitempty" doc:"Life of the root. Default: 10 years."`
	IntermediateLifetime config.Duration `yaml:"intermediate_lifetime,omitempty" doc:"Life of the intermediate. Default: 5 years."`
}

// ACME is an account at an ACME server.
type ACME struct {
	Directory    string   `yaml:"directory" doc:"Directory URL, https only."`
	Contacts     []string `yaml:"contacts,omitempty" doc:"Contact URLs such as mailto:pki@example.com."`
	EABKeyID     string   `yaml:"eab_key_id,omitempty" doc:"Key ID of the external account binding (RFC 8555 section 7.3.4), if the CA wants one."`
	EABKeySecret string   `yaml:"eab_key_secret,omitempty" doc:"Name of the file in the issuer's secrets folder that holds the base64url MAC key: never the key itself."`
	CABundlePEM  string   `yaml:"ca_bundle_pem,omitempty" doc:"PEM certificates to trust for the ACME server itself. Default: the system's."`
	TermsAgreed  bool     `yaml:"terms_agreed,omitempty" doc:"Whether you have agreed to the CA's terms of service."`
}

func (a *Authority) check(d config.Document) error {
	switch {
	case a.Internal == nil && a.ACME == nil:
		return d.Errorf("", "want one of internal and acme; for an internal authority with nothing but defaults write: internal: {}")
	case a.Internal != nil && a.ACME != nil:
		return d.Errorf("acme", "an authority is either internal or acme")
	case a.ACME != nil:
		return require(d, "acme.directory", a.ACME.Directory, "the directory URL of the CA")
	}
	return nil
}

func (a *Authority) message(name string) proto.Message {
	m := &issuerv1.Authority{Name: name, Etag: a.Etag}
	if i := a.Internal; i != nil {
		m.Kind = &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{
			CommonName: i.CommonName, KeyType: keyTypes[i.KeyType],
			RootLifetime: duration(i.RootLifetime), IntermediateLifetime: duration(i.IntermediateLifetime),
		}}
	}
	if c := a.ACME; c != nil {
		m.Kind = &issuerv1.Authority_Acme{Acme: &issuerv1.AcmeAuthority{
			Directory: c.Directory, Contacts: c.Contacts, EabKeyId: c.EABKeyID, EabKeySecret: c.EABKeySecret,
			CaBundlePem: c.CABundlePEM, TermsAgreed: c.TermsAgreed,
		}}
	}
	return m
}

func authoritySpec(m *issuerv1.Authority) Authority {
	var a Authority
	if i := m.GetInternal(); i != nil {
		a.Internal = &Internal{
			CommonName: i.GetCommonName(), KeyType: nameOf(keyTypes, i.GetKeyType()),
			RootLifetime: durationSpec(i.GetRootLifetime()), IntermediateLifetime: durationSpec(i.GetIntermediateLifetime()),
		}
	}
	if c := m.GetAcme(); c != nil {
		a.ACME = &ACME{
			Directory: c.GetDirectory(), Contacts: c.GetContacts(), EABKeyID: c.GetEabKeyId(), EABKeySecret: c.GetEabKeySecret(),
			CABundlePEM: c.GetCaBundlePem(), TermsAgreed: c.GetTermsAgreed(),
		}
	}
	return a
}

// Profile says what may be asked of which authority.
type Profile struct {
	Authority      string          `yaml:"authority" doc:"The authority that issues."`
	KeyTypes       []KeyType       `yaml:"key_types,flow" doc:"Key types a CSR may have; at least one. The first is made on hosts where a deployment names none."`
	Usages         []Usage         `yaml:"usages,flow" doc:"Extended key usages, always explicit: server_auth, client_auth; an acme authority takes server_auth alone."`
	Lifetime       config.Duration `yaml:"lifetime,omitempty" doc:"Life of the certificates; an ACME CA decides itself, leave it empty there."`
	AllowedDomains []string        `yaml:"allowed_domains,omitempty,flow" doc:"DNS suffixes that names must lie under (example.com allows itself and all below); at least one, or allow_ip alone."`
	AllowWildcards bool            `yaml:"allow_wildcards,omitempty" doc:"Whether wildcard names may be asked for."`
	AllowIP        bool            `yaml:"allow_ip,omitempty" doc:"Whether IP addresses may be asked for."`
	ACMEProfile    string          `yaml:"acme_profile,omitempty" doc:"ACME profile to name in orders. Default: the CA's."`
	Etag           string          `yaml:"etag,omitempty" doc:"Guard against overwriting somebody else's change: refuse unless the stored object has this etag. See get -o json."`
}

func (p *Profile) check(d config.Document) error {
	if err := require(d, "authority", p.Authority, "the name of an authority"); err != nil {
		return err
	}
	if len(p.KeyTypes) == 0 {
		return d.Errorf("key_types", "missing: at least one key type")
	}
	if len(p.Usages) == 0 {
		return d.Errorf("usages", "missing: say what the certificates are good for, such as [server_auth]")
	}
	return nil
}

func (p *Profile) message(name string) proto.Message {
	m := &issuerv1.Profile{
		Name: name, Authority: p.Authority, Lifetime: duration(p.Lifetime), AllowedDomains: p.AllowedDomains,
		AllowWildcards: p.AllowWildcards, AllowIp: p.AllowIP, AcmeProfile: p.ACMEProfile, Etag: p.Etag,
	}
	for _, k := range p.KeyTypes {
		m.KeyTypes = append(m.KeyTypes, keyTypes[k])
	}
	for _, u := range p.Usages {
		m.Usages = append(m.Usages, usages[u])
	}
	return m
}

func profileSpec(m *issuerv1.Profile) Profile {
	p := Profile{
		Authority: m.GetAuthority(), Lifetime: durationSpec(m.GetLifetime()), AllowedDomains: m.GetAllowedDomains(),
		AllowWildcards: m.GetAllowWildcards(), AllowIP: m.GetAllowIp(), ACMEProfile: m.GetAcmeProfile(),
		KeyTypes: named(m.GetKeyTypes(), keyTypes), Usages: named(m.GetUsages(), usages),
	}
	return p
}

func named[K ~string, V typev1.KeyType | typev1.ExtendedKeyUsage](vs []V, known map[K]V) []K {
	var out []K
	for _, v := range vs {
		out = append(out, nameOf(known, v))
	}
	return out
}
