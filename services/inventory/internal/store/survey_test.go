package store_test

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
)

func TestSurvey(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		survey := func() store.Survey {
			t.Helper()
			v, err := f.Survey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if v := survey(); len(v.Open)+v.Served+v.Present != 0 || !v.OverdueSince.IsZero() || !v.ServedEnds.IsZero() || !v.JudgedUntil.IsZero() {
			t.Fatalf("of nothing: %+v", v)
		}
		ca := certtest.NewCA(t, "Company Root")
		f.apply("shop", "team-shop")
		leaf := ca.Issue(certtest.Leaf{Names: []string{"shop.example.com"}, From: born, To: born.Add(90 * day)})
		file := ca.Issue(certtest.Leaf{Names: []string{"other.example.com"}, From: born, To: born.Add(9 * day)})
		f.issued(leaf, "shop", "")
		f.observe("web-1", "s1", true, at(catalog.Listener, "127.0.0.1:443", leaf), at(catalog.File, "/x.pem", file))
		f.clock = f.clock.Add(time.Minute)
		if v := survey(); v.JudgedUntil.IsZero() || v.JudgedUntil.After(f.clock) {
			t.Fatalf("the watch sleeps: %+v", v)
		}
		f.judge()
		v := survey()
		if v.Served != 1 || v.Present != 2 || !v.ServedEnds.Equal(born.Add(90*day)) || !v.JudgedUntil.IsZero() || !v.OverdueSince.IsZero() ||
			v.Open[store.Found{Rule: finding.UnknownIssuer, Severity: finding.Info}] != 1 {
			t.Fatalf("one served, one in a file: %+v", v)
		}
		f.clock = born.Add(70 * day) // nobody renewed
		f.observe("web-1", "s2", true, at(catalog.Listener, "127.0.0.1:443", leaf))
		f.judge()
		if v := survey(); v.Open[store.Found{Rule: finding.Overdue, Severity: finding.Warning}] != 1 || !v.OverdueSince.Equal(f.clock) {
			t.Fatalf("overdue: %+v", v)
		}
	})
}
