package disk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// firstCalls are the system calls of a first start between which the power is cut.
const firstCalls = "fsync,fdatasync,renameat,linkat,mkdirat,unlinkat"

// TestFirstStart cuts the power while serve makes what an installation begins with: root, keys, databases, streams, log. The
// next start goes on or begins anew; there is never half a CA.
func TestFirstStart(t *testing.T) {
	t.Parallel()
	s := newVolume(t)
	r := rand.New(rand.NewPCG(*seed, 2))
	t.Logf("seed %d", *seed)
	for round := range *firstRounds {
		// A file appears by renameat, so the first few of these are walked through. Calls are counted for each thread.
		calls, at := "renameat", 1+round
		if round >= 6 {
			calls, at = firstCalls, 1+r.IntN(40)
		}
		t.Logf("round %d: at call %d of %s", round, at, calls)
		id := fmt.Sprintf("first-%d", round)
		prefix := ok(lab.Fault{Calls: calls, Do: fmt.Sprintf("signal=KILL:when=%d", at)}.Prefix())(t)
		data := filepath.Join(s.Dir, id)
		address := fmt.Sprintf("127.0.0.1:%d", ok(lab.FreePort())(t))
		first := ok(s.Start(lab.Command{Name: id, Path: filepath.Join(s.Bin, "sallyport"), Args: []string{"serve", "--data", data, "--listen", address}, Prefix: prefix}))(t)
		for first.Running() && !strings.Contains(first.Output(), "is ready") {
			time.Sleep(5 * time.Millisecond)
		}
		if r.IntN(2) == 0 {
			must(t, s.volume.Scatter(r))
		}
		must(t, s.volume.Cut())
		first.KillAll()
		must(t, s.volume.Unmount())
		must(t, s.volume.Mount())

		plane, err := s.Serve(t.Context(), id, lab.ServeOptions{Address: address})
		if err != nil {
			t.Fatalf("after a cut at call %d of %s: %v", at, calls, err)
		}
		s.plane = plane
		whole(t, s)
		must(t, plane.Stop())
		must(t, os.RemoveAll(data))
		must(t, s.volume.Sync())
	}
}

// whole wants an installation that works: it lets a host in and issues.
func whole(t *testing.T, s *site) {
	t.Helper()
	token := ok(s.plane.Do(t.Context(), "token", "create", "--host", "h", "--quiet"))(t)
	if !strings.HasPrefix(token, "spj") && len(strings.TrimSpace(token)) < 20 {
		t.Errorf("no token: %q", token)
	}
	ok(s.plane.Apply(t.Context(), "kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n"))(t)
	s.await(t.Context(), t, "the authority to be recorded", func() error {
		out, err := s.plane.Do(t.Context(), "audit", "list", "--type", "issuer.authority.")
		if err == nil && !strings.Contains(out, "issuer.authority") {
			err = fmt.Errorf("there is %q", out)
		}
		return err
	})
	key := strings.TrimSpace(ok(s.plane.Do(t.Context(), "audit", "key"))(t))
	ok(s.plane.Do(t.Context(), "audit", "verify", "--key", key, filepath.Join(s.plane.Data, "audit")))(t)
}
