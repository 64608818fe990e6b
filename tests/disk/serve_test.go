package disk

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// failure is a disk on which some system calls fail, for one file of the data directory. Calls are counted for each thread.
type failure struct {
	path, calls, do string
	// code is what serve ends with, 0 when it goes on, atStart when it does not get to its work.
	code int
	// says is in the line that it ends with, or, when it goes on, in its log. Empty when it need not say anything: what failed is
	// done again as a whole, and nobody was told that it was done.
	says string
}

// stream is where the embedded broker keeps events.
const stream = "nats/jetstream/$G/streams/SALLYPORT/msgs/1.blk"

// atStart is the code of a service that is not available.
const atStart = 5

var failures = []failure{
	{"deployer.db-wal", "fsync", "error=EIO:when=9", 1, "deployer.db does not sync"},
	{"deployer.db-wal", "fsync", "error=EIO:when=9+", 1, "deployer.db does not sync"},
	{"deployer.db-wal", "pwrite64", "error=EIO:when=30+", 0, "deployer.db does not work"},
	{"deployer.db-wal", "pwrite64", "error=ENOSPC:when=30..60", 0, "disk full"},
	{"deployer.db", "fsync", "error=EIO:when=1+", 0, ""},
	{"deployer.db", "fsync", "error=EIO", atStart, "deployer.db does not sync"},
	{"issuer.db-wal", "fsync", "error=EIO:when=9+", 1, "issuer.db does not sync"},
	{"inventory.db-wal", "fsync", "error=EIO:when=9+", 1, "inventory.db does not sync"},
	{"audit.db-wal", "fsync", "error=EIO:when=9+", 1, "audit.db does not sync"},
	{stream, "fsync", "error=EIO:when=9", 1, "the event store does not work"},
	{stream, "write,pwrite64", "error=ENOSPC:when=9+", 13, "the event store does not work"},
	{"audit/log/.state", "fsync", "error=EIO:when=5", 1, "appending to the log in"},
	{"audit/log/.state/treeState", "renameat", "error=EIO:when=5", 1, "appending to the log in"},
	{"audit/log", "fsync", "error=EIO:when=2+", 0, "a checkpoint cannot be written"},
	{"clock", "renameat", "error=EIO:when=1", 1, "input/output error"},
}

// TestServeFailures lets system calls of serve fail while all works. It stops, or goes on, and says what is wrong; and when the
// disk works again nothing is lost that was acknowledged.
func TestServeFailures(t *testing.T) {
	t.Parallel() // system calls under strace are mostly waited for; each test has a disk of its own
	s := newSite(t)
	w := newWitness(t, s)
	for i, f := range failures {
		t.Run(strings.Join([]string{filepath.Base(f.path), f.calls, f.do}, " "), func(t *testing.T) {
			if f.code == atStart { // what a kill leaves in the log of changes is moved by the next start
				ok(s.plane.Token(t.Context(), "killed"))(t)
				s.plane.KillAll()
			} else {
				must(t, s.plane.Stop())
			}
			said := s.fails(t, w, f, 100+i)
			lines := strings.Split(strings.TrimSpace(said), "\n")
			last := strings.Join(lines[max(0, len(lines)-5):], "\n") // the broker may have a last word
			switch code := s.plane.ExitCode(); {
			case strings.Contains(said, "\ngoroutine "):
				t.Errorf("it panicked:\n%s", said[max(0, len(said)-4000):])
			case f.code != 0 && (code != f.code || !strings.Contains(last, f.says)):
				t.Errorf("it ended with code %d, saying %q", code, last)
			case f.code == 0 && (!s.plane.Running() || !strings.Contains(said, f.says)):
				t.Errorf("running: %v, code %d, and did not say %q", s.plane.Running(), code, f.says)
			}
			s.plane.KillAll()
			s.plane.Through = nil
			must(t, s.plane.Start(t.Context()))
			w.keeps(t.Context(), t, s)
			w.tells(t)
		})
	}
	t.Logf("all is there: %s", w.count())
	s.settles(t.Context(), t, w)
	s.stop(t)
}

// fails starts serve with the failure and works until it ends, or for some seconds and until it has met the failure and said what it
// should. It gives what serve has said.
func (s *site) fails(t *testing.T, w *witness, f failure, round int) string {
	t.Helper()
	failed := filepath.Join(s.Logs, "failed")
	must(t, os.WriteFile(failed, nil, 0o600))
	s.plane.Through = ok(lab.Fault{Calls: f.calls, Do: f.do, Path: filepath.Join(s.plane.Data, f.path), Log: failed}.Prefix())(t)
	before := len(s.plane.Output())
	if err := s.plane.Start(t.Context()); err != nil && s.plane.Running() {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	working := w.work(ctx, t, s, round)
	goesOn := time.Now().Add(3 * time.Second)
	for s.plane.Running() && ctx.Err() == nil {
		pause(ctx, 20*time.Millisecond)
		if f.code == 0 && time.Now().After(goesOn) && met(t, failed) && strings.Contains(s.plane.Output()[before:], f.says) {
			break
		}
	}
	if !met(t, failed) {
		t.Error("it has not met the failure")
	}
	cancel()
	working.Wait()
	return s.plane.Output()[before:]
}

// met says whether a system call has failed on purpose.
func met(t *testing.T, failed string) bool {
	t.Helper()
	return strings.Contains(string(ok(os.ReadFile(failed))(t)), "INJECTED")
}
