package profile

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func good() Profile {
	return Profile{
		Name: "web", Authority: "corp", KeyTypes: []pki.KeyType{pki.RSA2048, pki.ECDSAP256, pki.RSA2048}, Usages: []Usage{ServerAuth},
		Lifetime: time.Hour + 7, AllowedDomains: []string{"Example.COM", "corp.example", "example.com"},
	}
}

func TestCheckNormalises(t *testing.T) {
	p := good()
	if err := p.Check(Kind{MaxLifetime: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.AllowedDomains, []string{"corp.example", "example.com"}) || !slices.Equal(p.KeyTypes, []pki.KeyType{pki.ECDSAP256, pki.RSA2048}) || p.Lifetime != time.Hour {
		t.Errorf("got %+v", p)
	}
	q := good()
	q.ETag = "another"
	if err := q.Check(Kind{}); err != nil || !p.Same(q) {
		t.Errorf("not the same: %+v, %v", q, err)
	}
	q.AllowIP = true
	if p.Same(q) {
		t.Error("the same")
	}
}

func TestCheckRefuses(t *testing.T) {
	public := Kind{Public: true}
	for _, c := range []struct {
		field  string
		kind   Kind
		change func(*Profile)
	}{
		{"profile.name", Kind{}, func(p *Profile) { p.Name = "" }},
		{"profile.name", Kind{}, func(p *Profile) { p.Name = "Web" }},
		{"profile.name", Kind{}, func(p *Profile) { p.Name = "-web" }},
		{"profile.name", Kind{}, func(p *Profile) { p.Name = strings.Repeat("a", 64) }},
		{"profile.authority", Kind{}, func(p *Profile) { p.Authority = "../x" }},
		{"profile.key_types", Kind{}, func(p *Profile) { p.KeyTypes = nil }},
		{"profile.key_types", Kind{}, func(p *Profile) { p.KeyTypes = []pki.KeyType{pki.Ed25519} }},
		{"profile.usages", Kind{}, func(p *Profile) { p.Usages = nil }},
		{"profile.usages", Kind{}, func(p *Profile) { p.Usages = []Usage{"any"} }},
		{"profile.usages", public, func(p *Profile) { p.Usages = []Usage{ServerAuth, ClientAuth} }},
		{"profile.lifetime", Kind{}, func(p *Profile) { p.Lifetime = 0 }},
		{"profile.lifetime", Kind{}, func(p *Profile) { p.Lifetime = time.Second }},
		{"profile.lifetime", Kind{}, func(p *Profile) { p.Lifetime = 100 * 365 * 24 * time.Hour }},
		{"profile.lifetime", Kind{MaxLifetime: time.Minute}, func(*Profile) {}},
		{"profile.lifetime", public, func(*Profile) {}},
		{"profile.allowed_domains", Kind{}, func(p *Profile) { p.AllowedDomains = nil }},
		{"profile.allowed_domains", Kind{}, func(p *Profile) { p.AllowedDomains = []string{"*.example.com"} }},
		{"profile.allowed_domains", Kind{}, func(p *Profile) { p.AllowedDomains = []string{"a b"} }},
		{"profile.allowed_domains", Kind{}, func(p *Profile) { p.AllowedDomains = make([]string, 1001) }},
		{"profile.acme_profile", Kind{}, func(p *Profile) { p.ACMEProfile = "classic" }},
		{"profile.acme_profile", public, func(p *Profile) { p.Lifetime = 0; p.ACMEProfile = "a b" }},
		{"profile.allow_wildcards", public, func(p *Profile) { p.Lifetime = 0; p.AllowWildcards = true }},
	} {
		p := good()
		c.change(&p)
		err := p.Check(c.kind)
		if f := fault.Of(err); f == nil || f.Kind != fault.InvalidArgument || f.Field != c.field {
			t.Errorf("%s: got %v", c.field, err)
		}
	}
}

func TestIPAlone(t *testing.T) {
	p := good()
	p.AllowedDomains, p.AllowIP = nil, true
	if err := p.Check(Kind{}); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "7": true, "a-b--c9": true, strings.Repeat("x", 63): true,
		"": false, strings.Repeat("x", 64): false, "-": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "a b": false, "ä": false, "a\n": false, "a\x80": false,
	} {
		if err := CheckName("name", name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
