// Package profile holds what may be asked of which authority. It guarantees that a checked profile is complete and normal:
// one form for one meaning, every rule explicit, nothing that its authority could never issue.
package profile

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Usage is an extended key usage (RFC 5280 section 4.2.1.12) by its RFC name.
type Usage string

// The usages a profile may name.
const (
	ServerAuth Usage = "serverAuth"
	ClientAuth Usage = "clientAuth"
)

// Profile is one of them. The JSON form is how it is stored.
type Profile struct {
	Name           string        `json:"-"`
	Authority      string        `json:"authority"`
	KeyTypes       []pki.KeyType `json:"key_types"`
	Usages         []Usage       `json:"usages"`
	Lifetime       time.Duration `json:"lifetime,omitempty"` // 0: the CA decides
	AllowedDomains []string      `json:"allowed_domains,omitempty"`
	AllowWildcards bool          `json:"allow_wildcards,omitempty"`
	AllowIP        bool          `json:"allow_ip,omitempty"`
	ACMEProfile    string        `json:"acme_profile,omitempty"`
	ETag           string        `json:"-"`
	Created        time.Time     `json:"-"`
}

const (
	maxDomains = 1000
	// minLifetime leaves an agent the time to install what it was given.
	minLifetime = time.Minute
	maxLifetime = 10 * 366 * 24 * time.Hour
)

var acmeProfilePattern = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,64}$`)

// CheckName holds a name against the rule for authorities, profiles and identities: lower-case letters, digits and dashes,
// at most 63, no dash at an end.
func CheckName(field, name string) error {
	if len(name) == 0 || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	}) {
		return fault.Invalid(field, "%.80q: want 1 to 63 lower-case letters, digits and dashes, no dash at an end", name)
	}
	return nil
}

// Kind is what a profile must know of its authority.
type Kind struct {
	// Public authorities are judged by browsers: they issue serverAuth alone and choose the lifetime themselves.
	Public bool
	// MaxLifetime is what the authority can grant; 0 where it decides by itself.
	MaxLifetime time.Duration
}

// Check normalises p and reports the first field that is wrong. kind is of p's authority.
func (p *Profile) Check(kind Kind) error {
	if err := CheckName("profile.name", p.Name); err != nil {
		return err
	}
	if err := CheckName("profile.authority", p.Authority); err != nil {
		return err
	}
	if err := p.checkKeys(); err != nil {
		return err
	}
	if err := p.checkUsages(kind); err != nil {
		return err
	}
	if err := p.checkLifetime(kind); err != nil {
		return err
	}
	if err := p.checkDomains(); err != nil {
		return err
	}
	if kind.Public && p.AllowWildcards {
		return fault.Invalid("profile.allow_wildcards", "a host answers HTTP-01 challenges, and no wildcard can be proved by those: leave it off for an acme authority")
	}
	switch {
	case p.ACMEProfile == "":
	case !kind.Public:
		return fault.Invalid("profile.acme_profile", "only for an acme authority: leave it empty")
	case !acmeProfilePattern.MatchString(p.ACMEProfile):
		return fault.Invalid("profile.acme_profile", "%.80q: want 1 to 64 letters, digits and . _ ~ -", p.ACMEProfile)
	}
	return nil
}

func (p *Profile) checkKeys() error {
	if len(p.KeyTypes) == 0 {
		return fault.Invalid("profile.key_types", "at least one is needed")
	}
	for _, kt := range p.KeyTypes {
		if !slices.Contains(pki.KeyTypes, kt) {
			return fault.Invalid("profile.key_types", "%q: want some of %v", string(kt), pki.KeyTypes)
		}
	}
	p.KeyTypes = normal(p.KeyTypes)
	return nil
}

func (p *Profile) checkUsages(kind Kind) error {
	if len(p.Usages) == 0 {
		return fault.Invalid("profile.usages", "at least one is needed: a certificate's usage is never implied")
	}
	for _, u := range p.Usages {
		if u != ServerAuth && u != ClientAuth {
			return fault.Invalid("profile.usages", "%q: want serverAuth or clientAuth", string(u))
		}
		if kind.Public && u != ServerAuth {
			return fault.Invalid("profile.usages", "a public CA issues serverAuth alone: take client certificates from an internal authority")
		}
	}
	p.Usages = normal(p.Usages)
	return nil
}

func (p *Profile) checkLifetime(kind Kind) error {
	switch {
	case kind.Public && p.Lifetime != 0:
		return fault.Invalid("profile.lifetime", "an ACME CA decides by itself: leave it empty")
	case kind.Public:
		return nil
	case p.Lifetime < minLifetime:
		return fault.Invalid("profile.lifetime", "%s: at least %s is needed", p.Lifetime, minLifetime)
	case p.Lifetime > maxLifetime:
		return fault.Invalid("profile.lifetime", "%s is too long", p.Lifetime)
	case kind.MaxLifetime > 0 && p.Lifetime > kind.MaxLifetime:
		return fault.Invalid("profile.lifetime", "%s is longer than the authority's issuing certificate was made for (%s)", p.Lifetime, kind.MaxLifetime)
	}
	p.Lifetime = p.Lifetime.Truncate(time.Second)
	return nil
}

func (p *Profile) checkDomains() error {
	if len(p.AllowedDomains) == 0 && !p.AllowIP {
		return fault.Invalid("profile.allowed_domains", "at least one is needed, or allow_ip alone")
	}
	if len(p.AllowedDomains) > maxDomains {
		return fault.Invalid("profile.allowed_domains", "%d given, at most %d allowed", len(p.AllowedDomains), maxDomains)
	}
	for i, d := range p.AllowedDomains {
		name, err := pki.ParseDNS(d)
		if err != nil {
			return fault.Invalid("profile.allowed_domains", "%v", err)
		}
		if name[0] == '*' {
			return fault.Invalid("profile.allowed_domains", "%.80q: a suffix allows all below it already; wildcards are allowed by allow_wildcards", d)
		}
		p.AllowedDomains[i] = name
	}
	p.AllowedDomains = normal(p.AllowedDomains)
	return nil
}

// normal gives the values sorted and without doubles, in a slice of its own.
func normal[T ~string](values []T) []T {
	out := slices.Clone(values)
	slices.Sort(out)
	return slices.Compact(out)
}

// Same reports that o asks for the same, whatever its etag.
func (p Profile) Same(o Profile) bool {
	return p.Name == o.Name && p.Authority == o.Authority && slices.Equal(p.KeyTypes, o.KeyTypes) && slices.Equal(p.Usages, o.Usages) &&
		p.Lifetime == o.Lifetime && slices.Equal(p.AllowedDomains, o.AllowedDomains) &&
		p.AllowWildcards == o.AllowWildcards && p.AllowIP == o.AllowIP && p.ACMEProfile == o.ACMEProfile
}
