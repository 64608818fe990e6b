package db_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// gathered are the counts of a database: of transactions by kind, of failures by kind ("failed write"), and of what the groups
// add up to ("grouped").
func gathered(t *testing.T, d *db.DB) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(d.Metrics()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetName() {
			case "sallyport_store_transaction_duration_seconds":
				all[kind(m)] = float64(m.GetHistogram().GetSampleCount())
			case "sallyport_store_failures_total":
				all["failed "+kind(m)] = m.GetCounter().GetValue()
			case "sallyport_store_commit_group_transactions":
				all["grouped"] = m.GetHistogram().GetSampleSum()
			}
		}
	}
	return all
}

func kind(m *dto.Metric) string { return m.GetLabel()[0].GetValue() }

func TestMetrics(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		if before := gathered(t, d); before["write"] != 0 || before["read"] != 0 {
			t.Fatalf("before anything: %v", before)
		}
		const writers = 50
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				if err := d.Write(context.Background(), insert(fmt.Sprintf("m%d", i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := d.Write(t.Context(), insert("m0")); err == nil {
			t.Error("inserted twice")
		}
		if err := d.Check(t.Context()); err != nil {
			t.Errorf("check: %v", err)
		}
		want := map[string]float64{"write": writers + 1, "grouped": writers, "failed write": 0}
		if !d.Exclusive() {
			want["grouped"] = 0 // PostgreSQL groups by itself
		}
		got := gathered(t, d)
		for name, n := range want {
			if got[name] != n {
				t.Errorf("%s: %v, want %v: what is the caller's own fault is no failure of the storage, and a check is not counted", name, got[name], n)
			}
		}
		shut(t, d)
		if err := d.Check(t.Context()); err == nil {
			t.Error("the check passes on a closed database")
		}
		if err := d.Write(t.Context(), insert("late")); err == nil || gathered(t, d)["failed write"] != 1 {
			t.Errorf("a write that the storage did not take: %v, %v", err, gathered(t, d))
		}
	})
}

// A server that has become a standby answers and takes no writes.
func TestCheckWantsToWrite(t *testing.T) {
	c := servicetest.Postgres(t)
	d := open(t, c)
	if err := d.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := open(t, db.Config{Driver: db.Postgres, DSN: c.DSN + " options='-c default_transaction_read_only=on'"}).Check(t.Context()); err == nil {
		t.Error("the check passes where nothing can be written")
	}
}
