package finding

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

const day24 = 24 * time.Hour

var (
	limits = Limits{Expiring: 30 * day24, Critical: 7 * day24, HostSilent: 3 * time.Minute}
	born   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// certificate is one that is as it should be: issued here, owned, served, of 90 days.
func certificate(change func(*Certificate)) Certificate {
	c := Certificate{
		Fingerprint: "aa", Names: []string{"shop.example.com"}, Issuer: "CN=Issuing", NotBefore: born, NotAfter: born.Add(90 * day24),
		IssuerKnown: true, Identity: "shop", Owner: "team-shop", Served: true, Assigned: true, RenewBy: born.Add(60 * day24),
	}
	if change != nil {
		change(&c)
	}
	return c
}

// said is "rule severity" of each finding.
func said(found []Finding) []string {
	var all []string
	for _, f := range found {
		all = append(all, fmt.Sprintf("%s %s", f.Rule, f.Severity))
	}
	return all
}

func TestOfCertificate(t *testing.T) {
	lives := func(d time.Duration) func(*Certificate) {
		return func(c *Certificate) { c.NotAfter, c.RenewBy = born.Add(d), time.Time{} }
	}
	file := func(c *Certificate) { c.Served, c.Assigned, c.InFile = false, false, true }
	foreign := func(c *Certificate) {
		c.Assigned, c.RenewBy, c.Identity, c.Owner = false, time.Time{}, "", ""
	}
	both := func(a, b func(*Certificate)) func(*Certificate) { return func(c *Certificate) { a(c); b(c) } }
	for _, c := range []struct {
		name   string
		change func(*Certificate)
		at     time.Duration // after it was born
		want   []string
	}{
		{"young", nil, day24, nil},
		{"not renewed, but no harm yet", nil, 60*day24 + 23*time.Hour, nil},
		// RenewBy + min(1 day, a tenth of the 30 that are left)
		{"overdue", nil, 61 * day24, []string{"overdue warning"}},
		{"expiring: a fifth of 90 days", nil, 72 * day24, []string{"expiring warning", "overdue critical"}},
		{"a moment before", nil, 72*day24 - time.Second, []string{"overdue warning"}},
		{"critical: a twentieth of 90 days", nil, 85*day24 + 12*time.Hour, []string{"expiring critical", "overdue critical"}},
		{"its last second", nil, 90 * day24, []string{"expiring critical", "overdue critical"}},
		{"ended", nil, 90*day24 + time.Second, []string{"expired critical"}},
		{"long ended", nil, 400 * day24, []string{"expired critical"}},

		{"398 days: 30 before the end", lives(398 * day24), 368 * day24, []string{"expiring warning", "overdue critical"}},
		{"398 days: 7 before the end", lives(398 * day24), 391 * day24, []string{"expiring critical", "overdue critical"}},
		{"398 days, nothing told: two thirds and a quarter of the rest", lives(398 * day24), 300 * day24, []string{"overdue warning"}},
		{"398 days, before that", lives(398 * day24), 298 * day24, nil},
		// Six days: renewal at the half, by 3.75 days; then a tenth of 2.25 days to get done.
		{"6 days", lives(6 * day24), 3*day24 + 23*time.Hour, nil},
		{"6 days, overdue", lives(6 * day24), 4 * day24, []string{"overdue warning"}},
		{"1 hour", lives(time.Hour), 40 * time.Minute, []string{"overdue warning"}},
		{"1 hour, expiring", lives(time.Hour), 48 * time.Minute, []string{"expiring warning", "overdue critical"}},
		{"no life at all", lives(-time.Hour), 0, []string{"expired critical"}},
		{"renewal told for after the end", func(c *Certificate) { c.RenewBy = c.NotAfter.Add(time.Hour) }, 69 * day24, []string{"overdue warning"}},

		{"replaced and nowhere", func(c *Certificate) { c.Served, c.Assigned, c.Replaced = false, false, true }, 80 * day24, nil},
		{"replaced, its file still there", both(file, func(c *Certificate) { c.Replaced = true }), 80 * day24, nil},
		{"replaced, still served", func(c *Certificate) { c.Assigned, c.Replaced = false, true }, 95 * day24, []string{"expired critical"}},
		{"replaced, not installed yet", func(c *Certificate) { c.Served, c.Replaced = false, true }, 62 * day24, []string{"overdue warning"}},
		{"issued and seen nowhere", func(c *Certificate) { c.Served, c.Assigned = false, false }, 80 * day24, nil},
		{"assigned, not seen, ended", func(c *Certificate) { c.Served = false }, 91 * day24, []string{"expired critical"}},

		{"revoked", func(c *Certificate) { c.Revoked = born }, day24, []string{"revoked critical"}},
		{"revoked, assigned, not seen", func(c *Certificate) { c.Revoked, c.Served = born, false }, day24, []string{"revoked critical"}},
		{"revoked and replaced, still served", func(c *Certificate) { c.Revoked, c.Assigned, c.Replaced = born, false, true }, day24, []string{"revoked critical"}},
		{"revoked and nowhere", func(c *Certificate) { c.Revoked, c.Assigned, c.Served, c.Replaced = born, false, false, true }, day24, nil},
		{"revoked, in a file", both(file, func(c *Certificate) { c.Revoked = born }), day24, nil},
		{"revoked and ended", func(c *Certificate) { c.Revoked = born }, 91 * day24, []string{"expired critical"}},
		{"in a file only", file, 80 * day24, []string{"expiring info"}},
		{"in a file only, ended", file, 91 * day24, nil},
		{"not ours, served", foreign, 80 * day24, []string{"expiring warning", "no_owner warning"}},
		{"not ours, in a file", both(foreign, file), day24, []string{"no_owner info"}},
		{"its identity is gone", func(c *Certificate) { c.Owner = "" }, day24, []string{"no_owner warning"}},

		{"unknown issuer", func(c *Certificate) { c.IssuerKnown = false }, day24, []string{"unknown_issuer warning"}},
		{"unknown issuer, in a file", both(file, func(c *Certificate) { c.IssuerKnown = false }), day24, []string{"unknown_issuer info"}},
		{"signed by itself", func(c *Certificate) { c.IssuerKnown, c.SelfSigned = false, true }, day24, []string{"unknown_issuer warning"}},
		{"a self-signed CA certificate served", func(c *Certificate) { c.IssuerKnown, c.SelfSigned, c.IsCA = false, true, true }, day24, nil},
		{"weak", func(c *Certificate) { c.Weakness = "RSA key of 1024 bits" }, day24, []string{"weak_key warning"}},
		{"weak, in a file", both(file, func(c *Certificate) { c.Weakness = "RSA key of 1024 bits" }), day24, []string{"weak_key info"}},
		{"a trust store", both(both(foreign, file), func(c *Certificate) { c.IsCA, c.SelfSigned, c.IssuerKnown, c.Weakness = true, true, false, "x" }), 89 * day24, nil},
		{"an intermediate in a file", both(both(foreign, file), func(c *Certificate) { c.IsCA, c.IssuerKnown = true, false }), 89 * day24, nil},

		{"our own CA, years to go", both(foreign, func(c *Certificate) { c.Served, c.OwnCA, c.IsCA, c.NotAfter = false, true, true, born.Add(3650*day24) }), 3000 * day24, nil},
		{"our own CA, half a year to go", both(foreign, func(c *Certificate) { c.Served, c.OwnCA, c.IsCA, c.NotAfter = false, true, true, born.Add(3650*day24) }), 3470 * day24, []string{"expiring warning"}},
		{"our own CA, ended", both(foreign, func(c *Certificate) { c.Served, c.OwnCA, c.IsCA = false, true, true }), 91 * day24, []string{"expired critical"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := OfCertificate(certificate(c.change), limits, born.Add(c.at))
			if got := said(found); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			for _, f := range found {
				if f.Message == "" {
					t.Errorf("%s says nothing", f.Rule)
				}
			}
		})
	}
}

// What is judged now stays so, messages included, until the moment that is told, and that moment comes.
func TestChangesByTimeAlone(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	flip := func() bool { return r.IntN(2) == 0 }
	for range 3000 {
		life := time.Duration(r.Int64N(int64(400 * day24)))
		c := certificate(func(c *Certificate) {
			c.NotAfter = born.Add(life)
			c.RenewBy = born.Add(time.Duration(r.Int64N(int64(life) + 1)))
			if flip() {
				c.RenewBy = time.Time{}
			}
			c.Served, c.Assigned, c.InFile, c.Replaced, c.OwnCA, c.IsCA = flip(), flip(), flip(), flip(), r.IntN(5) == 0, r.IntN(5) == 0
			if flip() {
				c.Identity, c.Owner = "", ""
			}
			if flip() {
				c.Revoked = born
			}
		})
		steps := 0
		for now := born; ; steps++ {
			next := CertificateChanges(c, limits, now)
			last := next.Add(-time.Nanosecond)
			if next.IsZero() {
				last = now.Add(1000 * day24)
			} else if !next.After(now) {
				t.Fatalf("%+v at %s: the next moment %s is not later", c, now, next)
			}
			for range 5 {
				at := now.Add(time.Duration(r.Int64N(int64(last.Sub(now)) + 1)))
				if got, want := OfCertificate(c, limits, at), OfCertificate(c, limits, now); !reflect.DeepEqual(got, want) {
					t.Fatalf("%+v: judged %v at %s, but %v at %s, before %s", c, want, now, got, at, next)
				}
			}
			if next.IsZero() {
				break
			}
			now = next
		}
		if steps > 4 {
			t.Fatalf("%d moments in one life", steps)
		}
	}
}

func TestOfHost(t *testing.T) {
	for _, c := range []struct {
		name string
		host Host
		at   time.Duration
		want []string
	}{
		{"just heard", Host{Works: true, Heard: born}, time.Minute, nil},
		{"three heartbeats", Host{Works: true, Heard: born}, 3 * time.Minute, []string{"host_silent warning"}},
		{"never heard", Host{Works: true, Heard: born, Never: true}, time.Hour, []string{"host_silent warning"}},
		{"locked or removed", Host{Heard: born}, time.Hour, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := born.Add(c.at)
			if got := said(OfHost(c.host, limits, now)); !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if next := HostChanges(c.host, limits, now); c.host.Works && c.want == nil && !next.Equal(born.Add(3*time.Minute)) {
				t.Errorf("changes at %s", next)
			}
		})
	}
}

