package enroll

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A host that was suspended wakes with its timers where they were, and its clock far ahead: what is due by then is done soon.
func TestSleepOfTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var suspended atomic.Int64
		k := &Keeper{KeeperConfig: KeeperConfig{Now: func() time.Time { return time.Now().Add(time.Duration(suspended.Load())) }}}
		time.AfterFunc(time.Minute, func() { suspended.Store(int64(21 * 24 * time.Hour)) })
		start := time.Now()
		if !k.sleep(t.Context(), k.Now().Add(12*time.Hour), k.Now()) {
			t.Fatal("ended")
		}
		if took := time.Since(start); took < time.Minute || took > time.Minute+glance {
			t.Errorf("after %s by the host's timers", took)
		}
	})
}

// Without that it sleeps as long as it is to.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &Keeper{KeeperConfig: KeeperConfig{Now: time.Now}}
		start := time.Now()
		if due := start.Add(12*time.Hour + 3*time.Second); !k.sleep(t.Context(), due, due) || !time.Now().Equal(due) {
			t.Errorf("after %s", time.Since(start))
		}
	})
}
