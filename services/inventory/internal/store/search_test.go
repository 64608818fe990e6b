package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
)

func TestSearch(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ca, other := certtest.NewCA(t, "Company 100%"), certtest.NewCA(t, "Somebody_Else")
		f.apply("shop", "team-shop")
		f.apply("blog", "team-blog")
		days := func(n int, ca *certtest.CA, names ...string) catalog.Certificate {
			return ca.Issue(certtest.Leaf{Names: names, From: born.Add(-100 * day), To: born.Add(time.Duration(n) * day)})
		}
		name := map[string]string{}
		add := func(label string, c catalog.Certificate) catalog.Certificate { name[fp(c)] = label; return c }
		past := add("past", days(-5, ca, "shop.example.com"))
		old := add("old", days(5, ca, "shop.example.com", "10.1.2.3"))
		now := add("now", days(60, ca, "shop.example.com"))
		blog := add("blog", days(20, ca, "blog.example.com"))
		lost := add("lost", days(-1, other, "lost.example.com"))
		foreign := add("foreign", days(40, other, "Foreign.example.com"))
		f.issued(past, "shop", "")
		f.issued(old, "shop", fp(past))
		f.issued(now, "shop", fp(old))
		f.issued(blog, "blog", "")
		f.observe("web-2", "s", true, at(catalog.File, "/etc/lost.pem", lost))
		f.observe("web-1", "s", true, at(catalog.Listener, "127.0.0.1:443", now), at(catalog.File, "/etc/foreign.pem", foreign), at(catalog.File, "/etc/x.pem", blog))
		f.clock = f.clock.Add(time.Minute)
		f.observe("web-2", "t", true)
		f.observe("web-1", "t", true, at(catalog.Listener, "127.0.0.1:443", now), at(catalog.File, "/etc/foreign.pem", foreign))
		f.assign(1, "served", fp(now), fp(now), time.Time{})

		for _, c := range []struct {
			name  string
			query store.CertificateQuery
			want  []string
		}{
			{"what there is", store.CertificateQuery{}, []string{"blog", "foreign", "now"}},
			{"and what is past", store.CertificateQuery{Past: true}, []string{"past", "lost", "old", "blog", "foreign", "now"}},
			{"what ends in 45 days", store.CertificateQuery{EndsBefore: born.Add(45 * day)}, []string{"blog", "foreign"}},
			{"of an owner", store.CertificateQuery{Owner: "team-shop"}, []string{"now"}},
			{"of an identity, ever", store.CertificateQuery{Identity: "shop", Past: true}, []string{"past", "old", "now"}},
			{"of our CA", store.CertificateQuery{Authority: "internal"}, []string{"blog", "now"}},
			{"of a CA by its name", store.CertificateQuery{IssuerContains: "somebody"}, []string{"foreign"}},
			{"a percent sign is itself", store.CertificateQuery{IssuerContains: "100%"}, []string{"blog", "now"}},
			{"and no wildcard", store.CertificateQuery{IssuerContains: "%Else"}, nil},
			{"nor is an underscore", store.CertificateQuery{IssuerContains: "y_1"}, nil},
			{"on a host", store.CertificateQuery{Host: "web-1"}, []string{"foreign", "now"}},
			{"on a host, ever", store.CertificateQuery{Host: "web-1", Past: true}, []string{"blog", "foreign", "now"}},
			{"by name", store.CertificateQuery{Name: "FOREIGN.example.com"}, []string{"foreign"}},
			{"by address", store.CertificateQuery{Name: "::ffff:10.1.2.3", Past: true}, []string{"old"}},
			{"served", store.CertificateQuery{Served: true}, []string{"now"}},
			{"all at once", store.CertificateQuery{Served: true, Host: "web-1", Owner: "team-shop", Identity: "shop", Authority: "internal", IssuerContains: "company", Name: "shop.example.com", EndsBefore: born.Add(90 * day)}, []string{"now"}},
			{"nothing", store.CertificateQuery{Owner: "nobody"}, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				for _, limit := range []int{100, 1} {
					var got []string
					c.query.Limit, c.query.After = limit, store.CertificateKey{}
					for {
						page, err := f.Certificates(t.Context(), c.query)
						if err != nil {
							t.Fatal(err)
						}
						for _, k := range page {
							got = append(got, name[fp(k.Certificate)])
						}
						if len(page) < limit {
							break
						}
						c.query.After = store.KeyOf(page[len(page)-1])
					}
					if !slices.Equal(got, c.want) {
						t.Errorf("pages of %d: got %q, want %q", limit, got, c.want)
					}
				}
			})
		}
		all, err := f.Certificates(t.Context(), store.CertificateQuery{Limit: 10, Past: true})
		if err != nil {
			t.Fatal(err)
		}
		k := all[5]
		if k.Owner != "team-shop" || k.Profile != "web" || k.Request != "r3" || !k.Served || !slices.Equal(k.AssignedTo, []string{"web-1/nginx"}) || len(k.Sightings) != 1 || !k.LastSeen.Equal(f.clock) || !k.FirstSeen.Equal(born) {
			t.Errorf("known: %+v", k)
		}
		if all[2].ReplacedBy != fp(now) || all[0].ReplacedBy != fp(old) {
			t.Error("replacements are missing")
		}
	})
}