func TestOfTarget(t *testing.T) {
	const address = "127.0.0.1:443"
	later, soon, before := born.Add(time.Hour), born.Add(time.Minute), born.Add(-time.Hour)
	shop := []string{"shop.example.com", "www.shop.example.com"}
	listener := func(fingerprint, location, serverName string, at time.Time, names ...string) Sighting {
		return Sighting{Fingerprint: fingerprint, Listener: true, Location: location, ServerName: serverName, LastSeen: at, Names: names}
	}
	for _, c := range []struct {
		name string
		a    Assignment
		want bool
	}{
		{"reported served as assigned", Assignment{Expected: []string{"new"}, Reported: "new"}, false},
		{"cannot be seen", Assignment{Expected: []string{"new"}}, false},
		{"reported drifted", Assignment{Expected: []string{"new"}, Reported: "other"}, true},
		{"the old one until the new is in place", Assignment{Expected: []string{"new", "old"}, Reported: "old"}, false},
		{"neither", Assignment{Expected: []string{"new", "old"}, Reported: "other"}, true},
		{"nothing assigned yet", Assignment{Reported: "other"}, false},

		{"a scan sees it", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("new", address, "shop.example.com", later, shop...)}}, false},
		{"a scan sees another for its name", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("other", address, "shop.example.com", later, "x")}}, true},
		{"a scan that may have looked before", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("old", address, "shop.example.com", soon, shop...)}}, false},
		{"a scan before the report", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("old", address, "shop.example.com", before, shop...)}}, false},
		{"a later scan clears a drift", Assignment{Expected: []string{"new"}, Reported: "other", Sightings: []Sighting{listener("new", address, "shop.example.com", later, shop...)}}, false},
		{"another site on that port", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("other", address, "blog.example.com", later, "blog.example.com")}}, false},
		{"the default site of that port", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("other", address, "", later, "default.example.com")}}, false},
		{"without server name, for the same names", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("other", address, "", later, "*.example.com")}}, true},
		{"a default wildcard, but the name gets it right", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{
			listener("other", address, "", later, "*.example.com"), listener("new", address, "shop.example.com", later, shop...)}}, false},
		{"the same, in the other order", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{
			listener("new", address, "shop.example.com", later, shop...), listener("other", address, "", later, "*.example.com")}}, false},
		{"one of two names wrong", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{
			listener("new", address, "shop.example.com", later, shop...), listener("other", address, "www.shop.example.com", later, "x")}}, true},
		{"what was there before it", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{
			listener("old", address, "shop.example.com", later, shop...), listener("new", address, "shop.example.com", later.Add(time.Minute), shop...)}}, false},
		{"another port", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("other", "127.0.0.1:8443", "shop.example.com", later, shop...)}}, false},
		{"every interface", Assignment{Expected: []string{"new"}, Reported: "new", Sightings: []Sighting{listener("other", "[::]:443", "shop.example.com", later, shop...)}}, true},

		{"a file as assigned", Assignment{Address: "/etc/ssl/a.pem", Expected: []string{"new"}, Sightings: []Sighting{{Fingerprint: "new", Location: "/etc/ssl/a.pem", LastSeen: later}}}, false},
		{"another in the file", Assignment{Address: "/etc/ssl/a.pem", Expected: []string{"new"}, Sightings: []Sighting{{Fingerprint: "other", Location: "/etc/ssl/a.pem", LastSeen: later}}}, true},
		{"another file", Assignment{Address: "/etc/ssl/a.pem", Expected: []string{"new"}, Sightings: []Sighting{{Fingerprint: "other", Location: "/etc/ssl/b.pem", LastSeen: later}}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.a.Deployment, c.a.Names, c.a.Changed = "shop", shop, born
			if c.a.Address == "" {
				c.a.Address = address
			}
			found := OfTarget(Target{Host: "web-1", Name: "nginx", Assignments: []Assignment{c.a}})
			if (len(found) == 1) != c.want {
				t.Errorf("got %v", found)
			}
			if c.want && (found[0].Rule != ServedIsNotAssigned || found[0].Severity != Critical) {
				t.Errorf("got %v", found)
			}
		})
	}
	two := Target{Host: "web-1", Name: "nginx", Assignments: []Assignment{{Expected: []string{"a"}, Reported: "a"}, {Expected: []string{"b"}, Reported: "x"}}}
	if len(OfTarget(two)) != 1 {
		t.Error("every assignment of a target counts")
	}
}

