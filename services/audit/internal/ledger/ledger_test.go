package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

const origin = "sallyport.test.example/audit"

func config(t testing.TB, dir string) Config {
	return Config{Dir: dir, Origin: origin, CheckpointInterval: 100 * time.Millisecond, Log: servicetest.Log(t)}
}

func open(t testing.TB, dir string) *Ledger {
	t.Helper()
	l, err := Open(context.Background(), config(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLedger(t testing.TB, l *Ledger) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// records are n records that tell their number.
func records(t testing.TB, from, n int) [][]byte {
	t.Helper()
	all := make([][]byte, n)
	for i := range all {
		r := auditlog.Record{
			Version: 1, ID: fmt.Sprintf("00000000-0000-7000-8000-%012d", from+i), Time: time.Unix(1_800_000_000, 0), Service: "issuer",
			Type: "issuer.request.issued", Subject: "requests/" + strings.Repeat("x", 150), Result: "succeeded",
		}
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		all[i] = data
	}
	return all
}

func appendAll(t testing.TB, l *Ledger, all [][]byte) {
	t.Helper()
	before := l.Size()
	if first, err := l.Add(all).Wait(); err != nil || first != before {
		t.Fatalf("at position %d, not %d: %v", first, before, err)
	}
}

func verify(t testing.TB, l *Ledger, size uint64) {
	t.Helper()
	if _, err := l.AwaitCheckpoint(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	report, err := auditlog.VerifyDir(t.Context(), l.Dir(), auditlog.Options{Key: l.Verifier()})
	if err != nil {
		t.Fatal(err)
	}
	if report.Records != size {
		t.Fatalf("verified %d records, want %d", report.Records, size)
	}
}

func TestAppendReadProve(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, dir)
	if l.Size() != 0 {
		t.Fatalf("a new log has %d records", l.Size())
	}
	verify(t, l, 0)
	total := 0
	for _, n := range []int{1, 1, 253, 2, 700, 2500} {
		grew := make(chan uint64, 1)
		go func() {
			size, _ := l.Await(context.Background(), uint64(total))
			grew <- size
		}()
		appendAll(t, l, records(t, total, n))
		total += n
		if size := <-grew; size != uint64(total) {
			t.Fatalf("woken at size %d, want %d", size, total)
		}
		verify(t, l, uint64(total))
	}
	want := records(t, 0, total)
	seen := map[string]bool{}
	next := uint64(0)
	err := l.Read(t.Context(), 0, uint64(total), func(p uint64, data []byte) error {
		if p != next {
			t.Fatalf("position %d after %d", p, next)
		}
		next++
		seen[string(data)] = true
		return nil
	})
	if err != nil || len(seen) != total || !seen[string(want[total-1])] {
		t.Fatalf("read %d different records of %d: %v", len(seen), total, err)
	}
	for _, p := range []uint64{0, 1, 255, 256, 257, uint64(total) - 1} {
		proof, err := l.Inclusion(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := auditlog.VerifyInclusion(proof, auditlog.Options{Key: l.Verifier()}); err != nil {
			t.Error(err)
		}
	}
	closeLedger(t, l)

	again := open(t, dir)
	defer closeLedger(t, again)
	if again.Size() != uint64(total) || again.Verifier() != l.Verifier() {
		t.Fatalf("reopened with %d records and key %s", again.Size(), again.Verifier())
	}
	appendAll(t, again, records(t, total, 10))
	verify(t, again, uint64(total)+10)
}

func TestConsistency(t *testing.T) {
	l := open(t, t.TempDir())
	defer closeLedger(t, l)
	var heads []auditlog.Checkpoint
	for _, n := range []int{3, 300, 700} {
		appendAll(t, l, records(t, int(l.Size()), n))
		c, err := l.AwaitCheckpoint(t.Context(), l.Size())
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, c)
	}
	for _, older := range heads {
		path, to, newest, err := l.Consistency(t.Context(), older.Size, 0)
		if err != nil || to != newest.Size {
			t.Fatalf("to %d: %v", to, err)
		}
		p := auditlog.Consistency{Older: older.Note, Newer: newest.Note, Path: path}
		if _, _, err := auditlog.VerifyConsistency(p, auditlog.Options{Key: l.Verifier()}); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range [][2]uint64{{0, 5000}, {10, 5}, {5000, 0}} {
		if _, _, _, err := l.Consistency(t.Context(), bad[0], bad[1]); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("from %d to %d: %v", bad[0], bad[1], err)
		}
	}
}

func TestReadRefusesWhatIsNotThere(t *testing.T) {
	l := open(t, t.TempDir())
	defer closeLedger(t, l)
	appendAll(t, l, records(t, 0, 3))
	none := func(uint64, []byte) error { return nil }
	for _, r := range [][2]uint64{{0, 4}, {3, 2}, {4, 4}} {
		if err := l.Read(t.Context(), r[0], r[1], none); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%d to %d: %v", r[0], r[1], err)
		}
	}
	if _, err := l.Inclusion(t.Context(), 3); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
}

// TestRefusals damages a good log in one way each.
func TestRefusals(t *testing.T) {
	remove := func(path string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(path, text string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			file := filepath.Join(dir, path)
			if err := errors.Join(os.WriteFile(file, []byte(text), mode), os.Chmod(file, mode)); err != nil {
				t.Fatal(err)
			}
		}
	}
	chmod := func(path string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, path), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	copyFrom := func(path string, make func(t *testing.T) string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(make(t), path))
			if err != nil {
				t.Fatal(err)
			}
			write(path, string(data), 0o600)(t, dir)
		}
	}
	flip := func(path string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2+5] ^= 1 // not where an entry begins
			write(path, string(data), 0o600)(t, dir)
		}
	}
	small := func(t *testing.T) string {
		dir := t.TempDir()
		l := open(t, dir)
		appendAll(t, l, records(t, 0, 3))
		closeLedger(t, l)
		return dir
	}
	for name, c := range map[string]struct {
		damage func(*testing.T, string)
		want   string
	}{
		"key lost":             {remove("checkpoint.key"), "restore the key"},
		"key of another log":   {copyFrom("checkpoint.key", small), "is not of this log"},
		"key is no key":        {write("checkpoint.key", "PRIVATE+KEY+what", 0o600), "is not a signing key"},
		"key readable":         {chmod("checkpoint.key", 0o644), "chmod 600"},
		"state lost":           {remove("log/.state"), "treeState is missing"},
		"state is no state":    {write("log/.state/treeState", "{", 0o644), "cannot be read"},
		"state of another log": {copyFrom("log/.state/treeState", small), "state is older"},
		"state changed":        {flip("log/.state/treeState"), "restore"},
		"checkpoint changed":   {flip("log/checkpoint"), "is not of this log"},
		"checkpoint no note":   {write("log/checkpoint", "hello", 0o644), "is not of this log"},
		"tiles lost":           {remove("log/tile/0"), "do not reach"},
		"tile changed":         {flip("log/tile/1/000.p/3"), "do not give the root"},
		"bundle changed":       {flip("log/tile/entries/003.p/232"), "cannot be opened"},
		"newer version":        {write("log/.state/version", "2", 0o644), "cannot be opened"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := open(t, dir)
			appendAll(t, l, records(t, 0, 1000))
			closeLedger(t, l)
			c.damage(t, dir)
			_, err := Open(t.Context(), config(t, dir))
			if err == nil {
				t.Fatal("it was opened")
			}
			if fault.Of(err).Reason != "LOG_REFUSED" || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE+KEY") {
				t.Errorf("the key is in the message: %v", err)
			}
			// It is not a one-time refusal: nothing was written over.
			if _, again := Open(t.Context(), config(t, dir)); again == nil || again.Error() != err.Error() {
				t.Errorf("second time: %v", again)
			}
		})
	}
	t.Run("origin", func(t *testing.T) {
		dir := small(t)
		c := config(t, dir)
		c.Origin = "sallyport.other.example/audit"
		if _, err := Open(t.Context(), c); fault.Of(err).Reason != "LOG_REFUSED" || !strings.Contains(err.Error(), origin) {
			t.Error(err)
		}
	})
	t.Run("lost checkpoint is published again", func(t *testing.T) {
		dir := small(t)
		remove("log/checkpoint")(t, dir)
		l := open(t, dir)
		defer closeLedger(t, l)
		verify(t, l, 3)
	})
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if _, err := Open(t.Context(), config(t, dir)); fault.Of(err).Reason != "LOG_REFUSED" || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	closeLedger(t, l)
	closeLedger(t, open(t, dir))
}

func TestKeyFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	closeLedger(t, open(t, dir))
	for path, want := range map[string]os.FileMode{"": 0o700, "checkpoint.key": 0o600, "verifier": 0o644} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q has mode %o, want %o", path, got, want)
		}
	}
}

// TestReadOnly runs as a user who may not write, because root may always.
func TestReadOnly(t *testing.T) {
	if dir := os.Getenv("SALLYPORT_TEST_READONLY"); dir != "" {
		_, err := Open(t.Context(), config(t, dir))
		fmt.Println("OPENED:", err)
		return
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "test") // where another user can read it
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(binary, self, 0o755), os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o555)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
	cmd := exec.Command(binary, "-test.run=^TestReadOnly$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "SALLYPORT_TEST_READONLY="+dir)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "OPENED: cannot write to") || !strings.Contains(string(out), "make the directory and its files writable") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestFullDisk fills a small file system. Appending fails, says why, and works again when there is room.
func TestFullDisk(t *testing.T) {
	if os.Getenv("SALLYPORT_TEST_FULLDISK") == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// A file system of its own needs a mount namespace, and that a user namespace where we are not root.
		cmd := exec.Command("unshare", "-r", "-m", self, "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), "SALLYPORT_TEST_FULLDISK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() { _ = exec.Command("umount", "-l", dir).Run() }() // the namespace ends anyway
	l := open(t, filepath.Join(dir, "audit"))
	writable := func(want bool, when string) {
		t.Helper()
		if err := l.Writable(t.Context()); (err == nil) != want || err != nil && !strings.Contains(err.Error(), "disk full") {
			t.Errorf("writable %s: %v", when, err)
		}
	}
	writable(true, "at first")
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err == nil {
		t.Fatal("the file system is larger than it should be")
	}
	writable(false, "with nothing to record and a full disk")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	writable(true, "with room again")
	written, failed := 0, 0
	for failed == 0 && written < 10000 {
		_, err := l.Add(records(t, written, 100)).Wait()
		switch {
		case err == nil:
			written += 100
		case fault.KindOf(err) != fault.Transient || !strings.Contains(err.Error(), "disk full"):
			t.Fatal(err)
		default:
			failed++
		}
	}
	if failed == 0 {
		t.Fatal("the disk never got full")
	}
	writable(false, "after records were not taken")
	if out, err := exec.Command("mount", "-o", "remount,size=20m", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	writable(false, "before records were taken again")
	size, err := l.Refresh() // what failed may be in the log all the same
	if err != nil || size < uint64(written) {
		t.Fatalf("%d records written, size %d: %v", written, size, err)
	}
	appendAll(t, l, records(t, int(size), 100))
	verify(t, l, size+100)
	writable(true, "after records were taken again")
	closeLedger(t, l)
}
