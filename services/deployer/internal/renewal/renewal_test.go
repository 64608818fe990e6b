package renewal

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const day = 24 * time.Hour

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func input(life time.Duration) Input {
	return Input{Assignment: "a-1", Fingerprint: "f1", NotBefore: noon, NotAfter: noon.Add(life)}
}

func TestDecide(t *testing.T) {
	window := func(from, to time.Duration) Window { return Window{Start: noon.Add(from), End: noon.Add(to)} }
	for _, c := range []struct {
		what     string
		in       Input
		change   func(*Input)
		now      time.Duration
		from, to time.Duration // after noon
		reason   string
	}{
		{"ninety days", input(90 * day), nil, 0, 60 * day, 63 * day, "one third of life left"},
		{"ten days", input(10 * day), nil, 0, 160 * time.Hour, 168 * time.Hour, "one third of life left"},
		{"six days", input(6 * day), nil, 0, 3 * day, 3*day + 8*time.Hour, "one half of life left"},
		{"an hour", input(time.Hour), nil, 0, 30 * time.Minute, 33 * time.Minute, "one half of life left"},
		{"override", input(90 * day), func(i *Input) { i.Rule.Before = 10 * day }, 0, 80 * day, 80*day + 12*time.Hour, "override"},
		{"override beats the CA", input(90 * day), func(i *Input) { i.Rule.Before = 10 * day; i.Window = window(day, 2*day) }, 0, 80 * day, 81 * day, "override"},
		{"an override longer than the life leaves a quarter of it", input(40 * day), func(i *Input) { i.Rule.Before = 90 * day }, 0, 10 * day, 12 * day, "override"},
		{"the CA's window", input(90 * day), func(i *Input) { i.Window = window(50*day, 52*day) }, 0, 50 * day, 52 * day, "ari"},
		{"inside the window", input(90 * day), func(i *Input) { i.Window = window(50*day, 52*day) }, 51 * day, 50 * day, 52 * day, "ari"},
		{"revoked", input(90 * day), func(i *Input) { i.Revoked = noon.Add(day) }, 2 * day, day, day, "revoked"},
		{"revoked beats an override", input(90 * day), func(i *Input) { i.Revoked, i.Rule.Before = noon.Add(day), 10*day }, 2 * day, day, day, "revoked"},
		{"revoked at its very end", input(90 * day), func(i *Input) { i.Revoked = noon.Add(90*day - time.Second) }, 90 * day, 88 * day, 89 * day, "revoked"},
		{"a window that is past", input(90 * day), func(i *Input) { i.Window = window(-2*day, -day) }, time.Hour, time.Hour, time.Hour, "ari: window is past"},
		{"a window upside down is none", input(90 * day), func(i *Input) { i.Window = window(2*day, day) }, 0, 60 * day, 63 * day, "one third of life left"},
		{"a window after the end is none", input(90 * day), func(i *Input) { i.Window = window(91*day, 92*day) }, 0, 60 * day, 63 * day, "one third of life left"},
		{"a window over the end is cut", input(90 * day), func(i *Input) { i.Window = window(90*day-time.Minute, 200*day) }, 0, 88 * day, 89 * day, "ari"},
	} {
		if c.change != nil {
			c.change(&c.in)
		}
		got := Decide(c.in, noon.Add(c.now))
		if got.Reason != c.reason || got.At.Before(noon.Add(c.from)) || got.At.After(noon.Add(c.to)) {
			t.Errorf("%s: got %s after noon (%s), want %s to %s (%s)", c.what, got.At.Sub(noon), got.Reason, c.from, c.to, c.reason)
		}
		if got.By.Before(got.At) || got.By.After(c.in.NotAfter) {
			t.Errorf("%s: must have begun by %s, begins %s, ends %s", c.what, got.By, got.At, c.in.NotAfter)
		}
		if again := Decide(c.in, noon.Add(c.now)); again != got {
			t.Errorf("%s: decided twice, differently: %+v %+v", c.what, got, again)
		}
	}
	if got := Decide(Input{NotBefore: noon, NotAfter: noon.Add(day), Rule: Rule{Disabled: true}, Revoked: noon}, noon); !got.At.IsZero() || !got.By.IsZero() || got.Due(noon.Add(1000*day)) {
		t.Errorf("disabled: %+v", got)
	}
	if got := Decide(Input{NotBefore: noon, NotAfter: noon}, noon); !got.Due(noon) {
		t.Errorf("no life at all: %+v", got)
	}
}

