package disk

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const trustDomain = "sallyport.example.com"

// services in the order of their start; any order works.
var services = []string{"inventory", "issuer", "deployer", "audit"}

// daemons are a control plane in parts, by service.
type daemons struct {
	*site
	t    *testing.T
	runs map[string]*lab.Process
	nats *lab.Broker
}

// newDaemons starts the four daemons, with SQLite, keys and audit log on the one disk, and a broker there or elsewhere.
func newDaemons(t *testing.T, brokerOnDisk bool) *daemons {
	t.Helper()
	d := &daemons{site: newVolume(t), t: t, runs: map[string]*lab.Process{}}
	d.parts = d
	at := map[string]string{"nats": d.address()}
	for _, service := range services {
		at[service] = d.address()
	}
	d.plane = ok(d.NewPlane("control", lab.ServeOptions{Address: at["deployer"]}))(t)
	d.plane.At = at
	trust := filepath.Join(d.plane.Data, "trust")
	must(t, os.Mkdir(d.plane.Data, 0o700))
	ok(d.plane.Do(t.Context(), "trust", "init", "--dir", trust, "--trust-domain", trustDomain))(t)
	issue := func(id, out string) {
		ok(d.plane.Do(t.Context(), "trust", "issue", "--dir", trust, id, "--out", out))(t)
	}
	issue("operator/alice", d.plane.Operator())
	contexts := "current_context: site\ncontexts:\n  - name: site\n    identity: " + d.plane.Operator() + "\n    servers:\n"
	for _, service := range services {
		issue("service/"+service, d.folder(service))
		must(t, os.Mkdir(d.folder("new-"+service), 0o700))
		contexts += fmt.Sprintf("      %s: %s\n", service, at[service])
	}
	must(t, os.WriteFile(filepath.Join(d.plane.Operator(), "config.yaml"), []byte(contexts), 0o600))
	broker := filepath.Join(d.Logs, "nats")
	if brokerOnDisk {
		broker = d.folder("nats")
	}
	issue("service/nats", broker)
	d.broker(broker)
	d.startAll()
	d.settle(t)
	return d
}

func (d *daemons) address() string { return fmt.Sprintf("127.0.0.1:%d", ok(lab.FreePort())(d.t)) }

func (d *daemons) folder(service string) string { return filepath.Join(d.plane.Data, service) }

