package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// shortLived makes agents renew their identity after half a minute.
var shortLived = strings.Replace(tuning, "agents: {", "agents: {svid_ttl: 1m, ", 1)

// site gives the arguments by which backup and restore know which installation is meant.
func (w *world) site(data string) []string {
	return []string{"--data", data, "--config", filepath.Join(w.Dir, "control.yaml")}
}

func (w *world) cli(t *testing.T, args ...string) lab.Result {
	t.Helper()
	return ok(w.plane.CLI(t.Context(), args...))(t)
}

// wantCode runs a command that must end with the code and say why.
func (w *world) wantCode(t *testing.T, code int, why string, args ...string) {
	t.Helper()
	if r := w.cli(t, args...); r.Code != code || !strings.Contains(r.Stderr, why) {
		t.Errorf("sallyport %s: exit code %d, want %d with %q: %s", strings.Join(args, " "), r.Code, code, why, r.Stderr)
	}
}

func (w *world) backup(t *testing.T, file string, more ...string) (m struct {
	Created time.Time
	Log     struct{ Size uint64 }
}) {
	t.Helper()
	text := w.do(t, append(append([]string{"backup", "--out", file, "-o", "json"}, w.site(w.plane.Data)...), more...)...)
	must(t, json.Unmarshal([]byte(text), &m))
	if info := ok(os.Stat(file))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("the backup has mode %v", info.Mode())
	}
	return m
}

// TestBackupAndRestore backs a control plane up while it works, lets it go on, kills it, and starts again from the backup: all
// agents come back, with identities and certificates of which the backup knows nothing, and the whole is sound.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, shortLived)
	hosts := []*host{w.nginx(t, "one", ""), w.nginx(t, "two", ""), w.haproxy(t, "three", "")}
	for _, h := range hosts {
		h.deploy(t, "corp")
	}
	var first *x509.Certificate
	for _, h := range hosts {
		first = h.healthy(t, 1)
		h.renew(t) // under way while the backup is made
	}
	unused := ok(w.plane.Token(t.Context(), "late"))(t)
	file := filepath.Join(w.Dir, "backup.tar.gz")
	made := w.backup(t, file)
	wantListenersFirst(t, file)

	// It goes on: certificates of which the backup does not know, identities too, and a host.
	for _, h := range hosts {
		h.healthy(t, 2)
		h.renew(t)
	}
	w.wantBrokenRefused(t, file)
	late := w.nginxBare(t, "late", unused)
	for _, h := range hosts {
		h.healthy(t, 3)
		w.await(t, h.Name+" to have an identity that is newer than the backup", func() error {
			records, err := w.records(t.Context(), "deployer.agent.key_changed", h.Name)
			if err != nil {
				return err
			}
			for _, r := range records {
				if r.Time.After(made.Created.Add(time.Second)) {
					return nil
				}
			}
			return errors.New("not yet")
		})
	}
	w.do(t, "certificate", "revoke", lab.Fingerprint(first), "--reason", "superseded", "--yes")
	number := w.listed(t, first)
	w.plane.Kill()

	// All is lost but the backup.
	w.wantCode(t, 10, "is not empty", append([]string{"restore", file}, w.site(w.plane.Data)...)...)
	data := filepath.Join(w.Dir, "restored")
	w.do(t, append([]string{"restore", file}, w.site(data)...)...)
	old := w.plane
	w.plane = ok(w.Serve(t.Context(), "restored", lab.ServeOptions{Address: old.Address, Config: shortLived}))(t)

	for _, h := range hosts {
		w.awaitRecord(t, "deployer.agent.key_adopted", h.Name, "")
		if got := ok(w.records(t.Context(), "deployer.agent.key_adopted", h.Name))(t); len(got) != 1 {
			t.Errorf("%s: its key was taken %d times", h.Name, len(got))
		}
		h.healthy(t, 2)
		h.settled(t)
		h.trusted(t, w.root(t, "corp"))
		h.noPendingKeys(t)
	}
	// It does not know what was revoked meanwhile, but its CRLs follow those of before.
	w.do(t, "certificate", "revoke", lab.Fingerprint(first), "--reason", "superseded", "--yes")
	if again := w.listed(t, first); again <= number {
		t.Errorf("CRL %d after %d", again, number)
	} else if ahead := time.Until(time.UnixMilli(again)); ahead < 12*time.Hour { // of a clock that was ahead in the time that was lost
		t.Errorf("CRL %d is ahead of time by %s only", again, ahead)
	}
	restored := w.awaitRecord(t, "deployer.store.restored", "", "")
	if restored.Actor == "anonymous" || restored.Facts["tokens_revoked"] != "1" {
		t.Errorf("recorded %+v", restored)
	}

	// The history in the backup is a beginning of the one that goes on from it.
	checkpoint := filepath.Join(w.Dir, "backup.checkpoint")
	must(t, os.WriteFile(checkpoint, ok(exec.CommandContext(t.Context(), "tar", "-xzOf", file, "audit/log/checkpoint").Output())(t), 0o600))
	key := strings.TrimSpace(w.do(t, "audit", "key"))
	w.do(t, "audit", "verify", "--key", key, "--older", checkpoint, filepath.Join(data, "audit"))
	w.awaitSound(t)

	// The host that was enrolled after the backup is told what to do, and does it.
	w.await(t, "the late host to be told to enrol again", func() error {
		if !strings.Contains(late.Output(), "enrol again with a join token") {
			return errors.New(late.Output())
		}
		return nil
	})
	must(t, late.Stop())
	must(t, os.Rename(late.State, late.State+".old"))
	again := ok(w.plane.Token(t.Context(), "late"))(t)
	ok(w.Host(t.Context(), "late", again, lab.HostOptions{Server: w.plane.Address}))(t)
	w.await(t, "the late host to be back", func() error {
		r := w.cli(t, "get", "agents")
		if !strings.Contains(r.Stdout, "late") {
			return errors.New(r.Stdout)
		}
		return nil
	})
}