func TestFingerprintPrefix(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.write(func(ctx context.Context, tx db.Tx) error {
			for _, fingerprint := range []string{"aaaaaaaa01", "aaaaaaaa02", "aaaaaaab01"} {
				if _, err := tx.Exec(ctx, `INSERT INTO certificate (fingerprint, der, not_after, issuer, issuer_key, known) VALUES ($1, $2, 7, '', '', 0)`, fingerprint, []byte("?")); err != nil {
					return err
				}
			}
			return nil
		})
		_, err := f.Certificate(t.Context(), "aaaaaaaa")
		refused(t, err, fault.InvalidArgument, "FINGERPRINT_AMBIGUOUS")
		_, err = f.Certificate(t.Context(), "aaaaaaac")
		refused(t, err, fault.NotFound, "CERTIFICATE_NOT_FOUND")
		// What cannot be read any more is shown as far as it is known.
		k, err := f.Certificate(t.Context(), "aaaaaaab")
		if err != nil || fp(k.Certificate) != "aaaaaaab01" || k.Key() != "unknown" {
			t.Errorf("got %+v, %v", k, err)
		}
	})
}

func TestListsOfHosts(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		for i := range 5 {
			f.observe(fmt.Sprintf("web-%d", i), "", false)
			f.clock = f.clock.Add(time.Minute)
		}
		f.write(func(ctx context.Context, tx db.Tx) error {
			return f.RecordAgent(ctx, tx, catalog.AgentChange{Host: "web-1", State: catalog.Removed, Time: f.clock, Event: "e"})
		})
		list := func(q store.HostQuery) []string {
			t.Helper()
			hosts, err := f.Hosts(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, h := range hosts {
				names = append(names, h.Name)
			}
			return names
		}
		want(t, "a page", list(store.HostQuery{Limit: 2}), "web-0", "web-1")
		want(t, "the next", list(store.HostQuery{Limit: 2, After: "web-1"}), "web-2", "web-3")
		want(t, "silent", list(store.HostQuery{Limit: 9, SilentSince: born.Add(2 * time.Minute)}), "web-0", "web-2")
	})
}

func TestListsOfFindings(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		f.apply("shop", "team-shop")
		f.write(func(ctx context.Context, tx db.Tx) error {
			for i, x := range []struct {
				rule, identity string
				rank, closed   int64
			}{{"overdue", "shop", 1, 0}, {"expired", "shop", 0, 0}, {"weak_key", "", 2, 0}, {"overdue", "", 1, 5}, {"expiring", "gone", 1, 0}} {
				if _, err := tx.Exec(ctx, `INSERT INTO finding (rule, subject, opened, closed, rank, message, identity) VALUES ($1, $2, $3, $4, $5, 'm', $6)`,
					x.rule, fmt.Sprintf("certificates/%d", i), int64(10-i), x.closed, x.rank, x.identity); err != nil {
					return err
				}
			}
			return nil
		})
		for _, c := range []struct {
			name  string
			query store.FindingQuery
			want  []string
		}{
			{"open", store.FindingQuery{}, []string{"1", "4", "0", "2"}},
			{"closed too", store.FindingQuery{Closed: true}, []string{"1", "4", "3", "0", "2"}},
			{"warnings", store.FindingQuery{Least: finding.Warning}, []string{"1", "4", "0"}},
			{"of rules", store.FindingQuery{Rules: []finding.Rule{finding.Overdue, finding.WeakKey}}, []string{"0", "2"}},
			{"of an owner", store.FindingQuery{Owner: "team-shop"}, []string{"1", "0"}},
			{"of an owner and rule", store.FindingQuery{Owner: "team-shop", Rules: []finding.Rule{finding.Expired}}, []string{"1"}},
		} {
			for _, limit := range []int{100, 1} {
				var got []string
				c.query.Limit, c.query.After = limit, store.FindingKey{}
				for {
					page, err := f.Findings(t.Context(), c.query)
					if err != nil {
						t.Fatal(err)
					}
					for _, x := range page {
						got = append(got, x.Subject[len("certificates/"):])
					}
					if len(page) < limit {
						break
					}
					c.query.After = page[len(page)-1].Key()
				}
				want(t, c.name, got, c.want...)
			}
		}
	})
}

