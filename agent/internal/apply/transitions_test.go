package apply

import "testing"

func TestTransitions(t *testing.T) {
	want := map[State]map[Event]State{
		Staging:    {Staged: Activating, Failed: Ended},
		Activating: {Activated: Verifying, Failed: Restoring},
		Verifying:  {Settled: Settling, Failed: Restoring},
		Settling:   {Committed: Ended},
		Restoring:  {Restored: Ended},
	}
	states := []State{Staging, Activating, Verifying, Settling, Restoring, Ended, "unknown"}
	for _, s := range states {
		for _, e := range []Event{Staged, Activated, Failed, Settled, Committed, Restored, "unknown"} {
			to, err := next(s, e)
			if w, ok := want[s][e]; ok {
				if err != nil || to != w {
					t.Errorf("%s on %s: %s, %v; want %s", s, e, to, err, w)
				}
			} else if err == nil || to != s {
				t.Errorf("%s on %s: %s, %v; want an error", s, e, to, err)
			}
		}
	}
}
