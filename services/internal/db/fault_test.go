package db_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"golang.org/x/sys/unix"
)

// together makes sure that calls share one transaction: they queue up behind a first one.
func together(t *testing.T, d *db.DB, fns ...func(context.Context, db.Tx) error) []error {
	t.Helper()
	inside, release := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(inside) })
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = d.Write(context.Background(), func(context.Context, db.Tx) error { enter(); <-release; return nil })
	})
	<-inside
	var queued atomic.Int32
	for i, fn := range fns {
		wg.Go(func() {
			queued.Add(1)
			errs[i] = d.Write(context.Background(), fn)
		})
		for queued.Load() != int32(i+1) {
			// the next goroutine starts when this one is on its way into the queue
		}
	}
	close(release)
	wg.Wait()
	return errs
}

func TestFailedCommitFailsAll(t *testing.T) {
	d := open(t, servicetest.SQLite(t))
	var bystanders []func(context.Context, db.Tx) error
	for i := range 10 {
		bystanders = append(bystanders, insert(fmt.Sprint("by ", i)))
	}
	hurt := 0
	for range 20 { // whether the culprit shares a transaction with others is up to the scheduler
		culprit := func(ctx context.Context, tx db.Tx) error {
			if _, err := tx.Exec(ctx, `PRAGMA defer_foreign_keys = ON`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO part (id, thing) VALUES ('p', 'nothing')`)
			return err
		}
		errs := together(t, d, append(bystanders, culprit)...)
		if errs[len(errs)-1] == nil {
			t.Fatal("a dangling reference was committed")
		}
		good := 0
		for _, err := range errs[:len(errs)-1] {
			if err == nil {
				good++
			} else {
				hurt++
			}
		}
		if n := count(t, d, `id LIKE 'by %'`); n != good {
			t.Fatalf("%d calls succeeded, %d rows are there", good, n)
		}
		err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM thing`)
			return err
		})
		if err != nil {
			t.Fatalf("the writer did not recover: %v", err)
		}
	}
	if hurt == 0 {
		t.Error("no transaction was shared: the test shows nothing")
	}
}

func TestFullDatabase(t *testing.T) {
	d := open(t, servicetest.SQLite(t))
	limit := func(pages int) func(context.Context, db.Tx) error {
		return func(ctx context.Context, tx db.Tx) error {
			var now int
			return tx.QueryRow(ctx, fmt.Sprintf(`PRAGMA max_page_count = %d`, pages)).Scan(&now)
		}
	}
	if err := d.Write(t.Context(), limit(40)); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 3000)
	kept, full := 0, 0
	for i := range 60 {
		err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			if err := insert(fmt.Sprintf("small %d", i))(ctx, tx); err != nil {
				return err
			}
			return insert(fmt.Sprintf("%d %s", i, big))(ctx, tx)
		})
		if err == nil {
			kept++
			continue
		}
		full++
		refused(t, err, fault.Transient, "disk full", "free space")
		if fault.Of(err).Reason != "STORAGE_UNAVAILABLE" {
			t.Errorf("reason %s", fault.Of(err).Reason)
		}
		// SQLite has rolled back, the connection was replaced, and with it the limit went away: set it again.
		if i < 50 {
			if err := d.Write(t.Context(), limit(40)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if full == 0 || kept == 0 {
		t.Fatalf("%d writes kept, %d refused: the test shows nothing", kept, full)
	}
	if n := count(t, d, `TRUE`); n != 2*kept {
		t.Errorf("%d rows, want %d", n, 2*kept)
	}
}

// The kernel refuses to let a file grow: every kind of write SQLite makes can fail. The limit would hit the whole process, so
// a child does it.
func TestDiskRefusesWrites(t *testing.T) {
	const where = "SALLYPORT_TEST_FILE"
	if path := os.Getenv(where); path != "" {
		writeUntilRefused(t, path)
		return
	}
	c := servicetest.SQLite(t)
	shut(t, open(t, c))
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiskRefusesWrites$", "-test.v")
	cmd.Env = append(os.Environ(), where+"="+c.DSN)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	confirmed := 0
	sc := bufio.NewScanner(strings.NewReader(string(out)))
	d := open(t, c)
	for sc.Scan() {
		if id, ok := strings.CutPrefix(sc.Text(), "confirmed "); ok {
			confirmed++
			if n := count(t, d, `id = $1`, id); n != 1 {
				t.Errorf("%s was confirmed and is not there", id)
			}
		}
		if id, ok := strings.CutPrefix(sc.Text(), "refused "); ok {
			if n := count(t, d, `id = $1`, id); n != 0 {
				t.Errorf("%s was refused and is there", id)
			}
		}
	}
	if confirmed == 0 || !strings.Contains(string(out), "refused ") || !strings.Contains(string(out), "recovered") {
		t.Errorf("the test shows nothing:\n%s", out)
	}
}

func writeUntilRefused(t *testing.T, path string) {
	signal.Ignore(syscall.SIGXFSZ)
	d := open(t, db.Config{Driver: db.SQLite, DSN: path})
	pad := strings.Repeat("x", 2000)
	for round, limit := range []uint64{300_000, 500_000, math.MaxUint64} {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: math.MaxUint64}); err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			id := fmt.Sprintf("%d-%d-%s", round, i, pad)
			err := d.Write(context.Background(), insert(id))
			switch {
			case err == nil:
				fmt.Println("confirmed " + id)
			case fault.KindOf(err) == fault.Transient && fault.Of(err).Reason == "STORAGE_UNAVAILABLE":
				fmt.Println("refused " + id)
			default:
				t.Fatalf("gave %v", err)
			}
			if limit == math.MaxUint64 && err != nil {
				t.Fatalf("still refused: %v", err)
			}
		}
	}
	fmt.Println("recovered")
}

