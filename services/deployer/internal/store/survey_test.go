package store

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/fleet"
	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

func TestSurvey(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		survey := func() Survey {
			t.Helper()
			v, err := f.Survey(t.Context())
			f.must(err)
			return v
		}
		if v := survey(); len(v.Agents)+len(v.Assignments)+len(v.Since)+v.Silent+v.Due+v.Overdue != 0 || !v.LastHeard.IsZero() || !v.OverdueSince.IsZero() {
			t.Fatalf("of nothing: %+v", v)
		}
		begun := f.now()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		if v := survey(); v.Silent != 0 || v.Agents[fleet.Enrolled] != 1 {
			t.Fatalf("just enrolled: %+v", v)
		}
		f.advance(4 * time.Minute)
		v := survey()
		if v.Silent != 1 || !v.LastHeard.Equal(begun) || v.Assignments[rollout.Assigned] != 1 || !v.Since[rollout.Assigned].Equal(begun) || v.Overdue != 0 {
			t.Fatalf("silent for 4 minutes: %+v", v)
		}

		// Nobody renews: first due, then overdue.
		a := f.served(fingerprintOf(1))
		f.advance(a.Renewal.At.Sub(f.now()) + time.Second)
		if v := survey(); v.Due != 1 || v.Overdue != 0 || v.Assignments[rollout.Served] != 1 || len(v.Since) != 0 {
			t.Fatalf("due: %+v", v)
		}
		f.advance(a.Renewal.By.Sub(f.now()) + time.Second)
		if v := survey(); v.Due != 1 || v.Overdue != 1 || !v.OverdueSince.Equal(a.Renewal.By) {
			t.Fatalf("overdue since %s: %+v", a.Renewal.By, v)
		}
		// What is under way at last stays overdue until the new certificate is there.
		changed := f.deployment("web-1")
		changed.Targets[0].Settings["site"] = "other"
		f.apply(changed)
		f.is("shop", rollout.Planned)
		if v := survey(); v.Due != 0 || v.Overdue != 1 || !v.OverdueSince.Equal(a.Renewal.By) {
			t.Fatalf("overdue and under way: %+v", v)
		}

		f.must(f.Hear(t.Context(), Heard{Host: "web-1", Info: fleet.Info{Version: "v1", Connectors: []string{"nginx"}}}))
		f.must(f.Start(t.Context(), "shop"))
		a = f.is("shop", rollout.Assigned)
		f.must(f.take(a, f.csr(a)))
		f.issue(a, fingerprintOf(2))
		if v := survey(); v.Due+v.Overdue+v.Silent != 0 || v.Assignments[rollout.Issued] != 1 {
			t.Fatalf("issued anew: %+v", v)
		}
	})
}

// TestSurveyReadsIndexes: a survey may come every few seconds, whatever there is.
func TestSurveyReadsIndexes(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		if !f.db.Exclusive() {
			return // PostgreSQL plans by what is in the tables, and here is nothing
		}
		for query, args := range map[string][]any{countAssignments: nil, findUnderWay: {int64(1)}, findDue: {int64(1)}} {
			var plan []string
			f.must(f.db.Read(t.Context(), func(ctx context.Context, tx db.Tx) error {
				rows, err := tx.Query(ctx, `EXPLAIN QUERY PLAN `+query, args...)
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var id, parent, unused int
					var line string
					if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
						return err
					}
					plan = append(plan, line)
				}
				return rows.Err()
			}))
			if !slices.ContainsFunc(plan, func(line string) bool {
				return strings.Contains(line, "COVERING INDEX assignment_") || strings.HasPrefix(line, "SEARCH assignment USING INDEX assignment_renewal")
			}) {
				t.Errorf("%s\nreads %q", query, plan)
			}
		}
	})
}
