package watch_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/catalog"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/certtest"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/finding"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/store"
	"github.com/sallyport-pki/sallyport/services/inventory/internal/watch"
)

var (
	born   = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	limits = finding.Limits{Expiring: 30 * 24 * time.Hour, Critical: 7 * 24 * time.Hour, HostSilent: 3 * time.Minute}
)

func open(t *testing.T, c db.Config, now func() time.Time) (*store.Store, *watch.Watch) {
	t.Helper()
	st, err := store.Open(t.Context(), c, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w, err := watch.New(watch.Config{Store: st, Limits: limits, Review: time.Hour, Now: now, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	return st, w
}

func observe(t *testing.T, st *store.Store, now time.Time, hosts ...string) {
	t.Helper()
	cert := certtest.NewCA(t, "Root").Issue(certtest.Leaf{Names: []string{"a.example.com"}, From: born, To: born.Add(90 * 24 * time.Hour)})
	for _, host := range hosts {
		err := st.DB().Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			return st.RecordObservation(ctx, tx, catalog.Observation{Host: host, Time: now, Scan: "s", Complete: true,
				Seen: []catalog.Seen{{Place: catalog.Place{Role: catalog.Listener, Location: "127.0.0.1:443"}, Leaf: cert}}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func count(t *testing.T, st *store.Store) int {
	t.Helper()
	all, err := st.Findings(t.Context(), store.FindingQuery{Limit: 10000})
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func until(t *testing.T, st *store.Store, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for count(t, st) != want {
		select {
		case <-ctx.Done():
			t.Fatalf("%d findings, want %d", count(t, st), want)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Two replicas watch; one does the work, and when it stops the other takes over. What is touched is judged without a wait,
// also by the replica that did not touch it.
func TestReplicas(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		var mu sync.Mutex
		clock := born
		now := func() time.Time { mu.Lock(); defer mu.Unlock(); return clock }
		st, first := open(t, c, now)
		second := first
		if c.Driver == db.Postgres {
			_, second = open(t, c, now)
		}
		run := func(w *watch.Watch) func() {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.Run(ctx) }()
			return sync.OnceFunc(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		}
		stopFirst, stopSecond := run(first), run(second)
		defer stopSecond()
		defer stopFirst()
		observe(t, st, born, "web-1", "web-2")
		until(t, st, 2) // nobody answers for the certificate, and its issuer is unknown
		stopFirst()
		mu.Lock()
		clock = clock.Add(3 * time.Minute)
		mu.Unlock()
		until(t, st, 4) // both hosts are silent
		stopSecond()
	})
}

func TestReviewAll(t *testing.T) {
	st, w := open(t, servicetest.SQLite(t), func() time.Time { return born })
	var hosts []string
	for _, a := range "abcdefghij" {
		for _, b := range "0123456789abcdefghijklmnopq" {
			hosts = append(hosts, string(a)+string(b))
		}
	}
	observe(t, st, born, hosts...) // more than fit into one batch
	lose := func(statement string) {
		err := st.DB().Write(t.Context(), func(ctx context.Context, tx db.Tx) error { _, err := tx.Exec(ctx, statement); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	lose(`DELETE FROM due`)
	if err := w.ReviewAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	until(t, st, 2)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var due int
	err := st.DB().Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM due`).Scan(&due)
	})
	if err != nil || due != len(hosts)+1 {
		t.Errorf("%d subjects are due some time, want %d; %v", due, len(hosts)+1, err)
	}
}

func TestNewValidates(t *testing.T) {
	if _, err := watch.New(watch.Config{}); err == nil {
		t.Error("without a store")
	}
}