// A process killed in the middle of writing leaves what it confirmed.
func TestKilledWriter(t *testing.T) {
	const where = "SALLYPORT_TEST_KILL"
	if path := os.Getenv(where); path != "" {
		d := open(t, db.Config{Driver: db.SQLite, DSN: path})
		for w := range 8 {
			go func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("%d-%d", w, i)
					if err := d.Write(context.Background(), insert(id)); err != nil {
						panic(err)
					}
					fmt.Println("confirmed " + id)
				}
			}()
		}
		select {}
	}
	c := servicetest.SQLite(t)
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), where+"="+c.DSN)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var confirmed []string
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			if id, ok := strings.CutPrefix(sc.Text(), "confirmed "); ok {
				confirmed = append(confirmed, id)
			}
			if len(confirmed) == 500*(round+1) {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		d := open(t, c)
		for _, id := range confirmed {
			if n := count(t, d, `id = $1`, id); n != 1 {
				t.Fatalf("%s was confirmed and is not there", id)
			}
		}
		err = d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM thing`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		shut(t, d)
	}
}

func TestDeadlockIsRunAgain(t *testing.T) {
	d := open(t, servicetest.Postgres(t))
	for _, id := range []string{"a", "b"} {
		if err := d.Write(t.Context(), insert(id)); err != nil {
			t.Fatal(err)
		}
	}
	var runs atomic.Int32
	var meet, wg sync.WaitGroup
	meet.Add(2)
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		wg.Go(func() {
			first := true
			err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
				runs.Add(1)
				for i, id := range order {
					if _, err := tx.Exec(ctx, `UPDATE thing SET n = n + 1 WHERE id = $1`, id); err != nil {
						return fmt.Errorf("counting: %w", err)
					}
					if i == 0 && first {
						first = false
						meet.Done()
						meet.Wait()
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs.Load() < 3 {
		t.Errorf("%d runs: there was no deadlock", runs.Load())
	}
	if n := count(t, d, `n = 2`); n != 2 {
		t.Errorf("%d rows counted twice", n)
	}
}

func TestServerGoesAway(t *testing.T) {
	d := open(t, servicetest.Postgres(t))
	if err := d.Write(t.Context(), insert("before")); err != nil {
		t.Fatal(err)
	}
	err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
		if err := insert("half")(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`); err != nil {
			return err
		}
		return errors.New("the session survived")
	})
	refused(t, err, fault.Transient)
	if err := d.Write(t.Context(), insert("after")); err != nil {
		t.Errorf("the next write: %v", err)
	}
	if n := count(t, d, `TRUE`); n != 2 {
		t.Errorf("%d rows", n)
	}
}

