package pki

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseDNS(t *testing.T) {
	long := strings.Repeat("a", 63)
	for in, want := range map[string]string{
		"example.com":         "example.com",
		"WWW.Example.COM":     "www.example.com",
		"localhost":           "localhost",
		"web-1.corp":          "web-1.corp",
		"1.example.com":       "1.example.com",
		"*.example.com":       "*.example.com",
		"*.a.b.example.com":   "*.a.b.example.com",
		"*.internal.corp":     "*.internal.corp",
		"*.github.io":         "*.github.io", // a private part of the list: its owner may
		"xn--mnchen-3ya.de":   "xn--mnchen-3ya.de",
		"XN--MNCHEN-3YA.de":   "xn--mnchen-3ya.de",
		"*.xn--mnchen-3ya.de": "*.xn--mnchen-3ya.de",
		long + ".example.com": long + ".example.com",
		long + "." + long + "." + long + "." + strings.Repeat("a", 61): long + "." + long + "." + long + "." + strings.Repeat("a", 61),
	} {
		if got, err := ParseDNS(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for in, wants := range map[string]string{
		"":                               "empty",
		".":                              "empty label",
		"example.com.":                   "empty label",
		".example.com":                   "empty label",
		"a..b":                           "empty label",
		"a b.com":                        `character ' '`,
		"a\x00.com":                      `character '\x00'`,
		"a/b.com":                        "character",
		"a:443":                          "character",
		"user@example.com":               "character",
		"under_score.com":                "underscore",
		"_acme.example.com":              "underscore",
		"-a.com":                         "hyphen",
		"a-.com":                         "hyphen",
		"münchen.de":                     "not ASCII",
		"a.com\u3002":                    "not ASCII",
		"xn--.de":                        "hyphen",
		"xn--a.de":                       "not a valid internationalised",
		"xn--99999999.de":                "not a valid internationalised",
		"xn--mnchen-3ya-.de":             "hyphen",
		"ab--cd.de":                      "reserved for xn--",
		"*":                              "wildcard",
		"*.com":                          "two labels",
		"*.localhost":                    "two labels",
		"*.co.uk":                        "public suffix",
		"*.*.example.com":                "whole left-most label",
		"a.*.example.com":                "whole left-most label",
		"*a.example.com":                 "whole left-most label",
		"a*.example.com":                 "whole left-most label",
		"www.*":                          "whole left-most label",
		"192.0.2.1":                      "not a number",
		"*.0.2.1":                        "not a number",
		"2001:db8::1":                    "character",
		long64 + ".com":                  "longer than 63",
		strings.Repeat("a.", 126) + "aa": "longer than 253",
	} {
		got, err := ParseDNS(in)
		if err == nil || !strings.Contains(err.Error(), wants) {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, wants)
		}
	}
}

var long64 = strings.Repeat("a", 64)

func TestParseNames(t *testing.T) {
	n, err := ParseNames([]string{"b.example.com", "A.example.com", "b.EXAMPLE.com"}, []string{"2001:db8::1", "192.0.2.1", "::ffff:192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(n.Strings(), " "); got != "a.example.com b.example.com 192.0.2.1 2001:db8::1" || n.Len() != 4 {
		t.Fatalf("got %q", got)
	}
	if got := strings.Join(n.IPStrings(), " "); got != "192.0.2.1 2001:db8::1" {
		t.Fatalf("got %q", got)
	}
	for _, ip := range []string{"", "192.0.2", "192.0.2.1/24", "fe80::1%eth0", "192.0.02.1", "example.com", "192.0.2.1 "} {
		if n, err := ParseNames(nil, []string{ip}); err == nil {
			t.Errorf("%q: got %v", ip, n)
		}
	}
	var many []string
	for i := range maxNames {
		many = append(many, fmt.Sprintf("n%d.example.com", i))
	}
	if n, err := ParseNames(many, nil); err != nil || n.Len() != maxNames {
		t.Errorf("%d names: %v", maxNames, err)
	}
	if _, err := ParseNames(many, []string{"192.0.2.1"}); err == nil {
		t.Errorf("%d names: no error", maxNames+1)
	}
	if n, err := ParseNames(nil, nil); err != nil || n.Len() != 0 {
		t.Errorf("none: got %v, %v", n, err)
	}
}

func TestNamesSets(t *testing.T) {
	names := func(dns ...string) Names {
		t.Helper()
		n, err := ParseNames(dns, nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	ab := names("a.example.com", "b.example.com")
	if !ab.Equal(names("b.example.com", "A.example.com")) || ab.Equal(names("a.example.com")) || ab.Equal(Names{}) || !(Names{}).Equal(Names{}) {
		t.Error("Equal")
	}
	ip := Names{IP: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	if ab.Equal(ip) || ab.Contains(ip) || !ip.Contains(ip) || !ip.Contains(Names{}) {
		t.Error("addresses")
	}
	if !ab.Contains(ab) || !ab.Contains(names("b.example.com")) || ab.Contains(names("b.example.com", "c.example.com")) || (Names{}).Contains(ab) {
		t.Error("Contains")
	}
	wild := names("*.example.com")
	if wild.Contains(names("a.example.com")) || ab.Contains(wild) || !wild.Contains(wild) {
		t.Error("a wildcard contains only itself")
	}
}

func FuzzParseNames(f *testing.F) {
	for _, s := range []string{"a.example.com", "*.example.com", "xn--mnchen-3ya.de", "192.0.2.1", "::1", "_a.b", "xn--.de", "*.co.uk"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, dns, ip string) {
		n, err := ParseNames([]string{dns}, nil)
		if err == nil {
			if got := n.DNS[0]; len(got) > maxNameLen || got != strings.ToLower(got) || strings.ContainsAny(got, " _/:@\x00\n") || strings.Contains(got, "..") {
				t.Fatalf("%q became %q", dns, got)
			}
			again, err := ParseNames(n.DNS, nil)
			if err != nil || !again.Equal(n) {
				t.Fatalf("%q became %v, which becomes %v, %v", dns, n, again, err)
			}
		}
		if n, err = ParseNames(nil, []string{ip}); err == nil {
			again, err := ParseNames(nil, n.IPStrings())
			if err != nil || !again.Equal(n) || !slices.IsSortedFunc(n.IP, netip.Addr.Compare) {
				t.Fatalf("%q became %v, which becomes %v, %v", ip, n, again, err)
			}
		}
	})
}
