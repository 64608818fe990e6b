package heap

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 1600, 1 << 20: 1600, 16 << 20: 400, 64 << 20: 100, 1 << 30: 100} {
		if got := percent(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d", live, got, want)
		}
	}
}

// garbage collects what there is and says how much may come after.
func garbage() int64 {
	runtime.GC()
	all := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(all)
	return int64(all[0].Value.Uint64()) - int64(all[1].Value.Uint64())
}

func becomes(t *testing.T, what string, ok func(int64) bool) {
	t.Helper()
	var g int64
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if g = garbage(); ok(g) {
			return
		}
	}
	t.Fatalf("%s: %d MiB of garbage are let lie", what, g>>20)
}

func TestRelax(t *testing.T) {
	Relax()
	Relax()
	becomes(t, "little lives", func(g int64) bool { return g >= Spare*9/10 })
	much := make([][]byte, 256)
	for i := range much {
		much[i] = make([]byte, 1<<20)
	}
	becomes(t, "256 MiB live", func(g int64) bool { return g > Spare*3 && g < Spare*6 })
	runtime.KeepAlive(much)
	becomes(t, "little lives again", func(g int64) bool { return g >= Spare*9/10 && g < Spare*2 })
}

// Who has said GOGC is left alone.
func TestSetAlready(t *testing.T) {
	was := debug.SetGCPercent(50)
	defer debug.SetGCPercent(was)
	relax()
	if now := debug.SetGCPercent(50); now != 50 {
		t.Errorf("50 %% became %d", now)
	}
}
