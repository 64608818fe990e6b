package store_test

import (
	"context"
	"testing"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
)

func TestIndexes(t *testing.T) {
	servicetest.Indexes(t, func(t *testing.T, c db.Config) (*db.DB, func()) {
		f := open(t, c)
		return f.DB(), func() {
			f.apply("shop", "ann")
			ca := certtest.NewCA(t, "Root")
			f.write(func(ctx context.Context, tx db.Tx) error {
				return f.RecordAuthority(ctx, tx, catalog.Authority{Name: "internal", Chain: []catalog.Certificate{ca.Certificate}, Time: f.clock, Event: "1"})
			})
			life := certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(day)}
			old := ca.Issue(life)
			f.issued(old, "shop", "")
			f.issued(ca.Issue(life), "shop", fp(old))
			f.observe("web-1", "s", true, at(catalog.Listener, "127.0.0.1:443", old))
			f.judge()
			for _, q := range []store.CertificateQuery{{Limit: 10}, {Limit: 10, Served: true}} {
				if _, err := f.Certificates(t.Context(), q); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := f.Survey(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}, map[string][]string{
		"certificate_replacing": {"UNION SELECT replaces FROM certificate", "UPDATE certificate SET present", "c.fingerprint = n.replaces"},
		"certificate_issued_by": {"FROM certificate WHERE issuer_key ="},
		"certificate_present":   {"AS there"},
		"certificate_waiting":   {"AS waiting"},
		"certificate_served":    {"WHERE c.served", "FROM certificate WHERE served"},
		"issuer_issuer":         {}, // of CA certificates there are few: SQLite prefers to read them in the order that is wanted
		"finding_order_open":    {"ORDER BY f.rank"},
	})
}
