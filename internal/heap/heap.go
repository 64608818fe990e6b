// Package heap has a process with little in memory collect its garbage seldom.
//
// Go collects when the garbage is as much as what lives. A control plane that holds 15 MiB would do so a dozen times a second
// under load, for a seventh of its processor time. With Spare, so much garbage may lie at least; as soon as more than that
// lives, as with a large fleet, all is as it always was. Whoever sets GOGC is left alone.
package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// Spare is the garbage that is always let lie, in bytes. It is what a small process grows by under load.
const Spare = 64 << 20

const usual = 100 // percent of what lives

var once sync.Once

// Relax sets it up, once for the process.
func Relax() { once.Do(relax) }

func relax() {
	if set := debug.SetGCPercent(usual); set != usual {
		debug.SetGCPercent(set)
		return
	}
	follow(struct{}{})
}

// follow adjusts the percentage after each collection: what is made here is the next one's garbage.
func follow(struct{}) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(percent(live[0].Value.Uint64()))
	runtime.AddCleanup(new([64]byte), follow, struct{}{})
}

// least is what Go itself takes the live heap for when it is smaller: runtime, heapMinimum.
const least = 4 << 20

// percent is how much garbage may lie beside so much that lives.
func percent(live uint64) int {
	return max(usual, int(100*Spare/max(live, least)))
}