// many fills a store: mostly what was replaced long ago, as after years of renewals.
func many(b *testing.B, f *fixture, n int) {
	b.Helper()
	ca := certtest.NewCA(b, "Root")
	der := ca.Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * day)}).DER
	r := rand.New(rand.NewPCG(1, 1))
	for start := 0; start < n; start += 1000 {
		f.write(func(ctx context.Context, tx db.Tx) error {
			for i := start; i < start+1000; i++ {
				fingerprint := fmt.Sprintf("%016x%048x", r.Uint64(), i)
				past := i%5 != 0
				end := born.Add(time.Duration(r.IntN(90*24)) * time.Hour)
				if past {
					end = born.Add(-time.Duration(r.IntN(900*24)) * time.Hour)
				}
				if _, err := tx.Exec(ctx, `INSERT INTO certificate (fingerprint, der, not_after, issuer, issuer_key, known, identity, authority, present, served, replaced)
					VALUES ($1, $2, $3, 'cn=root', 'k', 0, $4, 'internal', $5, $6, $7)`,
					fingerprint, der, db.FromTime(end), fmt.Sprintf("id-%d", i%1000), !past, !past, past); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `INSERT INTO certificate_name (name, fingerprint) VALUES ($1, $2)`, fmt.Sprintf("n%d.example.com", i%1000), fingerprint); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, `INSERT INTO sighting (host, role, location, server_name, fingerprint, first_seen, last_seen, gone) VALUES ($1, 'listener', '127.0.0.1:443', '', $2, 0, 0, $3)`,
					fmt.Sprintf("web-%d", i%1000), fingerprint, map[bool]int64{true: 1}[past]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := range 1000 {
		f.apply(fmt.Sprintf("id-%d", i), fmt.Sprintf("team-%d", i%20))
	}
}

func BenchmarkLists(b *testing.B) {
	for driver, c := range map[string]func(testing.TB) db.Config{db.SQLite: servicetest.SQLite, db.Postgres: servicetest.Postgres} {
		b.Run(driver, func(b *testing.B) {
			f := open(b, c(b))
			many(b, f, 100_000)
			if driver == db.Postgres {
				f.write(func(ctx context.Context, tx db.Tx) error { _, err := tx.Exec(ctx, `ANALYZE`); return err })
			}
			middle := store.CertificateKey{NotAfter: db.FromTime(born.Add(45 * day))}
			for name, q := range map[string]store.CertificateQuery{
				"first":    {},
				"deep":     {After: middle},
				"30days":   {EndsBefore: born.Add(30 * day)},
				"past":     {Past: true, After: middle},
				"owner":    {Owner: "team-7"},
				"identity": {Identity: "id-77"},
				"host":     {Host: "web-77"},
				"name":     {Name: "n77.example.com"},
				"issuer":   {IssuerContains: "root"},
				"served":   {Served: true},
			} {
				b.Run(name, func(b *testing.B) {
					q.Limit = 101
					for b.Loop() {
						if _, err := f.Certificates(context.Background(), q); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			b.Run("review", func(b *testing.B) { // all that is in use: 20,000
				for b.Loop() {
					for after := ""; ; {
						subjects, err := f.Subjects(context.Background(), finding.Certificates, after, 200)
						if err != nil {
							b.Fatal(err)
						}
						if len(subjects) == 0 {
							break
						}
						after = subjects[len(subjects)-1]
						if _, err := f.Review(context.Background(), limits, subjects); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		})
	}
}

// BenchmarkObservations: what one host costs. Heartbeats come from each host every minute, scans a few times a day.
func BenchmarkObservations(b *testing.B) {
	for driver, c := range map[string]func(testing.TB) db.Config{db.SQLite: servicetest.SQLite, db.Postgres: servicetest.Postgres} {
		b.Run(driver, func(b *testing.B) {
			f := open(b, c(b))
			ca := certtest.NewCA(b, "Root")
			var seen []catalog.Seen
			for i := range 50 {
				cert := ca.Issue(certtest.Leaf{Names: []string{fmt.Sprintf("n%d.example.com", i)}, From: born, To: born.Add(90 * day)})
				seen = append(seen, at(catalog.Listener, fmt.Sprintf("127.0.0.1:%d", 1000+i), cert))
			}
			f.observe("web-1", "s", true, seen...)
			b.Run("heartbeat", func(b *testing.B) {
				for b.Loop() {
					f.clock = f.clock.Add(time.Minute)
					f.observe("web-1", "", false)
				}
			})
			b.Run("scan of 50", func(b *testing.B) {
				for b.Loop() {
					f.clock = f.clock.Add(time.Minute)
					f.observe("web-1", fmt.Sprint(f.clock.Unix()), true, seen...)
				}
			})
		})
	}
}
