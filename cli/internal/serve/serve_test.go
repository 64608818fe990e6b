package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is one that a test turns.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func TestOperatorIsRenewedAtHalfLife(t *testing.T) {
	c := &clock{t: time.Now()}
	ca, err := identity.CreateAuthority(td, c.now)
	must(t, err)
	id, err := identity.OperatorID(td, "admin")
	must(t, err)
	o := &operator{dir: filepath.Join(t.TempDir(), "operator"), ca: ca, id: id, lifetime: 24 * time.Hour, now: c.now, log: slog.New(slog.DiscardHandler)}
	read := func() string {
		b, err := os.ReadFile(filepath.Join(o.dir, identity.FileSVID))
		must(t, err)
		return string(b)
	}
	renewed := func(what string, want bool) {
		t.Helper()
		before := ""
		if _, err := os.Stat(o.dir); err == nil {
			before = read()
		}
		must(t, o.renew(t.Context()))
		if got := read() != before; got != want {
			t.Errorf("%s: renewed %v, want %v", what, got, want)
		}
		src, err := identity.NewFiles(o.dir, nil)
		must(t, err)
		must(t, src.Close())
	}
	renewed("first", true)
	renewed("at once again", false)
	c.add(11 * time.Hour)
	renewed("before half its life", false)
	c.add(2 * time.Hour)
	renewed("after half its life", true)
	c.add(100 * 24 * time.Hour)
	renewed("after a long stop", true)
	c.add(-2 * time.Hour)
	renewed("with a clock set back", true)
	for _, name := range []string{identity.FileSVID, identity.FileKey, identity.FileBundle} {
		must(t, os.WriteFile(filepath.Join(o.dir, name), []byte("broken"), 0o600))
		renewed("broken "+name, true)
	}
	o.id, err = identity.OperatorID(td, "root")
	must(t, err)
	renewed("another name", true)
	o.ca, err = identity.CreateAuthority(td, c.now)
	must(t, err)
	renewed("another root", true)
}

// start runs a site until it is ready; the function it gives stops it.
func start(t *testing.T, cfg Config, now func() time.Time) (stop func() error, err error) {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := Run(ctx, cfg, Environment{Out: w, Err: io.Discard, Now: now})
		_ = w.Close()
		ended <- err
	}()
	line, _ := io.ReadAll(io.LimitReader(r, int64(len("sallyport is ready"))))
	if string(line) != "sallyport is ready" {
		cancel()
		return nil, <-ended
	}
	go io.Copy(io.Discard, r) //nolint:errcheck // ends with the pipe
	return func() error { cancel(); return <-ended }, nil
}

func TestSurroundings(t *testing.T) {
	c := &clock{t: time.Now()}
	data := filepath.Join(t.TempDir(), "data")
	cfg := Config{Data: data}
	stop, err := start(t, cfg, c.now)
	must(t, err)
	must(t, stop())
	refused := func(what string, code exit.Code, text string) {
		t.Helper()
		stop, err := start(t, cfg, c.now)
		if err == nil {
			t.Errorf("%s: it started; stopping: %v", what, stop())
			return
		}
		if exit.Of(err) != code || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q with code %d, want %q with code %d", what, err, exit.Of(err), text, code)
		}
	}

	// The clock before what was written.
	c.add(-time.Hour)
	refused("clock before the last stop", exit.Clock, "set the clock right, then start again")
	c.add(time.Hour)

	// A root that was made later than the clock says.
	root, aside := filepath.Join(data, datadir.DirTrust), filepath.Join(data, "aside")
	must(t, os.Rename(root, aside))
	box, err := trust.OpenBox(filepath.Join(data, datadir.FileKEK))
	must(t, err)
	later := &clock{t: c.now().Add(time.Hour)}
	_, err = trust.Create(root, spiffeid.RequireTrustDomainFromString(DefaultTrustDomain), box, later.now)
	must(t, err)
	refused("clock before the root", exit.Clock, "but the trust domain was made at")

	// A root of another trust domain.
	must(t, os.RemoveAll(root))
	_, err = trust.Create(root, td, box, c.now)
	must(t, err)
	refused("root of another trust domain", exit.Data, `is of the trust domain "example.org", the data directory of "sallyport.local"`)
	must(t, os.RemoveAll(root))
	must(t, os.Rename(aside, root))

	// An event store that is none.
	nats := filepath.Join(data, datadir.DirNATS)
	must(t, os.Rename(nats, aside))
	must(t, os.WriteFile(nats, nil, 0o600))
	refused("event store is a file", exit.Data, "the event store")
	must(t, os.Remove(nats))
	must(t, os.Rename(aside, nats))

	// An audit log that lost its key, and one that was cut off.
	key := filepath.Join(data, datadir.DirAudit, "checkpoint.key")
	must(t, os.Rename(key, aside))
	refused("audit key lost", exit.Data, "starting the audit: ")
	must(t, os.Rename(aside, key))

	// What is lost is not made anew.
	for _, name := range []string{datadir.DirNATS, datadir.DirAudit, "inventory.db", "issuer.db", "deployer.db"} {
		must(t, os.Rename(filepath.Join(data, name), aside))
		refused(name, exit.Data, name+" is missing: restore it from the backup")
		must(t, os.Rename(aside, filepath.Join(data, name)))
	}

	// The search index of the audit log is, from the log.
	must(t, os.Rename(filepath.Join(data, "audit.db"), aside))

	// After all that it starts, with nothing lost.
	stop, err = start(t, cfg, c.now)
	must(t, err)
	must(t, stop())
}

