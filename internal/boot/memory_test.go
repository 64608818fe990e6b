package boot

import (
	"runtime"
	"testing"
)

// What is worth giving back: much more held than lives, and nobody busy with it.
func TestIdleMemory(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		what       string
		is, before usage
		want       bool
	}{
		{"after a storm", usage{live: 100 * mib, held: 300 * mib, taken: 1001 * mib}, usage{taken: 1000 * mib}, true},
		{"in a storm", usage{live: 100 * mib, held: 300 * mib, taken: 1100 * mib}, usage{taken: 1000 * mib}, false},
		{"nothing to give", usage{live: 100 * mib, held: 140 * mib, taken: 1001 * mib}, usage{taken: 1000 * mib}, false},
		{"too little to be worth it", usage{live: 10 * mib, held: 29 * mib, taken: 1000 * mib}, usage{taken: 1000 * mib}, false},
	} {
		if got := c.is.idle(c.before); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// What was given back is filled again by the next storm, and hardly by what goes on all the time.
func TestStormed(t *testing.T) {
	const mib = 1 << 20
	given := usage{live: 50 * mib, taken: 1000 * mib}
	for taken, want := range map[uint64]bool{1000 * mib: false, 1100 * mib: false, 1101 * mib: true} {
		if got := (usage{live: 100 * mib, taken: taken}).stormed(given); got != want {
			t.Errorf("%d MiB taken: %v", taken/mib, got)
		}
	}
}

// The figures are those of this process.
func TestLook(t *testing.T) {
	before := look()
	kept := make([]byte, 64<<20)
	for i := range kept {
		kept[i] = 1
	}
	runtime.GC()
	after := look()
	runtime.KeepAlive(kept)
	if grown := after.live - before.live; grown < 60<<20 || grown > 80<<20 {
		t.Errorf("64 MiB more live by %d MiB", grown>>20)
	}
	if after.held < after.live || after.taken-before.taken < 64<<20 {
		t.Errorf("%+v", after)
	}
}
