package ingest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
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
		return nil, errors.Join(err, l.Close(), d.Close())
	}
	return p, nil
}

func (p *parts) close() error {
	return errors.Join(p.recorder.Close(), p.ledger.Close(), p.db.Close())
}

func closeParts(t testing.TB, p *parts) {
	t.Helper()
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
}

func sqliteIn(dir string) db.Config {
	return db.Config{Driver: db.SQLite, DSN: filepath.Join(dir, "index.db")}
}

func facts(from, n int) []record.Encoded {
	all := make([]record.Encoded, n)
	for i := range all {
		head := auditlog.Record{
			Version: 1, ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", from+i), Time: time.Unix(1_800_000_000, 0).UTC(), Service: "issuer",
			Type: "issuer.request.issued", Subject: fmt.Sprintf("requests/%d", from+i), Result: "succeeded",
		}
		data, err := head.Append(nil, nil, nil)
		if err != nil {
			panic(err) // it is the same every time
		}
		all[i] = record.Encoded{ID: uuid.MustParse(head.ID), Head: head, Data: data}
	}
	return all
}

const (
	killDir     = "SALLYPORT_TEST_KILL_DIR"
	killBatches = 6
	killBatch   = 150 // not a divisor of 256: batches end inside bundles
)

// TestKillChild is the child of the tests below: it records batches, each as often as it takes, and says when each is done,
// which is when facts are acknowledged.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return // nothing to do: this is no test of its own
	}
	p, err := openParts(context.Background(), t, dir, sqliteIn(dir))
	if err != nil {
		fmt.Println("not opened:", err)
		return
	}
	for n := range killBatches {
		for tries := 0; ; tries++ {
			err := p.recorder.Record(context.Background(), facts(n*killBatch, killBatch))
			if err == nil {
				break
			}
			fmt.Println("failed:", err)
			// A disk that has failed to sync is not to be gone on with: the service ends.
			look, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
			distrusted := p.db.Watch(look) != nil
			cancel()
			if distrusted || untrusted(err) {
				fmt.Println("ended")
				return
			}
			if tries == 10 {
				t.Fatal("does not recover")
			}
		}
		fmt.Printf("done %d\n", n)
	}
	if err := p.close(); err != nil {
		fmt.Println("not closed:", err)
		return
	}
	fmt.Println("closed")
}

// child runs TestKillChild under strace, which injects a fault into the step-th of these system calls of a thread.
func child(t *testing.T, dir, calls, fault string, step int) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+calls, "-e", fmt.Sprintf("inject=%s:%s:when=%d", calls, fault, step),
		self, "-test.run=^TestKillChild$")
	cmd.Env = append(os.Environ(), killDir+"="+dir)
	if cmd.Err != nil {
		t.Fatalf("%v: `make tools` brings it", cmd.Err)
	}
	return cmd
}

// TestKilledAtEachStep kills a recording process at one after the other of its steps that make something durable, starts it
// again with the same facts, which are delivered again, and looks for exactly one record of each.
func TestKilledAtEachStep(t *testing.T) {
	killed := 0
	for step := 1; ; step += 8 {
		dir := t.TempDir()
		done, out := runChild(t, child(t, dir, "fsync,fdatasync,rename,renameat,renameat2,write,pwrite64", "signal=KILL", step))
		if strings.HasSuffix(out, "closed\nPASS\n") {
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

// TestFailsAtEachStep lets those steps fail instead. A failed fsync after a rename has happened all the same: the record is in
// the log though appending it failed.
func TestFailsAtEachStep(t *testing.T) {
	var failed atomic.Int32
	fails := func(t *testing.T, step int, errno string) {
		t.Parallel() // each in a process and a folder of its own
		dir := t.TempDir()
		done, out := runChild(t, child(t, dir, "fsync,fdatasync,rename,renameat,renameat2", "error="+errno, step))
		if strings.Contains(out, "failed: ") {
			failed.Add(1)
			if done != killBatches && !strings.HasSuffix(out, "ended\nPASS\n") {
				t.Errorf("%s at step %d: %d batches done: %s", errno, step, done, out)
			}
		}
		recoverAndCheck(t, dir, done, fmt.Sprintf("%s at step %d", errno, step))
	}
	t.Run("each", func(t *testing.T) {
		for step := 1; step < 40; step += 3 {
			// After EIO the process ends by itself; a full disk is gone on with, by the same process.
			for _, errno := range []string{"EIO", "ENOSPC"} {
				t.Run(fmt.Sprintf("%s %d", errno, step), func(t *testing.T) { fails(t, step, errno) })
			}
		}
	})
	if failed.Load() == 0 {
		t.Error("no step failed while recording: they are not the ones expected")
	}
	t.Logf("%d steps failed while recording", failed.Load())
}

// runChild gives how many batches the child said were done, and all it said.
func runChild(t *testing.T, cmd *exec.Cmd) (done int, out string) {
	t.Helper()
	data, _ := cmd.Output() // its end is part of the test
	out = string(data)
	if strings.Contains(out, "FAIL") {
		t.Fatalf("child: %s", out)
	}
	return strings.Count(out, "done "), out
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
	all := make([]uuid.UUID, want)
	for i, r := range facts(0, int(want)) {
		all[i] = r.ID
	}
	found, err := p.recorder.Positions(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	events := map[uint64]uuid.UUID{}
	for id, at := range found {
		events[at] = id
	}
	err = p.ledger.Read(t.Context(), 0, want, func(at uint64, data []byte) error {
		r, err := record.Parse(data)
		if err == nil && events[at] != r.ID {
			t.Errorf("%s: position %d is of event %s, by the index %s", when, at, r.ID, events[at])
		}
		return err
	})
	if err != nil || uint64(len(events)) != want {
		t.Errorf("%s: the index has %d events, want %d: %v", when, len(events), want, err)
	}
}