func TestSameAddress(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:443", "127.0.0.1:443", true},
		{"127.0.0.1:443", "0.0.0.0:443", true},
		{"127.0.0.1:443", "127.0.0.1:444", false},
		{"shop.example.com:443", "10.0.0.5:443", true},
		{"10.0.0.5:443", "10.0.0.6:443", false},
		{"10.0.0.5:443", "[::ffff:10.0.0.5]:443", true},
		{"10.0.0.5:443", "[::]:443", true},
		{"/etc/ssl/a.pem", "127.0.0.1:443", false},
		{"", "", false},
	} {
		if SameAddress(c.a, c.b) != c.want || SameAddress(c.b, c.a) != c.want {
			t.Errorf("%q and %q: want %v", c.a, c.b, c.want)
		}
	}
}

func TestSubjects(t *testing.T) {
	for _, c := range [][3]string{
		{CertificateSubject("ab"), Certificates, "ab"}, {HostSubject("web-1"), Hosts, "web-1"}, {TargetSubject("web-1", "nginx"), Targets, "web-1/nginx"},
	} {
		if kind, name := SplitSubject(c[0]); kind != c[1] || name != c[2] {
			t.Errorf("%s: got %s, %s", c[0], kind, name)
		}
	}
	if short("ab") != "ab" || named([]string{"a", "b", "c", "d", "e"}) != "for a, b, c and 2 more" || Severity(9).String() != "critical" || Severity(0).String() != "unspecified" {
		t.Error("words are wrong")
	}
}
