package store

import (
	"reflect"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/rollout"
)

// TestReplays: a report counts once. With its own id it is taken for the agent's asking again after a lost answer, whatever came
// meanwhile and whatever it says now; what it told of is over, so under a new id it is on the record as refused.
func TestReplays(t *testing.T) {
	each(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.enrol("web-1")
		f.apply(f.deployment("web-1"))
		f.must(f.Start(ctx, "shop"))
		a := f.is("shop", rollout.Assigned)
		f.must(f.take(a, f.csr(a)))
		f.issue(a, fingerprintOf(1))
		say := func(id string, o rollout.Outcome, served string, attempt int32) rollout.Report {
			return rollout.Report{ID: id, Assignment: a.ID, Generation: 1, Attempt: attempt, Outcome: o, Served: served, Address: "h:443"}
		}
		var told []rollout.Report
		stale := 0
		// unmoved sends again all that was told before.
		unmoved := func(state rollout.State) {
			t.Helper()
			before, all := f.is("shop", state), len(f.events(""))
			for _, r := range told {
				f.must(f.TakeReport(ctx, "web-1", r))
				r.Outcome, r.Served, r.Attempt = rollout.OutcomeBroken, fingerprintOf(8), before.Attempt
				f.must(f.TakeReport(ctx, "web-1", r))
			}
			if now := f.is("shop", state); !reflect.DeepEqual(now, before) || len(f.events("")) != all {
				t.Errorf("the same reports again have made of %+v: %+v, with %d events more", before, now, len(f.events(""))-all)
			}
			f.happened("report.stale", stale)
		}
		tell := func(r rollout.Report, state rollout.State) {
			t.Helper()
			f.must(f.TakeReport(ctx, "web-1", r))
			told = append(told, r)
			unmoved(state)
		}

		tell(say("good", rollout.OutcomeServed, fingerprintOf(1), 1), rollout.Served)
		// Something else was found there: what was good before is good no more, in the same attempt.
		tell(say("drifted", rollout.OutcomeDrifted, fingerprintOf(9), 1), rollout.Failed)
		f.advance(time.Minute)
		f.must(f.Retry(ctx, f.only("shop")))
		unmoved(rollout.Issued)
		tell(say("good again", rollout.OutcomeServed, fingerprintOf(1), 2), rollout.Served)

		for _, old := range told[:2] {
			old.ID += ", replayed"
			stale++
			tell(old, rollout.Served)
		}
		if _, err := f.Renew(ctx, "shop", "", "key rotation", "r-1"); err != nil {
			t.Fatal(err)
		}
		unmoved(rollout.Assigned)
		last := told[2]
		last.ID += ", replayed"
		stale++
		tell(last, rollout.Assigned)
	})
}
