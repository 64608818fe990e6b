package pki

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

const (
	maxNames      = 100
	maxNameLen    = 253 // RFC 1035 2.3.4 without the final dot
	maxLabelLen   = 63
	wildcardLabel = "*."
)

// Names are the subject alternative names of a certificate: DNS names and IP
// addresses, normalised, sorted, without doubles. The zero value has none.
type Names struct {
	DNS []string
	IP  []netip.Addr
}

// ParseNames normalises (lower case, IPv4-mapped addresses as IPv4) and checks
// names: at most 100 together, DNS names of LDH labels (RFC 5890; BR 7.1.4.2.1
// forbids the underscore), A-labels that are valid IDNA, a wildcard only as the
// whole left-most label, with at least two labels behind it which are no public
// suffix such as co.uk (BR 3.2.2.6, by the ICANN part of the Public Suffix List).
func ParseNames(dns, ip []string) (Names, error) {
	if len(dns)+len(ip) > maxNames {
		return Names{}, fmt.Errorf("names: %d given, at most %d allowed", len(dns)+len(ip), maxNames)
	}
	var n Names
	for _, s := range dns {
		name, err := ParseDNS(s)
		if err != nil {
			return Names{}, err
		}
		n.DNS = append(n.DNS, name)
	}
	for _, s := range ip {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return Names{}, fmt.Errorf("name %q: not an IP address", printable(s))
		}
		n.IP = append(n.IP, a.Unmap())
	}
	slices.Sort(n.DNS)
	n.DNS = slices.Compact(n.DNS)
	slices.SortFunc(n.IP, netip.Addr.Compare)
	n.IP = slices.Compact(n.IP)
	return n, nil
}

// ParseDNS normalises and checks one DNS name by the rules of ParseNames.
func ParseDNS(s string) (string, error) {
	name := strings.ToLower(s)
	switch {
	case name == "":
		return "", fmt.Errorf("name: empty")
	case len(name) > maxNameLen:
		return "", fmt.Errorf("name %q: longer than %d bytes", printable(s), maxNameLen)
	}
	rest, wild := strings.CutPrefix(name, wildcardLabel)
	labels := strings.Split(rest, ".")
	for _, l := range labels {
		if err := checkLabel(l); err != nil {
			return "", fmt.Errorf("name %q: %w", printable(s), err)
		}
	}
	if allDigits(labels[len(labels)-1]) {
		return "", fmt.Errorf("name %q: the last label of a DNS name is not a number: an IP address is no DNS name", printable(s))
	}
	if !wild {
		return name, nil
	}
	if len(labels) < 2 {
		return "", fmt.Errorf("name %q: a wildcard needs at least two labels behind it", printable(s))
	}
	if suffix, icann := publicsuffix.PublicSuffix(rest); icann && suffix == rest {
		return "", fmt.Errorf("name %q: a wildcard may not cover the public suffix %q", printable(s), suffix)
	}
	return name, nil
}

func checkLabel(l string) error {
	switch {
	case l == "":
		return fmt.Errorf("an empty label (two dots, or a dot at an end)")
	case len(l) > maxLabelLen:
		return fmt.Errorf("a label longer than %d bytes", maxLabelLen)
	case l[0] == '-' || l[len(l)-1] == '-':
		return fmt.Errorf("label %q begins or ends with a hyphen", l)
	}
	for _, c := range []byte(l) {
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-':
		case c == '*':
			return fmt.Errorf("a wildcard may only be the whole left-most label")
		case c == '_':
			return fmt.Errorf("label %q has an underscore, which no public CA may certify", l)
		case c >= 0x80:
			return fmt.Errorf("label %q is not ASCII: write the xn-- form", l)
		default:
			return fmt.Errorf("label %q has the character %q", l, c)
		}
	}
	if len(l) >= 4 && l[2:4] == "--" {
		if !strings.HasPrefix(l, "xn--") {
			return fmt.Errorf("label %q: hyphens in places 3 and 4 are reserved for xn--", l)
		}
		if !validALabel(l) {
			return fmt.Errorf("label %q is not a valid internationalised label", l)
		}
	}
	return nil
}

// validALabel wants a label that decodes, and encodes to itself again.
func validALabel(l string) bool {
	u, err := idna.Registration.ToUnicode(l)
	if err != nil || u == l {
		return false
	}
	a, err := idna.Registration.ToASCII(u)
	return err == nil && a == l
}

func allDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// Len is the number of names.
func (n Names) Len() int { return len(n.DNS) + len(n.IP) }

// Equal compares two sets of names.
func (n Names) Equal(o Names) bool { return slices.Equal(n.DNS, o.DNS) && slices.Equal(n.IP, o.IP) }

// Contains says whether every name of o is among n, letter by letter: a
// wildcard contains only itself.
func (n Names) Contains(o Names) bool {
	for _, d := range o.DNS {
		if !slices.Contains(n.DNS, d) {
			return false
		}
	}
	for _, a := range o.IP {
		if !slices.Contains(n.IP, a) {
			return false
		}
	}
	return true
}

// Strings lists all names, DNS first.
func (n Names) Strings() []string {
	out := slices.Clone(n.DNS)
	for _, a := range n.IP {
		out = append(out, a.String())
	}
	return out
}

// IPStrings lists the addresses as text.
func (n Names) IPStrings() []string {
	out := make([]string, 0, len(n.IP))
	for _, a := range n.IP {
		out = append(out, a.String())
	}
	return out
}
