package boot

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	memoryLook = 3 * time.Second
	// memoryRest is how long after memory was given back it is left alone.
	memoryRest = time.Minute
	// memoryLeast is what it is worth collecting for.
	memoryLeast = 16 << 20
)

// GiveMemoryBack gives the system what a storm has left, such as a fleet that
// came back all at once: the collector alone keeps it for hours, since a heap
// that does not grow any more is hardly looked at. It looks until ctx ends.
func GiveMemoryBack(ctx context.Context) error {
	t := time.NewTicker(memoryLook)
	defer t.Stop()
	last := look()
	given, rested := last, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			is := look()
			if is.idle(last) && (now.After(rested) || is.stormed(given)) {
				debug.FreeOSMemory()
				given, rested = is, now.Add(memoryRest)
			}
			last = is
		}
	}
}

// usage of memory, in bytes.
type usage struct {
	live  uint64 // survived the last collection, stacks included
	held  uint64 // taken from the system and not given back
	taken uint64 // allocated since the start
}

func look() usage {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return usage{live: s[0].Value.Uint64() + s[1].Value.Uint64(), held: s[2].Value.Uint64() - s[3].Value.Uint64(), taken: s[4].Value.Uint64()}
}

// idle says that much more is held than lives, and that it is not being filled: the collector has nothing to do.
func (u usage) idle(before usage) bool {
	return u.held > u.live+u.live/3+memoryLeast && u.taken-before.taken < u.live/2
}

// stormed says that so much happened since memory was last given back that it is worth doing again at once.
func (u usage) stormed(given usage) bool { return u.taken-given.taken > u.live }
