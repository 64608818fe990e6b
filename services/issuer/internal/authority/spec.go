package authority

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// Kind is what kind of CA an authority is.
type Kind string

// The kinds.
const (
	KindInternal Kind = "internal"
	KindACME     Kind = "acme"
)

// Spec is an authority as an operator wants it; exactly one of Internal and ACME is set. The JSON form is how it is stored.
type Spec struct {
	Name     string    `json:"-"`
	Internal *Internal `json:"internal,omitempty"`
	ACME     *ACME     `json:"acme,omitempty"`
}

// Internal is the company's own root and issuing intermediate. It never changes.
type Internal struct {
	CommonName           string        `json:"common_name"`
	KeyType              pki.KeyType   `json:"key_type"`
	RootLifetime         time.Duration `json:"root_lifetime"`
	IntermediateLifetime time.Duration `json:"intermediate_lifetime"`
}

// ACME is an account at a CA that speaks RFC 8555.
type ACME struct {
	Directory    string   `json:"directory"`
	Contacts     []string `json:"contacts,omitempty"`
	EABKeyID     string   `json:"eab_key_id,omitempty"`
	EABKeySecret string   `json:"eab_key_secret,omitempty"` // name of a file in the secrets folder
	CABundlePEM  string   `json:"ca_bundle_pem,omitempty"`
	TermsAgreed  bool     `json:"terms_agreed,omitempty"`
}

const (
	day                         = 24 * time.Hour
	defaultRootLifetime         = 10 * 365 * day
	defaultIntermediateLifetime = 5 * 365 * day
	minIntermediateLifetime     = time.Hour
	maxRootLifetime             = 50 * 366 * day
	maxCommonName               = 64 // RFC 5280 appendix A: ub-common-name
	issuingSuffix               = " Issuing 1"
	maxContacts                 = 10
	maxURL                      = 2048
)

// Kind gives the kind.
func (s Spec) Kind() Kind {
	if s.ACME != nil {
		return KindACME
	}
	return KindInternal
}

// ProfileKind is what profiles must know.
func (s Spec) ProfileKind() profile.Kind {
	if s.ACME != nil {
		return profile.Kind{Public: true}
	}
	return profile.Kind{MaxLifetime: s.Internal.IntermediateLifetime}
}

// Check fills in defaults and reports the first field that is wrong.
func (s *Spec) Check() error {
	if err := profile.CheckName("authority.name", s.Name); err != nil {
		return err
	}
	switch {
	case s.Internal != nil && s.ACME != nil, s.Internal == nil && s.ACME == nil:
		return fault.Invalid("authority.kind", "give exactly one of internal and acme")
	case s.Internal != nil:
		return s.Internal.check(s.Name)
	}
	return s.ACME.check()
}

func (i *Internal) check(name string) error {
	if i.CommonName == "" {
		i.CommonName = name
	}
	if !printable(i.CommonName) || len(i.CommonName)+len(issuingSuffix) > maxCommonName {
		return fault.Invalid("authority.internal.common_name", "want at most %d printable characters", maxCommonName-len(issuingSuffix))
	}
	if i.KeyType == "" {
		i.KeyType = pki.ECDSAP256
	}
	if !slices.Contains(pki.KeyTypes, i.KeyType) {
		return fault.Invalid("authority.internal.key_type", "%q: want one of %v", string(i.KeyType), pki.KeyTypes)
	}
	if i.RootLifetime == 0 {
		i.RootLifetime = defaultRootLifetime
	}
	if i.IntermediateLifetime == 0 {
		i.IntermediateLifetime = min(defaultIntermediateLifetime, i.RootLifetime)
	}
	switch {
	case i.RootLifetime > maxRootLifetime || i.RootLifetime < minIntermediateLifetime:
		return fault.Invalid("authority.internal.root_lifetime", "%s: want between %s and 50 years", i.RootLifetime, minIntermediateLifetime)
	case i.IntermediateLifetime < minIntermediateLifetime:
		return fault.Invalid("authority.internal.intermediate_lifetime", "%s: at least %s is needed", i.IntermediateLifetime, minIntermediateLifetime)
	case i.IntermediateLifetime > i.RootLifetime:
		return fault.Invalid("authority.internal.intermediate_lifetime", "%s is longer than the root's %s", i.IntermediateLifetime, i.RootLifetime)
	}
	i.RootLifetime, i.IntermediateLifetime = i.RootLifetime.Truncate(time.Second), i.IntermediateLifetime.Truncate(time.Second)
	return nil
}

