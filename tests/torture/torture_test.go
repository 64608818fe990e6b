package torture

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	forAll   = 150         // kills from which on every point must have been reached
	forEach  = 1500        // kills from which on each daemon must have died at each of its own
	perBatch = 80          // kills between two looks at the whole
	short    = time.Second // for an operator's call, whatever becomes of it
	reach    = time.Second
	reachAll = 30 * time.Second  // for a point that was not reached in all that
	renewal  = 150 * time.Second // until an agent has renewed its own identity
)

// TestTorture runs serve on SQLite, serve on PostgreSQL, and the four daemons. Together they die at every point there is.
func TestTorture(t *testing.T) {
	t.Logf("go test ./tests/torture -run TestTorture -kills %d -seed %d", *kills, *seed)
	b := newBook()
	own := map[string]*book{}
	t.Run("worlds", func(t *testing.T) {
		for i, one := range []struct {
			kind  string
			kills int
		}{{"sqlite", *kills * 2 / 5}, {"postgres", *kills * 2 / 5}, {"daemons", *kills / 5}} {
			t.Run(one.kind, func(t *testing.T) {
				t.Parallel()
				begun := time.Now()
				w := newWorld(t, one.kind, b, rand.New(rand.NewPCG(*seed, uint64(i))))
				w.torture(one.kills)
				b.mu.Lock()
				defer b.mu.Unlock()
				b.all += w.killed
				t.Logf("%d kills in %s", w.killed, time.Since(begun).Round(time.Second))
				for _, v := range w.control {
					if v.tally != w.tally {
						own[v.name] = v.tally.book
					}
				}
			})
		}
	})
	if t.Failed() || *kills < forAll {
		return
	}
	declared := slices.Concat(crash.FirstStart, crash.Plane(), crash.Enrol, crash.Agent)
	wrong, at := b.against(declared)
	for _, service := range services {
		points := pointsOf(service)
		if service == "audit" {
			points = append(points, crash.LogKeyMade)
		}
		missing, more := own[service].against(points)
		if at += more; *kills >= forEach {
			for _, one := range missing {
				wrong = append(wrong, "the "+service+": "+one)
			}
		}
	}
	for _, one := range wrong {
		t.Error(one)
	}
	t.Logf("%d kills, %d of them at %d points", b.all, at, len(declared))
}

// victim is a program that can be killed.
type victim struct {
	name    string
	proc    func() *lab.Process
	launch  func(env ...string) error
	points  []crash.Point
	tally   *tally
	answers func(ctx context.Context) error // of the control plane's alone
}

// victims are the control plane and the agents. The last agent is killed at nothing but the steps of its own identity, which
// come seldom.
func (w *world) victims() (all []*victim, last *victim) {
	all = slices.Clone(w.control)
	for _, h := range w.hosts {
		all = append(all, &victim{name: h.Name, points: w.shuffled(w.reachable(h)), tally: w.tally, proc: func() *lab.Process { return h.Process }, launch: h.Start})
	}
	last = all[len(all)-1]
	last.points = ownIdentity
	if p := crash.Point(*at); p != "" {
		all = slices.DeleteFunc(all, func(v *victim) bool { return !slices.Contains(v.points, p) || v == last })
		for _, v := range all {
			v.points = []crash.Point{p}
		}
		return all, last
	}
	return all[:len(all)-1], last
}

// ownIdentity are the steps that an agent takes twice a minute at most.
var ownIdentity = []crash.Point{crash.RenewKeyMade, crash.RenewGranted, crash.RenewKept, crash.RenewTried, crash.RenewAdopted}

// reachable are the points that a host's agent comes to.
func (w *world) reachable(h *host) []crash.Point {
	return slices.DeleteFunc(slices.Clone(crash.Agent), func(p crash.Point) bool {
		return slices.Contains(ownIdentity, p) || p == crash.FilesBack && h.veto == "" || p == crash.SetInMemory && !h.inMemory || (p == crash.ChallengeUp || p == crash.ChallengeTold) && h.profile != "public"
	})
}

func (w *world) shuffled(points []crash.Point) []crash.Point {
	points = slices.Clone(points)
	w.r.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	return points
}