// wantListenersFirst wants a backup to have been made in an order in which no part knows of what happened after a later one was made:
// the audit log's index, the log, and who listens before whom it listens to.
func wantListenersFirst(t *testing.T, file string) {
	t.Helper()
	names := strings.Fields(string(ok(exec.CommandContext(t.Context(), "tar", "-tzf", file).Output())(t)))
	var parts []string
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, "audit/log/"):
			name = "the log"
		case !strings.HasPrefix(name, "databases/"):
			continue
		}
		if len(parts) == 0 || parts[len(parts)-1] != name {
			parts = append(parts, name)
		}
	}
	if want := []string{"databases/audit.db", "the log", "databases/inventory.db", "databases/deployer.db", "databases/issuer.db"}; !slices.Equal(parts, want) {
		t.Errorf("copied were %v, in this order; wanted %v", parts, want)
	}
}

// nginxBare enrols a host on which nothing is to be done.
func (w *world) nginxBare(t *testing.T, name, token string) *lab.Host {
	t.Helper()
	return ok(w.Host(t.Context(), name, token, lab.HostOptions{Server: w.plane.Address}))(t)
}

// awaitSound waits until the doctor finds nothing wrong: above all that every event of every store is in the log, once.
func (w *world) awaitSound(t *testing.T) {
	t.Helper()
	w.await(t, "the doctor to find nothing", func() error {
		if r := w.cli(t, "doctor"); r.Code != 0 {
			return fmt.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
		}
		return nil
	})
}

// wantBrokenRefused spoils copies of a backup.
func (w *world) wantBrokenRefused(t *testing.T, file string) {
	t.Helper()
	w.do(t, "backup", "verify", file)
	good := ok(os.ReadFile(file))(t)
	r := rand.New(rand.NewPCG(*seed, 2))
	broken := filepath.Join(w.Dir, "broken.tar.gz")
	spoilt := map[string][]byte{"the end is missing": good[:len(good)-1], "half is missing": good[:len(good)/2], "empty": nil, "something follows": append(bytes.Clone(good), 0)}
	for range 3 {
		at := r.IntN(len(good)-10) + 10 // not the time in the header of gzip, which means nothing
		flipped := bytes.Clone(good)
		flipped[at] ^= 1 << r.IntN(8)
		spoilt[fmt.Sprintf("byte %d of %d (seed %d)", at, len(good), *seed)] = flipped
	}
	for what, data := range spoilt {
		must(t, os.WriteFile(broken, data, 0o600))
		if r := w.cli(t, "backup", "verify", broken); r.Code != 8 {
			t.Errorf("%s: verified with exit code %d: %s", what, r.Code, r.Stderr)
		}
	}
	to := filepath.Join(w.Dir, "from-broken")
	w.wantCode(t, 8, "the backup is damaged", append([]string{"restore", broken}, w.site(to)...)...)
	if left, err := os.ReadDir(to); err != nil || len(left) > 0 {
		t.Errorf("a refused restore has left %v (%v)", left, err)
	}
	w.wantForeignRefused(t, file, to)
}

// wantForeignRefused restores a good backup by the configuration of another installation.
func (w *world) wantForeignRefused(t *testing.T, file, to string) {
	t.Helper()
	other := filepath.Join(w.Dir, "other.yaml")
	must(t, os.WriteFile(other, fmt.Appendf(nil, "data: %s\ntrust_domain: other.example.com\n", to), 0o600))
	for _, args := range [][]string{{"backup", "verify", file, "--config", other}, {"restore", file, "--config", other}} {
		w.wantCode(t, 2, `the configuration of "other.example.com"`, args...)
	}
	if left, err := os.ReadDir(to); err != nil || len(left) > 0 {
		t.Errorf("a refused restore has left %v (%v)", left, err)
	}
}

