package ingest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

// parts are log, index and recorder over one directory.
type parts struct {
	ledger   *ledger.Ledger
	db       *db.DB
	store    *store.Store
	recorder *Recorder
}

func openParts(ctx context.Context, t testing.TB, dir string, c db.Config) (*parts, error) {
	log := servicetest.Log(t)
	l, err := ledger.Open(ctx, ledger.Config{Dir: filepath.Join(dir, "log"), Origin: "sallyport.test.example/audit", CheckpointInterval: 100 * time.Millisecond, Log: log})
	if err != nil {
		return nil, err
	}
	d, err := db.Open(ctx, c, store.Migrations(), "audit")
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	p := &parts{ledger: l, db: d, store: store.New(d)}
	if p.recorder, err = NewRecorder(ctx, l, p.store, log); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *parts) close() error { return errors.Join(p.ledger.Close(), p.db.Close()) }

func closeParts(t testing.TB, p *parts) {
	t.Helper()
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
}

func sqliteIn(dir string) db.Config {
	return db.Config{Driver: db.SQLite, DSN: filepath.Join(dir, "index.db")}
}

func facts(from, n int) []auditlog.Record {
	all := make([]auditlog.Record, n)
	for i := range all {
		all[i] = auditlog.Record{
			Version: 1, ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", from+i), Time: time.Unix(1_800_000_000, 0), Service: "issuer",
			Type: "issuer.request.issued", Subject: fmt.Sprintf("requests/%d", from+i), Result: "succeeded",
		}
	}
	return all
}

const (
	killDir     = "SALLYPORT_TEST_KILL_DIR"
	killBatches = 6
	killBatch   = 100 // not a divisor of 256: batches end inside bundles
)

// TestKillChild is the child of TestKilledAtEachStep: it records batches and says when each is done, which is when facts are
// acknowledged.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return // nothing to do: this is no test of its own
	}
	p, err := openParts(context.Background(), t, dir, sqliteIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	for n := range killBatches {
		if err := p.recorder.Record(context.Background(), facts(n*killBatch, killBatch)); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("done %d\n", n)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("closed")
}

// TestKilledAtEachStep kills a recording process at its 1st, 2nd, 3rd ... step that makes something durable, starts it again
// with the same facts, which are delivered again, and looks for exactly one record of each.
func TestKilledAtEachStep(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is not installed: `make tools` brings it")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const calls = "fsync,fdatasync,rename,renameat,renameat2,write,pwrite64"
	killed := 0
	for step := 1; ; step += 12 {
		dir := t.TempDir()
		cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", calls, step),
			self, "-test.run=^TestKillChild$")
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		done, closed := runChild(t, cmd)
		if closed {
			break // there is no such step
		}
		killed++
		recoverAndCheck(t, dir, done, fmt.Sprintf("killed at step %d", step))
	}
	if killed < 8 {
		t.Errorf("only %d kills: the steps are not the ones expected", killed)
	}
	t.Logf("killed at %d steps", killed)
}

// runChild gives how many batches the child said were done, and whether it came to its end.
func runChild(t *testing.T, cmd *exec.Cmd) (done int, closed bool) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for lines := bufio.NewScanner(io.TeeReader(out, &text)); lines.Scan(); {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "done "):
			done++
		case line == "closed":
			closed = true
		case strings.Contains(line, "FAIL"):
			t.Fatalf("child: %s", text.String())
		}
	}
	_ = cmd.Wait()
	return done, closed
}

// recoverAndCheck opens what a killed process left, delivers everything again and checks the log.
func recoverAndCheck(t *testing.T, dir string, done int, when string) {
	t.Helper()
	p, err := openParts(t.Context(), t, dir, sqliteIn(dir))
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if size := p.ledger.Size(); size < uint64(done*killBatch) {
		t.Errorf("%s: %d batches were acknowledged, the log has %d records", when, done, size)
	}
	for n := range killBatches {
		if err := p.recorder.Record(t.Context(), facts(n*killBatch, killBatch)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	checkLog(t, p, killBatches*killBatch, when)
	closeParts(t, p)
}

// checkLog looks for exactly want records, each of its own event, in log and index.
func checkLog(t *testing.T, p *parts, want uint64, when string) {
	t.Helper()
	if size := p.ledger.Size(); size != want {
		t.Errorf("%s: the log has %d records, want %d", when, size, want)
	}
	if _, err := p.ledger.AwaitCheckpoint(t.Context(), p.ledger.Size()); err != nil {
		t.Fatal(err)
	}
	if _, err := auditlog.VerifyDir(t.Context(), p.ledger.Dir(), auditlog.Options{Key: p.ledger.Verifier()}); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	if tip, err := p.store.Adopt(t.Context(), p.ledger.Verifier()); err != nil || tip.Next != want {
		t.Errorf("%s: the index has %d records, want %d: %v", when, tip.Next, want, err)
	}
}
