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

// Environment names the point: "<point>:<n>", n from 1. With EnvSeen, a file, the first passage of each point adds a line to it.
const (
	Environment = "SALLYPORT_CRASH"
	EnvSeen     = "SALLYPORT_CRASH_SEEN"
)

var armed = struct {
	sync.Mutex
	point Point
	left  int
	log   string
	seen  map[Point]bool
}{}

var read = sync.OnceFunc(func() {
	name, n, _ := strings.Cut(os.Getenv(Environment), ":")
	armed.point, armed.log, armed.seen = Point(name), os.Getenv(EnvSeen), map[Point]bool{}
	if armed.left, _ = strconv.Atoi(n); armed.left < 1 {
		armed.left = 1
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
	if p != armed.point {
		return
	}
	if armed.left--; armed.left == 0 {
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
