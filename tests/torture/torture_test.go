package torture

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const (
	forAll   = 150         // kills from which on every point must have been reached
	perBatch = 80          // kills between two looks at the whole
	short    = time.Second // for an operator's call, whatever becomes of it
	reach    = time.Second
	reachAll = 8 * time.Second  // for a point that was not reached in all that
	renewal  = 75 * time.Second // until an agent has renewed its own identity
)

// TestTorture runs a world on SQLite and one on PostgreSQL. Together they die at every point there is.
func TestTorture(t *testing.T) {
	t.Logf("go test ./tests/torture -run TestTorture -kills %d -seed %d", *kills, *seed)
	b := &book{tried: map[crash.Point]int{}, killed: map[crash.Point]int{}}
	t.Run("worlds", func(t *testing.T) {
		for i, store := range []string{"sqlite", "postgres"} {
			t.Run(store, func(t *testing.T) {
				t.Parallel()
				begun := time.Now()
				w := newWorld(t, store, b, rand.New(rand.NewPCG(*seed, uint64(i))))
				w.torture((*kills + 1) / 2)
				b.mu.Lock()
				defer b.mu.Unlock()
				b.all += w.killed
				t.Logf("%d kills in %s", w.killed, time.Since(begun).Round(time.Second))
			})
		}
	})
	if t.Failed() || *kills < forAll {
		return
	}
	declared := slices.Concat(crash.FirstStart, crash.Plane(), crash.Enrol, crash.Agent)
	at := 0
	for _, p := range declared {
		at += b.killed[p]
		if b.killed[p] == 0 {
			t.Errorf("nothing was killed at %s: it is stale, or the scenario does not come there", p)
		}
	}
	for p := range b.killed {
		if !slices.Contains(declared, p) {
			t.Errorf("%s is passed and not declared", p)
		}
	}
	t.Logf("%d kills, %d of them at %d points", b.all, at, len(declared))
}

// book is what the worlds have done together.
type book struct {
	mu            sync.Mutex
	all           int
	tried, killed map[crash.Point]int // killed has each point that was passed
}

// least is one of the points at which least was killed, and of these least tried; done says that it was killed at.
func (b *book) least(points []crash.Point) (least crash.Point, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	score := func(p crash.Point) int { return 4*b.killed[p] + b.tried[p] }
	for i, p := range points {
		if i == 0 || score(p) < score(least) {
			least = p
		}
	}
	b.tried[least]++
	return least, b.killed[least] > 0
}

func (b *book) note(p crash.Point, killed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.killed[p] += killed
}

// reached says that something was killed at each of the points.
func (b *book) reached(points ...crash.Point) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !slices.ContainsFunc(points, func(p crash.Point) bool { return b.killed[p] == 0 })
}

// victim is a program that can be killed.
type victim struct {
	name   string
	proc   func() *lab.Process
	launch func(env ...string) error
	plane  bool
	points []crash.Point
}

// victims are the control plane and the agents. The last agent is killed at nothing but the steps of its own identity, which
// come seldom.
func (w *world) victims() (all []*victim, last *victim) {
	all = append(all, &victim{name: "control", plane: true, points: w.shuffled(crash.Plane()), proc: func() *lab.Process { return w.plane.Process }, launch: w.plane.Launch})
	for _, h := range w.hosts {
		all = append(all, &victim{name: h.Name, points: w.shuffled(w.reachable(h)), proc: func() *lab.Process { return h.Process }, launch: h.Start})
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
		return slices.Contains(ownIdentity, p) || p == crash.FilesBack && h.veto == "" || (p == crash.ChallengeUp || p == crash.ChallengeTold) && h.profile != "public"
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
	w.kill(last)
	w.start(last, last.points[0], 1)
	for next := w.killed + perBatch; w.killed < n; {
		w.tend(last)
		v := victims[w.r.IntN(len(victims))]
		if w.r.IntN(3) == 0 {
			v = victims[0]
		}
		p, again := w.book.least(v.points)
		n := 1
		if again {
			n += w.r.IntN(3)
		}
		w.round(v, p, n, reach)
		if w.killed >= next {
			w.whole()
			next = w.killed + perBatch
		}
	}
	if *kills >= forAll {
		w.rest(victims, last)
	}
	w.kill(last)
	w.start(last, "", 0)
	w.whole()
}

// rest kills at whatever was not reached yet, with patience.
func (w *world) rest(victims []*victim, last *victim) {
	for _, v := range victims {
		for _, p := range v.points {
			for try := 0; try < 3 && !w.book.reached(p); try++ {
				w.t.Logf("nothing was killed at %s yet", p)
				w.round(v, p, 1, reachAll)
			}
		}
	}
	for begun := time.Now(); time.Since(begun) < renewal && !w.book.reached(last.points...); time.Sleep(100 * time.Millisecond) {
		w.tend(last)
	}
}

// round kills a program at a random moment, starts it with a point armed, gives it work, and starts it again when it has died.
func (w *world) round(v *victim, p crash.Point, n int, patience time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience+10*time.Second)
	defer cancel()
	w.work(ctx, p)
	time.Sleep(time.Duration(w.r.IntN(60)) * time.Millisecond) // the random moment is what is tested
	w.kill(v)
	w.start(v, p, n)
	w.tell("%s is to die at %s, time %d", v.name, p, n)
	if v.plane {
		w.up(ctx) // or it dies on its way up
	}
	for begun := time.Now(); v.proc().Running() && time.Since(begun) < patience; {
		w.work(ctx, p)
		select {
		case <-v.proc().Done():
		case <-time.After(150 * time.Millisecond):
		}
	}
	w.kill(v)
	w.start(v, "", 0)
	up, stop := context.WithTimeout(w.t.Context(), time.Minute)
	defer stop()
	if v.plane && !w.up(up) {
		w.t.Fatal("the control plane does not come up again")
	}
}

// tend keeps an agent dying at its points one after the other, whenever it comes there.
func (w *world) tend(v *victim) {
	if v.proc().Running() {
		return
	}
	w.count()
	p := crash.Point("")
	for _, next := range v.points {
		if !w.book.reached(next) {
			p = next
			break
		}
	}
	w.start(v, p, 1)
}

// kill kills what has not died by itself.
func (w *world) kill(v *victim) {
	before := w.killed
	running := v.proc().Running()
	v.proc().Kill()
	if w.count(); running && w.killed == before {
		w.killed++
		w.tell("killed %s", v.name)
	}
}

func (w *world) start(v *victim, p crash.Point, n int) {
	w.t.Helper()
	must(w.t, v.launch(w.env(p, n)...))
}
