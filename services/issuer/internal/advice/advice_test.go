package advice

import (
	"errors"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority/acme"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

func TestSettle(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	rules := Rules{Every: 6 * time.Hour, Least: time.Minute, Most: 12 * time.Hour, Retry: time.Minute, Pass: time.Minute}
	if err := rules.Check(); err != nil {
		t.Fatal(err)
	}
	known := store.Window{Start: now.Add(24 * time.Hour), End: now.Add(48 * time.Hour), Explanation: "https://ca.example/why"}
	soon := acme.Window{Start: now.Add(-time.Hour), End: now.Add(-time.Minute)}
	wait := func(d time.Duration) acme.Window { w := soon; w.After = d; return w }
	away := fault.New(fault.Transient, "CA_UNAVAILABLE", "busy")
	for _, c := range []struct {
		name  string
		fails int
		life  time.Duration
		got   acme.Window
		err   error
		fresh bool // the new window is taken
		from  time.Duration
		to    time.Duration // the next question lies between; 0: never
		then  int
	}{
		{name: "an answer", got: soon, fresh: true, from: 6 * time.Hour, to: 6*time.Hour + 36*time.Minute},
		{name: "the CA says an hour", got: wait(time.Hour), fresh: true, from: time.Hour, to: 66 * time.Minute},
		{name: "the CA says a second", got: wait(time.Second), fresh: true, from: time.Minute, to: 66 * time.Second},
		{name: "the CA says a year", got: wait(8760 * time.Hour), fresh: true, from: 12 * time.Hour, to: 12 * time.Hour},
		{name: "first outage", err: away, from: time.Minute, to: 66 * time.Second, then: 1},
		{name: "fourth outage", fails: 3, err: away, from: 8 * time.Minute, to: 9 * time.Minute, then: 4},
		{name: "hundredth outage", fails: 99, err: away, from: 6 * time.Hour, to: 6*time.Hour + 36*time.Minute, then: 100},
		{name: "outage with a wish", err: away.After(time.Hour), from: time.Hour, to: 66 * time.Minute, then: 1},
		{name: "nonsense", err: fault.New(fault.Transient, "CA_ANSWER_INVALID", "a window that ends before it begins"), from: time.Minute, to: 66 * time.Second, then: 1},
		{name: "our own mistake", err: errors.New("disk"), from: time.Minute, to: 66 * time.Second, then: 1},
		{name: "no such thing at this CA", err: fault.New(fault.NotFound, acme.ReasonNoRenewalInfo, "none"), from: 12 * time.Hour, to: 12 * time.Hour, then: 1},
		{name: "authority deleted", err: fault.New(fault.Permanent, store.ReasonAuthorityNotFound, "gone"), then: 1},
		{name: "ends before the next question", life: time.Hour, got: soon, fresh: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.life == 0 {
				c.life = 2000 * time.Hour
			}
			claim := &store.WindowClaim{Window: known, NotAfter: now.Add(c.life), Fails: c.fails}
			for range 50 { // there is chance in it
				w, next, fails := settle(claim, c.got, c.err, rules, now)
				if c.fresh && (!w.Start.Equal(soon.Start) || !w.End.Equal(soon.End)) || !c.fresh && w != known {
					t.Fatalf("window %+v", w)
				}
				if c.to == 0 && !next.IsZero() || c.to > 0 && (next.Before(now.Add(c.from)) || next.After(now.Add(c.to))) {
					t.Fatalf("next question on %s, want %s to %s from %s", next, c.from, c.to, now)
				}
				if fails != c.then {
					t.Fatalf("%d failures, want %d", fails, c.then)
				}
			}
		})
	}
	for name, bad := range map[string]Rules{
		"least": {Every: 1, Most: 1, Retry: 1, Pass: 1}, "most": {Every: 2, Least: 2, Most: 1, Retry: 1, Pass: 1},
		"every": {Every: 5, Least: 1, Most: 2, Retry: 1, Pass: 1}, "retry": {Every: 1, Least: 1, Most: 2, Retry: 2, Pass: 1}, "pass": {Every: 1, Least: 1, Most: 1, Retry: 1},
	} {
		if bad.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
