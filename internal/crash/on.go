//go:build crashpoints

package crash

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Environment names points, "<point>:<n>" with n from 1 and a comma between two: the program dies at the first that it passes for
// the n-th time. With EnvSeen, a file, the first passage of each point adds a line to it.
const (
	Environment = "SALLYPORT_CRASH"
	EnvSeen     = "SALLYPORT_CRASH_SEEN"
)

var armed = struct {
	sync.Mutex
	left map[Point]int // passages that remain
	log  string
	seen map[Point]bool
}{}

var read = sync.OnceFunc(func() {
	armed.left, armed.log, armed.seen = map[Point]int{}, os.Getenv(EnvSeen), map[Point]bool{}
	for one := range strings.SplitSeq(os.Getenv(Environment), ",") {
		name, n, _ := strings.Cut(one, ":")
		left, _ := strconv.Atoi(n)
		armed.left[Point(name)] = max(left, 1)
	}
})

// At is a point.
func At(p Point) {
	read()
	armed.Lock()
	defer armed.Unlock()
	if !armed.seen[p] {
		armed.seen[p] = true
		note("passed", p)
	}
	if armed.left[p] == 0 {
		return
	}
	if armed.left[p]--; armed.left[p] == 0 {
		note("killed", p)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // nothing comes after
	}
}

// In is a point that is passed in several states.
func In(p Point, state string) { At(p + "-" + Point(state)) }

func note(what string, p Point) {
	if armed.log == "" {
		return
	}
	f, err := os.OpenFile(armed.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, what, p)
}
