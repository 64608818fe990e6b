package torture

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sallyport-pki/sallyport/internal/crash"
)

// book is at which points programs were killed.
type book struct {
	mu            sync.Mutex
	all           int
	tried, killed map[crash.Point]int // killed has each point that was passed
}

func newBook() *book { return &book{tried: map[crash.Point]int{}, killed: map[crash.Point]int{}} }

// next are the points at which to kill now: all at which nothing was killed yet, whichever comes first; else, with again, the one
// at which least was killed, and of these least tried.
func (b *book) next(points []crash.Point) (next []crash.Point, again bool) {
	if next = b.missing(points); len(next) > 0 || len(points) == 0 {
		return next, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	score := func(p crash.Point) int { return 4*b.killed[p] + b.tried[p] }
	least := slices.MinFunc(points, func(p, q crash.Point) int { return score(p) - score(q) })
	b.tried[least]++
	return []crash.Point{least}, true
}

func (b *book) note(p crash.Point, killed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.killed[p] += killed
}

// missing are those of the points at which nothing was killed.
func (b *book) missing(points []crash.Point) []crash.Point {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(points), func(p crash.Point) bool { return b.killed[p] > 0 })
}

// against says what is wrong with the book, if all these points are declared and no others; at is how often it killed there.
func (b *book) against(declared []crash.Point) (wrong []string, at int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range declared {
		at += b.killed[p]
		if b.killed[p] == 0 {
			wrong = append(wrong, fmt.Sprintf("nothing was killed at %s: it is stale, or the scenario does not come there", p))
		}
	}
	for p := range b.killed {
		if !slices.Contains(declared, p) {
			wrong = append(wrong, fmt.Sprintf("%s is passed and not declared", p))
		}
	}
	return wrong, at
}

// tally puts what programs note into a book.
type tally struct {
	book *book
	file string // that the programs write to
	read int    // lines that were counted
}

// env arms points: the program dies at the n-th passage of one of them.
func (y *tally) env(n int, points ...crash.Point) []string {
	armed := make([]string, len(points))
	for i, p := range points {
		armed[i] = fmt.Sprintf("%s:%d", p, n)
	}
	return []string{"SALLYPORT_CRASH=" + strings.Join(armed, ","), "SALLYPORT_CRASH_SEEN=" + y.file}
}

// count gives the points of the kills since it was asked last.
func (y *tally) count() (killed []crash.Point) {
	f, err := os.Open(y.file)
	if err != nil {
		return nil // none has yet
	}
	defer f.Close()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		if lines < y.read {
			continue
		}
		what, p, _ := strings.Cut(s.Text(), " ")
		if what != "killed" {
			y.book.note(crash.Point(p), 0)
			continue
		}
		y.book.note(crash.Point(p), 1)
		killed = append(killed, crash.Point(p))
	}
	y.read = lines
	return killed
}