// TestBackupWithPostgres is TestBackupAndRestore where PostgreSQL holds the databases: its own tools and the command take turns, in
// the order that docs/backup.md gives, while renewals go on between the steps.
func TestBackupWithPostgres(t *testing.T) {
	t.Parallel()
	servers := lab.New(t.TempDir(), "")
	t.Cleanup(servers.Close)
	dsn, other := ok(servers.Postgres(t.Context(), "postgres"))(t), ok(servers.Postgres(t.Context(), "other"))(t)
	w := newWorld(t, fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", dsn))
	h := w.nginx(t, "one", "")
	h.deploy(t, "corp")
	h.healthy(t, 1)
	ok(w.plane.Token(t.Context(), "late"))(t) // never used: the restore revokes it

	file, audit, services := filepath.Join(w.Dir, "backup.tar.gz"), filepath.Join(w.Dir, "audit.dump"), filepath.Join(w.Dir, "services.dump")
	w.wantCode(t, 2, "--without-databases", append([]string{"backup", "--out", file}, w.site(w.plane.Data)...)...)
	h.renew(t) // under way from one step to the next
	w.tool(t, "pg_dump", "-Fc", "-n", "audit", "-f", audit, dsn)
	h.healthy(t, 2)
	h.renew(t)
	made := w.backup(t, file, "--without-databases")
	h.healthy(t, 3)
	h.renew(t)
	w.tool(t, "pg_dump", "-Fc", "-n", "inventory", "-n", "deployer", "-n", "issuer", "-f", services, dsn)
	w.do(t, "backup", "verify", file)
	h.healthy(t, 4)
	w.plane.Kill()

	// All is lost but that.
	for _, dump := range []string{audit, services} {
		w.tool(t, "pg_restore", "--exit-on-error", "--no-owner", "-d", other, dump)
	}
	address := w.plane.Address
	w.plane = ok(w.NewPlane("restored", lab.ServeOptions{Address: address, Config: tuning + fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", other)}))(t)
	w.do(t, "restore", file, "--data", w.plane.Data, "--config", filepath.Join(w.Dir, "restored.yaml"))
	must(t, w.plane.Start(t.Context()))

	h.healthy(t, 4) // which the services' dump knows to be wanted, and not yet to be served
	h.settled(t)
	h.trusted(t, w.root(t, "corp"))
	if restored := w.awaitRecord(t, "deployer.store.restored", "", ""); restored.Facts["tokens_revoked"] != "1" {
		t.Errorf("recorded %+v", restored)
	}
	checkpoint := filepath.Join(w.Dir, "backup.checkpoint")
	must(t, os.WriteFile(checkpoint, ok(exec.CommandContext(t.Context(), "tar", "-xzOf", file, "audit/log/checkpoint").Output())(t), 0o600))
	key := strings.TrimSpace(w.do(t, "audit", "key"))
	w.do(t, "audit", "verify", "--key", key, "--older", checkpoint, filepath.Join(w.plane.Data, "audit"))
	if made.Log.Size == 0 {
		t.Error("the backup has no records")
	}
	w.awaitSound(t)
}

// tool runs a program of PostgreSQL's.
func (w *world) tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if r := ok(w.Run(t.Context(), lab.Command{Path: name, Args: args}))(t); r.Code != 0 {
		t.Fatalf("%s: exit code %d: %s", name, r.Code, r.Stderr)
	}
}

// TestBackupIsEncrypted for the key given, and for no other.
func TestBackupIsEncrypted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	own, other := ok(age.GenerateX25519Identity())(t), ok(age.GenerateX25519Identity())(t)
	files := map[string]string{}
	for name, id := range map[string]*age.X25519Identity{"own": own, "other": other} {
		files[name] = filepath.Join(w.Dir, name+".key")
		must(t, os.WriteFile(files[name], []byte(id.String()+"\n"), 0o600))
	}
	file := filepath.Join(w.Dir, "backup.age")
	w.backup(t, file, "--recipient", own.Recipient().String())
	if data := ok(os.ReadFile(file))(t); !bytes.HasPrefix(data, []byte("age-encryption.org/v1")) {
		t.Error("not encrypted")
	}
	w.wantCode(t, 2, "the backup is encrypted", "backup", "verify", file)
	w.wantCode(t, 2, "encrypted for another key", "backup", "verify", file, "--identity-file", files["other"])
	w.wantCode(t, 2, "not an age public key", append([]string{"backup", "--out", file + "2", "--recipient", "age1nonsense"}, w.site(w.plane.Data)...)...)
	w.do(t, "backup", "verify", file, "--identity-file", files["own"])
	w.wantCode(t, 2, "exists already", append([]string{"backup", "--out", file}, w.site(w.plane.Data)...)...)
}

// TestBackupKilled: neither a backup nor a restore that is killed leaves anything that passes for a whole one, and the next backup
// or look into one removes what one has left, but not what one that is at work has there.
func TestBackupKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	file := filepath.Join(w.Dir, "backup.tar.gz")
	w.backup(t, file)
	program := filepath.Join(w.Bin, "sallyport")
	r := rand.New(rand.NewPCG(*seed, 3))
	t.Logf("seed %d", *seed)
	backups := filepath.Join(w.Dir, "backups")
	named := func(name string) string { return filepath.Join(backups, name+".tar.gz") }
	w.leftBehind(t, backups, func(name string) []string {
		return append([]string{"backup", "--out", named(name)}, w.site(w.plane.Data)...)
	}, func() { w.backup(t, named("next")) })
	w.do(t, "backup", "verify", named("stopped-backups"))
	looks := filepath.Join(w.Dir, "looks")
	w.leftBehind(t, looks, func(string) []string { return []string{"backup", "verify", file} }, func() {
		r := ok(w.Run(t.Context(), lab.Command{Path: program, Args: []string{"backup", "verify", file}, Env: []string{"TMPDIR=" + looks}}))(t)
		if r.Code != 0 {
			t.Errorf("backup verify: exit code %d: %s", r.Code, r.Stderr)
		}
	})
	for n := range 8 {
		out, to := filepath.Join(w.Dir, fmt.Sprintf("killed-%d.tar.gz", n)), filepath.Join(w.Dir, fmt.Sprintf("killed-%d", n))
		for name, args := range map[string][]string{
			"backup": append([]string{"backup", "--out", out}, w.site(w.plane.Data)...), "restore": append([]string{"restore", file}, w.site(to)...),
		} {
			p := ok(w.Start(lab.Command{Name: fmt.Sprintf("%s-%d", name, n), Path: program, Args: args}))(t)
			time.Sleep(time.Duration(20+r.IntN(250)) * time.Millisecond) // the random moment is what is tested
			p.Kill()
		}
		if _, err := os.Stat(out); err == nil {
			w.do(t, "backup", "verify", out) // it was done
		}
		if _, err := os.Stat(filepath.Join(to, "sallyport.json")); err == nil {
			if _, err := os.Stat(filepath.Join(to, "issuer.db")); err != nil {
				t.Errorf("a marker, and no database: %v", err)
			}
			continue
		}
		if _, err := os.Stat(to); err != nil {
			continue // it had not begun
		}
		if left, err := os.ReadDir(to); err != nil || len(left) == 0 {
			continue
		}
		w.wantCode(t, 10, "not a data directory", "serve", "--data", to, "--listen", "127.0.0.1:0")
	}
}

// leftBehind stops a command half-way, kills another, and wants the next to remove what the killed one has left in dir, and nothing
// else.
func (w *world) leftBehind(t *testing.T, dir string, args func(name string) []string, next func()) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o700))
	left := func() []string { return ok(filepath.Glob(filepath.Join(dir, ".*.part-*")))(t) }
	locks := func() int { return len(ok(filepath.Glob(filepath.Join(dir, ".*.part-*", "lock")))(t)) }
	begin := func(name string) *lab.Process {
		for range 100 { // where this program waits for its turn, a command may be done before it is seen
			before := locks()
			p := ok(w.Start(lab.Command{Name: name, Path: filepath.Join(w.Bin, "sallyport"), Args: args(name), Env: []string{"TMPDIR=" + dir}}))(t)
			for p.Running() && locks() == before {
			}
			if p.Signal(syscall.SIGSTOP) == nil && p.Running() && locks() > before {
				return p
			}
			_ = p.Signal(syscall.SIGCONT) // it may be about to clear up
			<-p.Done()
			must(t, os.RemoveAll(filepath.Join(dir, name+".tar.gz")))
		}
		t.Fatalf("%s was always done before it was seen", name)
		return nil
	}
	stopped := begin("stopped-" + filepath.Base(dir))
	at := left()
	begin("killed-" + filepath.Base(dir)).Kill()
	if len(left()) != 2 {
		t.Fatalf("left of the stopped one and the killed one: %v", left())
	}
	next()
	if found := left(); !slices.Equal(found, at) {
		t.Errorf("left behind: %v, of the one at work is %v", found, at)
	}
	must(t, stopped.Signal(syscall.SIGCONT))
	w.await(t, "the stopped one to be done", func() error {
		if stopped.Running() {
			return errors.New("it is not")
		}
		return nil
	})
	if found := left(); stopped.ExitCode() != 0 || len(found) > 0 {
		t.Errorf("the one at work ended with %d and left %v: %s", stopped.ExitCode(), found, stopped.Output())
	}
}