func (d *daemons) broker(dir string) {
	users := ""
	for _, service := range services {
		users += fmt.Sprintf("{user: \"spiffe://%s/service/%s\"}\n", trustDomain, service)
	}
	config := filepath.Join(dir, "nats.conf")
	must(d.t, os.WriteFile(config, fmt.Appendf(nil, `server_name: nats-1
listen: %s
jetstream { store_dir: %q, sync_interval: always }
tls { cert_file: %[3]q, key_file: %[4]q, ca_file: %[5]q, verify_and_map: true, min_version: "1.3" }
authorization { users = [
%[6]s] }
`, d.plane.At["nats"], filepath.Join(dir, "store"), filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid-key.pem"), filepath.Join(dir, "bundle.pem"), users), 0o600))
	d.nats = ok(d.NATS(config))(d.t)
}

// startAll starts the daemons and waits until all answer.
func (d *daemons) startAll() {
	d.t.Helper()
	for _, service := range services {
		d.start(service, d.folder(service), d.plane.At[service])
	}
	d.plane.Process = d.runs["deployer"]
	d.await(d.t.Context(), d.t, "all daemons", d.answer)
}

// start starts a daemon whose files lie in dir. Its configuration lies elsewhere, and the database of a new issuer, which would
// otherwise not come to make its key.
func (d *daemons) start(service, dir, listen string, prefix ...string) *lab.Process {
	d.t.Helper()
	at := d.plane.At
	name := filepath.Base(dir)
	database := filepath.Join(dir, "data.db")
	if name == "new-issuer" {
		database = filepath.Join(d.Logs, "issuer.db")
	}
	text := fmt.Sprintf("listen: %s\nidentity: {dir: %s}\nnats: {url: \"tls://%s\"}\ndatabase: {driver: sqlite, dsn: %s}\nlimits: {caller_rate: 10000, anonymous_rate: 10000}\n",
		listen, d.folder(service), at["nats"], database)
	switch service {
	case "deployer":
		text += fmt.Sprintf("svid_authority: {certificate: %[1]s/root.pem, key: %[1]s/root-key.pem}\npeers: {issuer: %q, inventory: %q}\n"+
			"agents: {heartbeat_interval: 1s, scan_interval: 2s}\nrollout: {retry_after: [200ms, 500ms], ask_issuer_every: 500ms, check_every: 2s}\n",
			filepath.Join(d.plane.Data, "trust"), at["issuer"], at["inventory"])
	case "issuer":
		text += fmt.Sprintf("key_encryption_key: %s/kek\npeers: {inventory: %q}\nidentity_max_age: 100ms\n", dir, at["inventory"])
	case "audit":
		text += "directory: " + dir + "\ncheckpoint_interval: 100ms\n"
	}
	file := filepath.Join(d.Logs, name+".yaml")
	must(d.t, os.WriteFile(file, []byte(text), 0o600))
	d.runs[name] = ok(d.Start(lab.Command{Name: name, Path: filepath.Join(d.Bin, "sallyport-"+service), Args: []string{"--config", file}, Prefix: prefix}))(d.t)
	return d.runs[name]
}

// answer says which daemon does not.
func (d *daemons) answer() error {
	for _, what := range []string{"hosts", "requests", "agents"} {
		if _, err := d.plane.Do(d.t.Context(), "get", what); err != nil {
			return err
		}
	}
	_, err := d.plane.Do(d.t.Context(), "audit", "key")
	return err
}

// TestDaemonPowerCuts is TestPowerCuts for the four daemons and their broker.
func TestDaemonPowerCuts(t *testing.T) {
	t.Parallel()
	d := newDaemons(t, true)
	d.powerCuts(t, (*rounds+1)/3, 4)
	for _, service := range services {
		d.stop(d.runs[service])
	}
}

// TestFullDiskDaemons is TestFullDisk for the four daemons. Those that run refuse what they cannot keep, and go on by themselves when
// there is room again; those that are started meanwhile run, or end and say why, and what they have begun does not keep them from
// starting then.
func TestFullDiskDaemons(t *testing.T) {
	t.Parallel()
	d := newDaemons(t, false)
	w := newWitness(t, d.site)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	working := w.work(ctx, t, d.site, 0)
	pause(ctx, time.Second)
	ballast := filepath.Join(d.volume.Path, "ballast")
	fill(t, ballast)
	d.refuse(ctx)
	d.await(ctx, t, "the audit daemon to say that it waits for room", func() error {
		if !strings.Contains(d.runs["audit"].Output(), "disk full") {
			return errors.New("it does not")
		}
		return nil
	})
	for _, service := range services {
		if !d.runs[service].Running() {
			t.Errorf("the %s has ended: %s", service, d.runs[service].Output())
		}
		if p := d.start(service, d.folder("new-"+service), d.address()); d.noRoom(p, 0) {
			must(t, p.Stop())
		}
	}
	for _, service := range []string{"inventory", "issuer"} {
		must(t, d.runs[service].Stop())
		said := len(d.runs[service].Output())
		d.noRoom(d.start(service, d.folder(service), d.plane.At[service]), said)
	}
	must(t, os.Remove(ballast))
	for _, service := range services {
		if !d.runs[service].Running() {
			d.start(service, d.folder(service), d.plane.At[service])
		}
	}
	pause(ctx, time.Second)
	cancel()
	working.Wait()
	d.await(t.Context(), t, "all daemons", d.answer)
	w.keeps(t.Context(), t, d.site)
	w.tells(t)
	t.Logf("all is there: %s", w.count())
	d.settles(t.Context(), t, w)
	must(t, d.host.Stop())
	for _, service := range services {
		d.stop(d.runs[service])
		at := d.address()
		p := d.start(service, d.folder("new-"+service), at)
		must(t, lab.Await(t.Context(), patience, p.Name+" to start", func() error { return listens(at) }, p))
		d.stop(p)
	}
}

// daemonFailures are met by one daemon alone. The path is one in its folder.
var daemonFailures = []struct {
	service string
	failure
}{
	{"inventory", failure{"data.db-wal", "fsync", "error=EIO:when=5+", 1, "data.db does not sync"}},
	{"issuer", failure{"data.db-wal", "fsync", "error=EIO:when=5+", 1, "data.db does not sync"}},
	{"deployer", failure{"data.db-wal", "fsync", "error=EIO:when=5", 1, "data.db does not sync"}},
	{"audit", failure{"data.db-wal", "fsync", "error=EIO:when=5+", 1, "data.db does not sync"}},
	{"audit", failure{"log/.state", "fsync", "error=EIO:when=3", 1, "appending to the log in"}},
	{"audit", failure{"log", "fsync", "error=EIO:when=2+", 0, "a checkpoint cannot be written"}},
	{"deployer", failure{"data.db-wal", "pwrite64", "error=EIO:when=30+", 0, "data.db does not work"}},
	{"issuer", failure{"data.db-wal", "pwrite64", "error=ENOSPC:when=30..60", 0, "disk full"}},
}

// TestDaemonFailures lets system calls of one daemon fail while all work. It ends, or goes on, and says what is wrong, the others go on
// without it; and when the disk works again nothing is lost that was acknowledged.
func TestDaemonFailures(t *testing.T) {
	t.Parallel()
	d := newDaemons(t, false)
	w := newWitness(t, d.site)
	for i, f := range daemonFailures {
		t.Run(strings.Join([]string{f.service, filepath.Base(f.path), f.calls, f.do}, " "), func(t *testing.T) {
			d.stop(d.runs[f.service])
			p := d.start(f.service, d.folder(f.service), d.plane.At[f.service], ok(lab.Fault{Calls: f.calls, Do: f.do, Path: filepath.Join(d.folder(f.service), f.path)}.Prefix())(t)...)
			ctx, cancel := context.WithCancel(t.Context())
			working := w.work(ctx, t, d.site, 200+i)
			err := lab.Await(ctx, patience, "it to meet the failure", func() error {
				if f.code == 0 && !strings.Contains(p.Output(), f.says) || f.code != 0 && p.Running() {
					return errors.New("it has not")
				}
				return nil
			})
			cancel()
			working.Wait()
			must(t, err)
			lines := strings.Split(strings.TrimSpace(p.Output()), "\n")
			switch code, last := p.ExitCode(), lines[len(lines)-1]; {
			case strings.Contains(p.Output(), "\ngoroutine "):
				t.Errorf("it panicked:\n%s", p.Output())
			case f.code != 0 && (code != f.code || !strings.Contains(last, f.says)):
				t.Errorf("it ended with code %d, saying %q", code, last)
			case f.code == 0 && !p.Running():
				t.Errorf("it ended with code %d, saying %q", code, last)
			}
			p.KillAll()
			for _, service := range services {
				if service != f.service && !d.runs[service].Running() {
					t.Errorf("the %s has ended too", service)
				}
			}
			d.start(f.service, d.folder(f.service), d.plane.At[f.service])
			d.plane.Process = d.runs["deployer"]
			d.await(t.Context(), t, "all daemons", d.answer)
			w.keeps(t.Context(), t, d.site)
			w.tells(t)
		})
	}
	t.Logf("all is there: %s", w.count())
	d.settles(t.Context(), t, w)
	must(t, d.host.Stop())
	for _, service := range services {
		d.stop(d.runs[service])
	}
}

// noRoom waits until a daemon has ended for want of room or runs, since others leave some, by what it has said from some position on.
func (d *daemons) noRoom(p *lab.Process, from int) (runs bool) {
	d.t.Helper()
	must(d.t, lab.Await(d.t.Context(), patience, p.Name+" to end or to run", func() error {
		if p.Running() && !strings.Contains(p.Output()[from:], "msg=serving") {
			return errors.New(p.Output()[from:])
		}
		return nil
	}))
	full := regexp.MustCompile("no space left on device|disk full|or is full") // SQLite does not tell of every file why it cannot grow
	if !p.Running() && (p.ExitCode() != 1 || !full.MatchString(p.Output()[from:])) {
		d.t.Errorf("%s ended with code %d: %s", p.Name, p.ExitCode(), p.Output()[from:])
	}
	return p.Running()
}

// stop wants a daemon to end in good order, and never to have panicked.
func (d *daemons) stop(p *lab.Process) {
	d.t.Helper()
	if must(d.t, p.Stop()); p.ExitCode() != 0 || strings.Contains(p.Output(), "\ngoroutine ") {
		d.t.Errorf("%s ended with code %d: %s", p.Name, p.ExitCode(), p.Output())
	}
}

func listens(address string) error {
	conn, err := net.Dial("tcp", address)
	if err == nil {
		err = conn.Close()
	}
	return err
}

// refuse waits until every service that is asked to keep something says that it has no room for it.
func (d *daemons) refuse(ctx context.Context) {
	d.t.Helper()
	inventory := inventoryv1.NewInventoryServiceClient(ok(d.plane.Dial("inventory"))(d.t))
	issuer := issuerv1.NewIssuerServiceClient(ok(d.plane.Dial("issuer"))(d.t))
	deployer := deployerv1.NewDeployerServiceClient(ok(d.plane.Dial("deployer"))(d.t))
	n := 0
	for service, call := range map[string]func(string) error{
		"inventory": func(name string) error {
			_, err := inventory.ApplyIdentity(ctx, &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
				Name: name, Owner: "team@example.com", Purpose: "full", Names: &typev1.Names{Dns: []string{name + ".example.com"}}}})
			return err
		},
		"issuer": func(name string) error {
			_, err := issuer.ApplyAuthority(ctx, &issuerv1.ApplyAuthorityRequest{Authority: &issuerv1.Authority{
				Name: name, Kind: &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{}}}})
			return err
		},
		"deployer": func(name string) error {
			_, err := deployer.CreateJoinToken(ctx, &deployerv1.CreateJoinTokenRequest{Host: name})
			return err
		},
	} {
		d.await(ctx, d.t, "the "+service+" to refuse", func() error {
			n++
			err := call(fmt.Sprintf("full-%d", n))
			if err == nil || !strings.Contains(err.Error(), "disk full") {
				return fmt.Errorf("it says %w", err)
			}
			return nil
		})
	}
}
