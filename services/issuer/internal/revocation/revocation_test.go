package revocation

import (
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestDue(t *testing.T) {
	at := func(age time.Duration, change ...func(*Standing)) Standing {
		s := Standing{Number: 7, ThisUpdate: noon.Add(-age)}
		for _, c := range change {
			c(&s)
		}
		return s
	}
	root := func(s *Standing) { s.Root = true }
	for _, c := range []struct {
		what string
		s    Standing
		want bool
	}{
		{"none was made", Standing{}, true},
		{"fresh", at(time.Minute), false},
		{"a moment before its time", at(day - time.Second), false},
		{"its time has come", at(day), true},
		{"something was revoked", at(time.Minute, func(s *Standing) { s.Unlisted = true }), true},
		{"made when the clock was wrong", at(-time.Hour), true},
		{"a root's of yesterday", at(2*day, root), false},
		{"a root's of half a year ago", at(180*day, root), true},
	} {
		if got := c.s.Due(noon); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// BR section 4.9.7, and nobody is without a good list when one could not be made for days.
func TestTerms(t *testing.T) {
	if term := TermOf(false); term.Remade > 7*day || term.Valid > 10*day || term.Valid < 3*term.Remade {
		t.Errorf("issuing CA: %+v", term)
	}
	if term := TermOf(true); term.Valid > 365*day || term.Valid < 2*term.Remade {
		t.Errorf("root: %+v", term)
	}
}

func TestNext(t *testing.T) {
	first, this, next := Standing{}.Next(noon, 0)
	if this.After(noon) || this.Before(noon.Add(-2*time.Minute)) || next.Sub(this) != 7*day {
		t.Errorf("from %s to %s", this, next)
	}
	if later, _, _ := (Standing{Number: 3}).Next(noon.Add(time.Second), 0); later-first < 1000 {
		t.Errorf("after a second %d, then %d: what was made since a backup may have been greater", first, later)
	}
	for _, c := range []struct {
		what  string
		old   int64
		now   time.Time
		above int64
	}{
		{"a moment later", first, noon.Add(time.Second), 0},
		{"at the same moment", first, noon, 0},
		{"the clock was put back", first, noon.AddDate(-1, 0, 0), 0},
		{"restored from a backup of long ago", 3, noon.Add(time.Second), 0},
		{"restored, and the clock was put back", 3, noon.AddDate(-1, 0, 0), first},
		{"the bound is of long ago", first, noon, 3},
	} {
		if n, _, _ := (Standing{Number: c.old}).Next(c.now, c.above); n <= first {
			t.Errorf("%s: %d after %d", c.what, n, first)
		}
	}
}

func TestLast(t *testing.T) {
	r := Revocation{NotAfter: noon}
	if r.Last(noon) || !r.Last(noon.Add(time.Second)) {
		t.Error("a certificate is listed until a list that begins after its end")
	}
}

func TestReasons(t *testing.T) {
	known := 0
	for r := Reason(-1); r < 20; r++ {
		if r.Known() != (r.String() != "") {
			t.Errorf("%d: %q", int(r), r)
		}
		if r.Known() {
			known++
		}
	}
	if known != 6 || Reason(6).Known() || Reason(8).Known() {
		t.Errorf("%d reasons; certificateHold and removeFromCRL are none", known)
	}
}
