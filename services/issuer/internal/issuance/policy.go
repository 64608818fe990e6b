package issuance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
)

// The reasons of policy.
const (
	ReasonNamesNotAsExpected = "NAMES_NOT_AS_EXPECTED"
	ReasonNameNotOfIdentity  = "NAME_NOT_OF_IDENTITY"
	ReasonNameNotAllowed     = "NAME_NOT_ALLOWED"
	ReasonWildcardNotAllowed = "WILDCARD_NOT_ALLOWED"
	ReasonIPNotAllowed       = "IP_NOT_ALLOWED"
	ReasonKeyTypeNotAllowed  = "KEY_TYPE_NOT_ALLOWED"
	ReasonUsageNotAllowed    = "USAGE_NOT_ALLOWED"
	ReasonReplacesUnknown    = "REPLACES_UNKNOWN"
	ReasonReplacesOther      = "REPLACES_OTHER_IDENTITY"
	ReasonIdentityUnknown    = "IDENTITY_UNKNOWN"
	ReasonProfileUnknown     = "PROFILE_UNKNOWN"
)

// Finding is one thing that speaks against a request.
type Finding struct {
	Reason  string
	Message string
}

// Case is all that policy looks at. It is gathered before, nothing is looked up while judging.
type Case struct {
	CSR *pki.CSR
	// Expected are the names the submitter thinks are in the CSR.
	Expected pki.Names
	// Identity is the name of the identity, IdentityNames what it may be called, by the inventory.
	Identity      string
	IdentityNames pki.Names
	Profile       profile.Profile
	// Public says that the profile's authority is a public CA.
	Public bool
	// Replaces is the certificate to be renewed; nil when none is named.
	Replaces *Predecessor
}

// Predecessor is a certificate that is to be renewed, as far as policy cares.
type Predecessor struct {
	Known    bool   // whether this issuer issued it
	Identity string // for whom
}

// Judge gives everything that speaks against issuing, most telling first; nothing means yes. Names are compared letter by
// letter: a wildcard in the identity allows itself, and not the names it would match.
func Judge(c Case) []Finding {
	var found []Finding
	add := func(reason, format string, args ...any) {
		found = append(found, Finding{Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	for _, n := range missing(c.IdentityNames, c.CSR.Names) {
		add(ReasonNameNotOfIdentity, "%s is not a name of the identity %s: add it there, or leave it out", n, c.Identity)
	}
	if !c.CSR.Names.Equal(c.Expected) {
		add(ReasonNamesNotAsExpected, "the CSR asks for %s, the submitter expected %s", list(c.CSR.Names), list(c.Expected))
	}
	judgeNames(c, add)
	if !slices.Contains(c.Profile.KeyTypes, c.CSR.KeyType) {
		add(ReasonKeyTypeNotAllowed, "the profile %s allows keys of type %v, not %s", c.Profile.Name, c.Profile.KeyTypes, c.CSR.KeyType)
	}
	switch {
	case len(c.Profile.Usages) == 0:
		add(ReasonUsageNotAllowed, "the profile %s names no extended key usage", c.Profile.Name)
	case c.Public && !slices.Equal(c.Profile.Usages, []profile.Usage{profile.ServerAuth}):
		add(ReasonUsageNotAllowed, "a public CA issues serverAuth alone, and the profile %s has %v", c.Profile.Name, c.Profile.Usages)
	}
	switch {
	case c.Replaces == nil:
	case !c.Replaces.Known:
		add(ReasonReplacesUnknown, "the certificate to be replaced is none that was issued here")
	case c.Replaces.Identity != c.Identity:
		add(ReasonReplacesOther, "the certificate to be replaced belongs to another identity")
	}
	return found
}

func judgeNames(c Case, add func(reason, format string, args ...any)) {
	for _, d := range c.CSR.Names.DNS {
		base, wild := strings.CutPrefix(d, "*.")
		if wild && !c.Profile.AllowWildcards {
			add(ReasonWildcardNotAllowed, "%s: the profile %s allows no wildcards", d, c.Profile.Name)
		}
		if !slices.ContainsFunc(c.Profile.AllowedDomains, func(suffix string) bool { return under(base, suffix) }) {
			add(ReasonNameNotAllowed, "%s does not lie under a domain that the profile %s allows", d, c.Profile.Name)
		}
	}
	for _, a := range c.CSR.Names.IP {
		if !c.Profile.AllowIP {
			add(ReasonIPNotAllowed, "%s: the profile %s allows no IP addresses", a, c.Profile.Name)
		}
	}
}

// under reports that name is suffix itself or lies below it.
func under(name, suffix string) bool {
	return name == suffix || strings.HasSuffix(name, "."+suffix)
}

func missing(have, want pki.Names) []string {
	var out []string
	for _, d := range want.DNS {
		if !slices.Contains(have.DNS, d) {
			out = append(out, d)
		}
	}
	for _, a := range want.IP {
		if !slices.Contains(have.IP, a) {
			out = append(out, a.String())
		}
	}
	return out
}

func list(n pki.Names) string {
	if n.Len() == 0 {
		return "no names"
	}
	return strings.Join(n.Strings(), ", ")
}

// maxRefusal bounds the text of a refusal: a CSR may have a hundred wrong names.
const maxRefusal = 2000

// Refusal makes findings into the error for the caller; the first gives the reason, the message has all.
func Refusal(found []Finding) *fault.Error {
	messages := make([]string, len(found))
	for i, f := range found {
		messages[i] = f.Message
	}
	text := strings.Join(messages, "; ")
	if len(text) > maxRefusal {
		text = text[:maxRefusal] + " ..."
	}
	return fault.New(fault.Permanent, found[0].Reason, "%s", text)
}