// A call that fails has those run again that shared its transaction, once, however many fail after it.
func TestFailureHasOthersRunAgain(t *testing.T) {
	d := open(t, servicetest.SQLite(t))
	mine := errors.New("mine")
	var done atomic.Bool
	var culprits, good sync.WaitGroup
	for i := range 8 {
		culprits.Go(func() {
			for !done.Load() {
				err := d.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
					return errors.Join(insert(fmt.Sprintf("bad %d", i))(ctx, tx), mine)
				})
				if !errors.Is(err, mine) {
					t.Errorf("a call that fails gave %v", err)
					return
				}
			}
		})
	}
	culprits.Go(func() {
		for !done.Load() {
			if err := d.Check(context.Background()); err != nil {
				t.Errorf("the check of a database that works gave %v", err)
				return
			}
		}
	})
	var again atomic.Int32
	for i := range 16 {
		good.Go(func() {
			for j := range 50 {
				ran := 0
				err := d.Write(context.Background(), func(ctx context.Context, tx db.Tx) error {
					ran++
					return insert(fmt.Sprintf("good %d-%d", i, j))(ctx, tx)
				})
				if err != nil || ran > 2 {
					t.Errorf("a good call ran %d times and gave %v", ran, err)
					return
				}
				again.Add(int32(ran - 1))
			}
		})
	}
	good.Wait()
	done.Store(true)
	culprits.Wait()
	if n := count(t, d, `TRUE`); n != 16*50 {
		t.Errorf("%d rows of %d calls", n, 16*50)
	}
	if again.Load() == 0 {
		t.Error("no call ran again: the test shows nothing")
	}
}

