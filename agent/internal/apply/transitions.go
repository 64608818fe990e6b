package apply

import "fmt"

// State is how far an installation has got: what has survived a crash.
type State string

// The states.
const (
	Staging    State = "staging"    // the intent; new files may lie beside the old ones
	Activating State = "activating" // all new files are complete; some may be in place
	Verifying  State = "verifying"  // all new files are in place, the server was told
	Settling   State = "settling"   // it stays; the old files may be gone
	Restoring  State = "restoring"  // the intent to put the old files back
	Ended      State = "ended"      // the result
)

// Event is what moves it.
type Event string

// The events.
const (
	Staged    Event = "staged"    // the new files are complete
	Activated Event = "activated" // swapped, checked, reloaded
	Failed    Event = "failed"    // a step went wrong
	Settled   Event = "settled"   // looked at, and it stays
	Committed Event = "committed" // the old files are gone; not kept, Settling would come to the same
	Restored  Event = "restored"  // the old files are back, or could not be put back
)

// transitions is the machine. Putting the old files back and throwing them away
// exclude each other, also over crashes: hence Settling.
//
//	staging --staged--> activating --activated--> verifying --settled--> settling --committed--> ended
//	   |failed             |failed                   |failed
//	   v                   v                         v
//	 ended             restoring <-------------------+          --restored--> ended
var transitions = map[State]map[Event]State{
	Staging:    {Staged: Activating, Failed: Ended},
	Activating: {Activated: Verifying, Failed: Restoring},
	Verifying:  {Settled: Settling, Failed: Restoring},
	Settling:   {Committed: Ended},
	Restoring:  {Restored: Ended},
	Ended:      {},
}

func next(s State, e Event) (State, error) {
	to, ok := transitions[s][e]
	if !ok {
		return s, fmt.Errorf("apply: event %q in state %q", e, s)
	}
	return to, nil
}