func TestEveryAPIHasAnOwner(t *testing.T) {
	table, owner := methods()
	for method := range table {
		if _, ok := owner[strings.Split(method, "/")[1]]; !ok {
			t.Errorf("%s has no owner", method)
		}
	}
	for api, want := range map[string]identity.Role{
		"sallyport.issuer.v1.IssuerService": identity.RoleIssuer, "sallyport.inventory.v1.InventoryService": identity.RoleInventory,
		"sallyport.deployer.v1.DeployerService": identity.RoleDeployer, "sallyport.agent.v1.AgentService": identity.RoleDeployer,
		"sallyport.audit.v1.AuditService": identity.RoleAudit,
	} {
		if owner[api] != want {
			t.Errorf("%s belongs to %q, want %q", api, owner[api], want)
		}
	}
}

func TestPasswordsAreNotLogged(t *testing.T) {
	for _, dsn := range []string{"postgres://u:hunter2@h/db", "host=h password=hunter2", "postgres://h/db?password=hunter2"} {
		var b bytes.Buffer
		cfg := &Config{Data: "d", Database: Database{Driver: "postgres", DSN: dsn}}
		cfg.databases()
		slog.New(slog.NewTextHandler(&b, nil)).Info("x", "config", cfg)
		if strings.Contains(b.String(), "hunter2") {
			t.Errorf("logged: %s", b.String())
		}
	}
}

func TestCompleteRefuses(t *testing.T) {
	for want, c := range map[string]Config{
		"data: missing":                  {},
		`listen: "x": want host:port`:    {Data: "d", Listen: "x"},
		"trust_domain: ":                 {Data: "d", TrustDomain: "UPPER"},
		"operator.name: ":                {Data: "d", Operator: Operator{Name: "a/b"}},
		"operator.lifetime: ":            {Data: "d", Operator: Operator{Lifetime: 1}},
		"database.dsn: SQLite files lie": {Data: "d", Database: Database{DSN: "x"}},
		"database.dsn: missing":          {Data: "d", Database: Database{Driver: "postgres"}},
		`database.driver: "oracle"`:      {Data: "d", Database: Database{Driver: "oracle"}},
		"log: log level":                 {Data: "d", Log: boot.LogConfig{Level: "loud"}},
		"limits: none may be negative":   {Data: "d", Limits: rpc.Limits{CallerRate: -1}},
	} {
		if err := c.complete(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s...", err, want)
		}
	}
}

func TestErrorsOfServicesGetCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want exit.Code
	}{
		{errors.New("x"), exit.General},
		{os.NewSyscallError("write", syscall.ENOSPC), exit.Space},
		{fault.New(fault.Precondition, "LOG_REFUSED", "x"), exit.Data},
		{fault.Invalid("database.driver", "x"), exit.Usage},
		{fault.New(fault.Transient, "STORAGE_UNAVAILABLE", "disk full: free space"), exit.Space},
		{fault.New(fault.Transient, "STORAGE_UNAVAILABLE", "x"), exit.Unreachable},
	} {
		if got := exit.Of(surroundings(c.err)); got != c.want {
			t.Errorf("%v: code %d, want %d", c.err, got, c.want)
		}
	}
}