// IssuingName is the common name of the intermediate.
func (i Internal) IssuingName() string { return i.CommonName + issuingSuffix }

var (
	secretPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	mailPattern   = regexp.MustCompile(`^mailto:[^\s,?%@]+@[^\s,?%@]+$`) // RFC 8555 section 7.3: one address, no header fields
)

func (a *ACME) check() error {
	u, err := url.Parse(a.Directory)
	if err != nil || len(a.Directory) > maxURL || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fault.Invalid("authority.acme.directory", "%.100q: want an https URL", a.Directory)
	}
	if len(a.Contacts) > maxContacts {
		return fault.Invalid("authority.acme.contacts", "%d given, at most %d allowed", len(a.Contacts), maxContacts)
	}
	for _, c := range a.Contacts {
		if len(c) > 320 || !printable(c) || !mailPattern.MatchString(c) {
			return fault.Invalid("authority.acme.contacts", `%.100q: want the form "mailto:pki@example.com"`, c)
		}
	}
	a.Contacts = slices.Clone(a.Contacts)
	switch {
	case (a.EABKeyID == "") != (a.EABKeySecret == ""):
		return fault.Invalid("authority.acme.eab_key_id", "eab_key_id and eab_key_secret belong together: give both or none")
	case len(a.EABKeyID) > 512 || !printable(a.EABKeyID):
		return fault.Invalid("authority.acme.eab_key_id", "want at most 512 printable characters")
	case a.EABKeySecret != "" && !secretPattern.MatchString(a.EABKeySecret):
		return fault.Invalid("authority.acme.eab_key_secret", "want the name of a file in the secrets folder: letters, digits and . _ -, not the key and not a path")
	}
	if a.CABundlePEM != "" {
		if _, err := pki.ParseChainPEM([]byte(a.CABundlePEM)); err != nil {
			return fault.Invalid("authority.acme.ca_bundle_pem", "%v", err)
		}
	}
	return nil
}

// CheckChange reports what of an authority can never change.
func (s Spec) CheckChange(to Spec) error {
	switch {
	case s.Kind() != to.Kind():
		return fault.Invalid("authority.kind", "the authority is of kind %s: make another authority", s.Kind())
	case s.Internal != nil && *s.Internal != *to.Internal:
		return fault.Invalid("authority.internal", "an internal authority is made once: make another authority for another key, name or lifetime")
	case s.ACME != nil && s.ACME.Directory != to.ACME.Directory:
		return fault.Invalid("authority.acme.directory", "the account belongs to %s: make another authority", s.ACME.Directory)
	}
	return nil
}

// Same reports that o is wanted in the same way.
func (s Spec) Same(o Spec) bool {
	if s.Name != o.Name || s.CheckChange(o) != nil {
		return false
	}
	if s.ACME == nil {
		return true
	}
	a, b := s.ACME, o.ACME
	return slices.Equal(a.Contacts, b.Contacts) && a.EABKeyID == b.EABKeyID && a.EABKeySecret == b.EABKeySecret &&
		a.CABundlePEM == b.CABundlePEM && a.TermsAgreed == b.TermsAgreed
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' })
}

// Account is an ACME authority's account at its CA, as it is stored. It exists, with its key, before the CA is asked for it.
type Account struct {
	// URL is empty as long as the CA has not been asked, or its answer was lost.
	URL string `json:"url,omitempty"`
	// Orders is the URL of the list of its orders, if the CA keeps one.
	Orders string `json:"orders,omitempty"`
	// Contacts are those the CA has confirmed last.
	Contacts []string `json:"contacts,omitempty"`
}