func (w *world) torture(n int) {
	defer w.show()
	victims, last := w.victims()
	if len(victims) == 0 {
		w.t.Logf("no program of this world comes to %s", *at)
		return
	}
	w.kill(last)
	w.tend(last)
	for next := w.killed + perBatch; w.killed < n || w.atRandom < n*2/3; {
		w.tend(last)
		v := victims[w.r.IntN(len(victims))]
		if w.r.IntN(3) == 0 {
			v = victims[w.r.IntN(min(len(w.control), len(victims)))]
		}
		points, again := v.tally.book.next(v.points)
		n := 1
		if again {
			n += w.r.IntN(3)
		}
		w.round(v, points, n, reach)
		if w.killed >= next {
			w.whole()
			next = w.killed + perBatch
		}
	}
	if least := map[bool]int{true: forAll, false: forEach}[len(w.control) == 1]; *kills >= least {
		w.rest(victims, last)
	}
	w.kill(last)
	w.start(last, 0)
	w.whole()
}

// rest kills at whatever was not reached yet, with patience.
func (w *world) rest(victims []*victim, last *victim) {
	for _, v := range victims {
		for vain := 0; vain < 3; {
			points := v.tally.book.missing(v.points)
			if len(points) == 0 {
				break
			}
			w.t.Logf("%s was not killed yet at %v", v.name, points)
			w.round(v, points, 1, patienceFor(points))
			if len(v.tally.book.missing(points)) == len(points) {
				vain++
			}
		}
	}
	for begun := time.Now(); time.Since(begun) < renewal && len(last.tally.book.missing(last.points)) > 0; time.Sleep(100 * time.Millisecond) {
		w.tend(last)
	}
}

// patienceFor is longer than the lease lasts that a daemon who was killed leaves behind, where a point is one of who has it.
func patienceFor(points []crash.Point) (longest time.Duration) {
	for _, p := range points {
		patience := reachAll
		switch {
		case p == crash.CRLSigned || p == crash.CRLStored:
			patience = 2 * time.Minute
		case p == crash.EventsPassed || p == crash.EventsMarked || strings.HasPrefix(string(p), "issuer-"): // most are steps of an order, which waits for a host and for its CA
			patience = time.Minute
		}
		longest = max(longest, patience)
	}
	return longest
}

// round kills a program at a random moment, starts it with points armed, gives it work, and starts it again when it has died.
func (w *world) round(v *victim, points []crash.Point, n int, patience time.Duration) {
	if len(points) == 0 {
		patience = 0
	}
	w.patient = patience > reach
	ctx, cancel := context.WithTimeout(w.t.Context(), patience+10*time.Second)
	defer cancel()
	w.work(ctx, points)
	time.Sleep(time.Duration(w.r.IntN(60)) * time.Millisecond) // the random moment is what is tested
	w.kill(v)
	w.start(v, n, points...)
	w.tell("%s is to die at %v, time %d", v.name, points, n)
	if v.answers != nil {
		w.up(ctx, v) // or it dies on its way up
	}
	for begun := time.Now(); v.proc().Running() && time.Since(begun) < patience; {
		if w.patient && len(v.tally.book.missing(points)) == 0 { // another world came there
			break
		}
		w.work(ctx, points)
		select {
		case <-v.proc().Done():
		case <-time.After(150 * time.Millisecond):
		}
	}
	w.kill(v)
	w.start(v, 0)
	if slices.Contains(points, crash.SetInMemory) && w.died == crash.SetInMemory {
		w.truthful(v.name)
	}
	up, stop := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer stop()
	if v.answers != nil && !w.up(up, v) {
		w.t.Fatalf("%s does not come up again", v.name)
	}
}

// tend keeps an agent dying at its points one after the other, whenever it comes there.
func (w *world) tend(v *victim) {
	if v.proc().Running() {
		return
	}
	w.count()
	w.start(v, 1, v.tally.book.missing(v.points)...)
}

// kill kills what has not died by itself.
func (w *world) kill(v *victim) {
	before := w.killed
	running := v.proc().Running()
	v.proc().Kill()
	if w.count(); running && w.killed == before {
		w.killed++
		w.atRandom++
		w.tell("killed %s", v.name)
	}
}

func (w *world) start(v *victim, n int, points ...crash.Point) {
	w.t.Helper()
	must(w.t, v.launch(v.tally.env(n, points...)...))
}
