package authority

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func acme() Spec {
	return Spec{Name: "public", ACME: &ACME{Directory: "https://ca.example/dir", Contacts: []string{"mailto:pki@example.com"}, TermsAgreed: true}}
}

func internal() Spec { return Spec{Name: "corp", Internal: &Internal{}} }

func TestDefaults(t *testing.T) {
	s := internal()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	want := Internal{CommonName: "corp", KeyType: pki.ECDSAP256, RootLifetime: 10 * 365 * 24 * time.Hour, IntermediateLifetime: 5 * 365 * 24 * time.Hour}
	if *s.Internal != want || s.Internal.IssuingName() != "corp Issuing 1" {
		t.Errorf("got %+v", *s.Internal)
	}
	again := internal()
	if err := again.Check(); err != nil || !s.Same(again) || s.CheckChange(again) != nil {
		t.Error("defaults written out are another authority")
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, c := range []struct {
		field string
		base  func() Spec
		spoil func(*Spec)
	}{
		{"authority.name", acme, func(s *Spec) { s.Name = "A" }},
		{"authority.kind", acme, func(s *Spec) { s.ACME = nil }},
		{"authority.kind", acme, func(s *Spec) { s.Internal = &Internal{} }},
		{"authority.internal.common_name", internal, func(s *Spec) { s.Internal.CommonName = strings.Repeat("x", 55) }},
		{"authority.internal.common_name", internal, func(s *Spec) { s.Internal.CommonName = "a\nb" }},
		{"authority.internal.key_type", internal, func(s *Spec) { s.Internal.KeyType = pki.Ed25519 }},
		{"authority.internal.root_lifetime", internal, func(s *Spec) { s.Internal.RootLifetime = time.Minute }},
		{"authority.internal.root_lifetime", internal, func(s *Spec) { s.Internal.RootLifetime = 60 * 366 * day }},
		{"authority.internal.intermediate_lifetime", internal, func(s *Spec) { s.Internal.IntermediateLifetime = time.Second }},
		{"authority.internal.intermediate_lifetime", internal, func(s *Spec) { s.Internal.IntermediateLifetime = 11 * 365 * day }},
		{"authority.acme.directory", acme, func(s *Spec) { s.ACME.Directory = "http://ca.example/dir" }},
		{"authority.acme.directory", acme, func(s *Spec) { s.ACME.Directory = "https://user:pw@ca.example/dir" }},
		{"authority.acme.directory", acme, func(s *Spec) { s.ACME.Directory = "" }},
		{"authority.acme.contacts", acme, func(s *Spec) { s.ACME.Contacts = []string{"pki@example.com"} }},
		{"authority.acme.contacts", acme, func(s *Spec) { s.ACME.Contacts = []string{"mailto:a@b?subject=x"} }},
		{"authority.acme.contacts", acme, func(s *Spec) { s.ACME.Contacts = make([]string, 11) }},
		{"authority.acme.eab_key_id", acme, func(s *Spec) { s.ACME.EABKeyID = "kid" }},
		{"authority.acme.eab_key_id", acme, func(s *Spec) { s.ACME.EABKeySecret = "file" }},
		{"authority.acme.eab_key_secret", acme, func(s *Spec) { s.ACME.EABKeyID, s.ACME.EABKeySecret = "kid", "../etc/passwd" }},
		{"authority.acme.eab_key_secret", acme, func(s *Spec) { s.ACME.EABKeyID, s.ACME.EABKeySecret = "kid", `a\b` }},
		{"authority.acme.eab_key_secret", acme, func(s *Spec) { s.ACME.EABKeyID, s.ACME.EABKeySecret = "kid", ".." }},
		{"authority.acme.ca_bundle_pem", acme, func(s *Spec) { s.ACME.CABundlePEM = "nonsense" }},
	} {
		s := c.base()
		c.spoil(&s)
		err := s.Check()
		if f := fault.Of(err); f == nil || f.Kind != fault.InvalidArgument || f.Field != c.field {
			t.Errorf("%s: got %v", c.field, err)
		}
	}
}

func TestChange(t *testing.T) {
	checked := func(s Spec) Spec {
		t.Helper()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, c := range []struct {
		field    string
		from, to Spec
	}{
		{"authority.kind", checked(internal()), checked(acme())},
		{"authority.internal", checked(internal()), checked(Spec{Name: "corp", Internal: &Internal{KeyType: pki.ECDSAP384}})},
		{"authority.acme.directory", checked(acme()), checked(Spec{Name: "public", ACME: &ACME{Directory: "https://other.example/dir"}})},
	} {
		err := c.from.CheckChange(c.to)
		if f := fault.Of(err); f == nil || f.Field != c.field {
			t.Errorf("%s: got %v", c.field, err)
		}
		if c.from.Same(c.to) {
			t.Errorf("%s: the same", c.field)
		}
	}
	to := checked(acme())
	to.ACME.Contacts = nil
	if from := checked(acme()); from.CheckChange(to) != nil || from.Same(to) {
		t.Error("contacts must be free to change")
	}
}
