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

// least is one of the points at which least was killed, and of these least tried; done says that it was killed at.
func (b *book) least(points []crash.Point) (least crash.Point, done bool) {
	if len(points) == 0 {
		return "", false
	}
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

// env arms a point: the program dies at its n-th passage.
func (y *tally) env(p crash.Point, n int) []string {
	return []string{fmt.Sprintf("SALLYPORT_CRASH=%s:%d", p, n), "SALLYPORT_CRASH_SEEN=" + y.file}
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