// Who is refused for what another call has written was not refused for something that never was: when that is rolled back, so is the
// refusal.
func TestRefusedForWhatIsThere(t *testing.T) {
	for name, fails := range map[string]func(ran int, ctx context.Context, tx db.Tx) error{
		"another fails when it runs again": func(ran int, _ context.Context, _ db.Tx) error {
			if ran > 1 {
				return errors.New("no room by now")
			}
			return nil
		},
		"the commit fails": func(_ int, ctx context.Context, tx db.Tx) error {
			if _, err := tx.Exec(ctx, `PRAGMA defer_foreign_keys = ON`); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO part (id, thing) VALUES ('p', 'nothing')`)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, servicetest.SQLite(t))
			taken := errors.New("taken")
			shared := 0
			for round := range 200 { // whether the two share a transaction is up to the scheduler
				id, ran, looked := fmt.Sprint(round), 0, 0
				errs := together(t, d, func(ctx context.Context, tx db.Tx) error {
					ran++
					return errors.Join(insert(id)(ctx, tx), fails(ran, ctx, tx))
				}, func(ctx context.Context, tx db.Tx) error {
					looked++
					var n int
					if err := tx.QueryRow(ctx, `SELECT count(*) FROM thing WHERE id = $1`, id).Scan(&n); err != nil || n == 0 {
						return err
					}
					return taken
				})
				if errors.Is(errs[1], taken) && count(t, d, `id = $1`, id) == 0 {
					t.Fatalf("round %d: taken, by what is not there; the other got %v", round, errs[0])
				}
				if looked > 2 || ran > 2 {
					t.Errorf("calls ran %d and %d times", ran, looked)
				}
				if shared += looked - 1; shared > 0 && round >= 5 {
					return
				}
			}
			t.Error("no transaction was shared: the test shows nothing")
		})
	}
}

// What the tests of services run on makes each function run twice, and only the second run counts.
func TestRehearsed(t *testing.T) {
	d := opened(t, servicetest.SQLite(t))
	woken := d.Listen("first")
	mine := errors.New("mine")
	for i, gives := range []error{nil, mine, nil} {
		id, ran := fmt.Sprint(i), 0
		err := d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			if ran++; ran == 1 {
				tx.Notify("first")
			}
			return errors.Join(insert(id)(ctx, tx), gives)
		})
		if !errors.Is(err, gives) || ran != 2 {
			t.Errorf("a function that gives %v ran %d times, and Write gave %v", gives, ran, err)
		}
	}
	if n := count(t, d, `TRUE`); n != 2 {
		t.Errorf("%d rows of two writes", n)
	}
	select {
	case <-woken:
		t.Error("the first run has woken somebody")
	default:
	}
}

// SQLite rolls everything back when there is no room. Those that shared the transaction with the call that wanted too much run again
// and hear nothing of it.
func TestFullHasOthersRunAgain(t *testing.T) {
	d := open(t, servicetest.SQLite(t))
	culprit := func(ctx context.Context, tx db.Tx) error {
		var pages int
		if err := tx.QueryRow(ctx, `PRAGMA max_page_count = 40`).Scan(&pages); err != nil {
			return err
		}
		if err := insert(strings.Repeat("x", 1<<20))(ctx, tx); err != nil {
			return fault.New(fault.Permanent, "NOT_YOURS", "this is for the culprit alone: %w", err)
		}
		return nil
	}
	again := 0
	for round := range 200 { // whether the culprit shares a transaction with others is up to the scheduler
		ran := make([]int, 8)
		calls := make([]func(context.Context, db.Tx) error, 0, len(ran)+1)
		for i := range ran {
			calls = append(calls, func(ctx context.Context, tx db.Tx) error {
				ran[i]++
				return insert(fmt.Sprintf("%d-%d", round, i))(ctx, tx)
			})
		}
		errs := together(t, d, append(calls, culprit)...)
		if fault.Of(errs[len(ran)]).Reason != "NOT_YOURS" {
			t.Fatalf("the culprit got %v", errs[len(ran)])
		}
		for i, n := range ran {
			if errs[i] != nil || n > 2 {
				t.Fatalf("a call that shared its transaction ran %d times and gave %v", n, errs[i])
			}
			again += n - 1
		}
		if again > 0 && round >= 5 {
			break
		}
	}
	if again == 0 {
		t.Error("no call ran again: the test shows nothing")
	}
}

// A call that is given up at its very end says that it was, and not that something is wrong here.
func TestGivenUpAtTheCommit(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		d := open(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := d.Write(ctx, func(ctx context.Context, tx db.Tx) error {
			if err := insert("a")(ctx, tx); err != nil {
				return err
			}
			cancel()
			for c.Driver == db.Postgres { // until the transaction has noticed
				if _, err := tx.Exec(context.Background(), `SELECT 1`); err != nil {
					break
				}
			}
			return nil
		})
		done := 0
		if err == nil {
			done = 1
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("gave %v", err)
		}
		if n := count(t, d, `TRUE`); n != done {
			t.Errorf("%d rows, and Write gave %v", n, err)
		}
	})
}

// A server that was told to answer before a commit is on its disk does not do so to us; one that was told to wait for more does.
func TestCommitsAwaitTheDisk(t *testing.T) {
	for setting, want := range map[string]string{"off": "on", "remote_apply": "remote_apply"} {
		c := servicetest.Postgres(t)
		first := open(t, c)
		err := first.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			var name string
			if err := tx.QueryRow(ctx, `SELECT current_database()`).Scan(&name); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `ALTER DATABASE "`+name+`" SET synchronous_commit = `+setting)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		shut(t, first)
		err = open(t, c).Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
			var got string
			if err := tx.QueryRow(ctx, `SHOW synchronous_commit`).Scan(&got); err != nil {
				return err
			}
			if got != want {
				t.Errorf("synchronous_commit is %s where the database says %s, want %s", got, setting, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