// TestNeverBeyondTheEnd tries rules and windows of all sizes against lives of all sizes.
func TestNeverBeyondTheEnd(t *testing.T) {
	for _, life := range []time.Duration{time.Second, time.Minute, time.Hour, day, 9 * day, 10 * day, 47 * day, 398 * day, 3650 * day} {
		for _, before := range []time.Duration{0, 1, time.Second, life / 2, life, 10 * life} {
			for _, w := range []Window{{}, {noon, noon.Add(life)}, {noon.Add(life / 2), noon.Add(2 * life)}, {noon.Add(-life), noon.Add(-1)}, {noon.Add(life - 1), noon.Add(life + 1)}} {
				for _, now := range []time.Duration{-life, 0, life / 3, life - 1, life, 2 * life} {
					in := input(life)
					in.Rule.Before, in.Window = before, w
					d := Decide(in, noon.Add(now))
					if now < life && d.At.After(in.NotAfter) || d.At.Before(noon.Add(-life)) {
						t.Fatalf("life %s, before %s, window %v, now %s: begins %s", life, before, w, now, d.At.Sub(noon))
					}
				}
			}
		}
	}
}

func TestSpread(t *testing.T) {
	for _, kind := range []string{"rule", "ari"} {
		buckets := make([]int, 10)
		in := input(90 * day)
		from, width := 60*day, 3*day
		if kind == "ari" {
			in.Window = Window{Start: noon.Add(10 * day), End: noon.Add(12 * day)}
			from, width = 10*day, 2*day
		}
		for i := range 2000 {
			in.Assignment, in.Fingerprint = fmt.Sprintf("0192f0c1-7a3b-7def-8000-%012d", i), fmt.Sprintf("%064x", i)
			at := Decide(in, noon).At.Sub(noon) - from
			buckets[min(int(10*at/width), 9)]++
		}
		for i, n := range buckets {
			if n < 120 || n > 280 {
				t.Errorf("%s: %d of 2000 in tenth %d: not spread", kind, n, i)
			}
		}
	}
}

// TestAgainAndAgain is a CA that says "now" for every certificate it issues: the pauses must grow.
func TestAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last time.Time
		n := 0
		var gaps []time.Duration
		for i := range 8 {
			in := Input{Assignment: "a", Fingerprint: fmt.Sprint(i), NotBefore: time.Now(), NotAfter: time.Now().Add(90 * day),
				Window: Window{Start: time.Now().Add(-2 * time.Hour), End: time.Now().Add(-time.Hour)}, RenewedAt: last, Quick: n}
			issued := time.Now()
			time.Sleep(time.Second)
			d := Decide(in, time.Now())
			if wait := time.Until(d.At); wait > 0 {
				if !strings.Contains(d.Reason, "held back") {
					t.Errorf("held back without saying so: %+v", d)
				}
				time.Sleep(wait)
			}
			gaps = append(gaps, time.Since(issued))
			n, last = Quick(n, last, time.Now()), time.Now()
		}
		if gaps[0] > time.Minute || gaps[1] > time.Minute {
			t.Errorf("the first renewals waited: %v", gaps)
		}
		if gaps[5] < 30*time.Minute || gaps[7] < 20*time.Hour {
			t.Errorf("renewal goes on without pauses: %v", gaps)
		}
		time.Sleep(48 * time.Hour)
		if got := Quick(n, last, time.Now()); got != 0 {
			t.Errorf("after two quiet days it still counts %d hurried renewals", got)
		}
	})
}

// TestClockJumps moves the clock about: what is due stays a matter of the certificate's own times.
func TestClockJumps(t *testing.T) {
	in := input(90 * day)
	d := Decide(in, noon)
	for _, now := range []time.Time{noon.Add(-1000 * day), noon, noon.Add(59 * day), noon.Add(1000 * day)} {
		if got := Decide(in, now); got != d {
			t.Errorf("the clock says %s: decided %+v, before %+v", now, got, d)
		}
	}
	if d.Due(noon.Add(59*day)) || !d.Due(noon.Add(64*day)) || !d.Due(noon.Add(1000*day)) {
		t.Errorf("due: %+v", d)
	}
	// A renewal that the clock now places in the future holds nothing back.
	in.Window, in.RenewedAt, in.Quick = Window{Start: noon.Add(-2 * day), End: noon.Add(-day)}, noon.Add(300*day), 5
	if got := Decide(in, noon); !got.Due(noon) {
		t.Errorf("held back by a renewal of the future: %+v", got)
	}
	if got := Quick(5, noon.Add(day), noon); got != 0 {
		t.Errorf("counted on from a renewal of the future: %d", got)
	}
}
