package monitoring

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	typev1 "github.com/sallyport-pki/sallyport/gen/sallyport/type/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const inventoryAPI = "sallyport.inventory.v1.InventoryService"

// TestDatabaseAway: while PostgreSQL is stopped nothing is ready, and who asks learns why, by HTTP and by gRPC.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	postgres := ok(l.PostgresServer(t.Context(), "postgres"))(t)
	plane := ok(l.Serve(t.Context(), "control", lab.ServeOptions{Config: config(t) + fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", postgres.DSN)}))(t)
	conn := ok(plane.Dial("inventory"))(t)
	readiness(t, http.StatusOK, "ready")
	health(t, conn, "", healthpb.HealthCheckResponse_SERVING)

	must(t, postgres.Stop())
	readiness(t, http.StatusServiceUnavailable, "FAILS inventory database: the database does not answer")
	health(t, conn, "", healthpb.HealthCheckResponse_NOT_SERVING)
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_NOT_SERVING)
	await(t, "the inventory not to be ready", is(0), "sallyport_ready", "service=inventory")
	await(t, "the broker to be well meanwhile", is(1), "sallyport_check_passed", "service=inventory", "check=broker")
	await(t, "metrics from the database to be missing", is(1), "sallyport_survey_failed", "service=inventory", "survey=findings")
	s, _ := scrape(t)
	if v, err := s.value("sallyport_inventory_certificates_served"); err == nil {
		t.Errorf("%v certificates are counted in a database that is away", v)
	}
	alive(t)

	must(t, postgres.Start(t.Context()))
	readiness(t, http.StatusOK, "ready")
	health(t, conn, "", healthpb.HealthCheckResponse_SERVING)
	await(t, "the metrics to be back", is(0), "sallyport_survey_failed", "service=inventory", "survey=findings")
	log := plane.Output()
	if !strings.Contains(log, `msg="not ready" service=inventory check=database`) || !strings.Contains(log, `msg="ready again" service=inventory check=database`) {
		t.Error("the log does not say when it was not ready and when it was again")
	}
}

// inventoryDaemon is one daemon with what it needs.
type inventoryDaemon struct {
	*lab.Process
	broker *lab.Broker
	issue  func(name string, more ...string) // issues an identity
	id     func(name string) string          // gives its folder
}

// newInventory starts an inventory whose identity lives as long as issued.
func newInventory(t *testing.T, more ...string) inventoryDaemon {
	t.Helper()
	l := newLab(t)
	at, trust := machine(t), filepath.Join(l.Dir, "trust")
	do := func(args ...string) {
		t.Helper()
		if r := ok(l.Run(t.Context(), lab.Command{Path: filepath.Join(l.Bin, "sallyport"), Args: args}))(t); r.Code != 0 {
			t.Fatalf("sallyport %v: %s", args, r.Stderr)
		}
	}
	d := inventoryDaemon{id: func(name string) string { return filepath.Join(l.Dir, "identity", name) }}
	d.issue = func(name string, more ...string) {
		t.Helper()
		do(append([]string{"trust", "issue", "--dir", trust, name, "--out", d.id(filepath.Base(name))}, more...)...)
	}
	do("trust", "init", "--dir", trust, "--trust-domain", "sallyport.example.com")
	d.issue("service/nats")
	d.issue("operator/ann")
	conf := string(ok(os.ReadFile(filepath.Join(repository(t), "deploy/config/nats.conf")))(t))
	conf = strings.NewReplacer("0.0.0.0:4222", at+":4222", "/etc/sallyport/identity/", d.id("")+"/", "/var/lib/sallyport/", l.Dir+"/").Replace(conf)
	must(t, os.WriteFile(filepath.Join(l.Dir, "nats.conf"), []byte(conf), 0o600))
	d.broker = ok(l.NATS(filepath.Join(l.Dir, "nats.conf")))(t)
	file := filepath.Join(l.Dir, "inventory.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "listen: %s:8444\nidentity: {dir: %s}\nnats: {url: \"tls://%s:4222\"}\ndatabase: {driver: sqlite, dsn: %s}\n%s",
		at, d.id("inventory"), at, filepath.Join(l.Dir, "inventory.db"), config(t)), 0o600))
	d.issue("service/inventory", more...)
	d.Process = ok(l.Start(lab.Command{Name: "inventory", Path: filepath.Join(l.Bin, "sallyport-inventory"), Args: []string{"--config", file}}))(t)
	return d
}

// alive wants the process to live, whatever it lacks.
func alive(t *testing.T) {
	t.Helper()
	if code, _, err := get(t, "/healthz", ""); err != nil || code != http.StatusOK {
		t.Errorf("it does not say that it lives: %d %v", code, err)
	}
}

// TestBrokerAway: the same for a daemon whose broker is stopped.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	d := newInventory(t)
	readiness(t, http.StatusOK, "ok    inventory broker")
	source := ok(identity.NewFiles(d.id("ann"), nil))(t)
	defer source.Close()
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: machine(t) + ":8444", Service: "inventory", Source: source}))(t)
	defer conn.Close()
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_SERVING)

	d.broker.Stop()
	readiness(t, http.StatusServiceUnavailable, "FAILS inventory broker: the event broker is not connected")
	readiness(t, http.StatusServiceUnavailable, "ok    inventory database")
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_NOT_SERVING)
	alive(t)
	begun := time.Now()
	ok(inventoryv1.NewInventoryServiceClient(conn).ApplyIdentity(t.Context(), &inventoryv1.ApplyIdentityRequest{Identity: &inventoryv1.Identity{
		Name: "shop", Owner: "team", Purpose: "test", Names: &typev1.Names{Dns: []string{"shop.example.com"}},
	}}))(t)
	const age = "sallyport_outbox_oldest_waiting_age_seconds"
	await(t, "its event to wait", func(v float64) bool { return v > 0 && v <= time.Since(begun).Seconds() }, age)
	await(t, "the consumers' metrics to be missing", atLeast(1), "sallyport_survey_failed")
	s, _ := scrape(t)
	fire(t, s, 0, []string{age}, "SallyportMetricsIncomplete", "SallyportNotReady", "SallyportOutboxLag")

	must(t, d.broker.Start())
	await(t, "it to be told", is(0), age)
	readiness(t, http.StatusOK, "ok    inventory broker")
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_SERVING)
	must(t, d.Stop())
}

// TestBrokerSilent: a broker whose packets come nowhere any more, as when its machine has lost its power, is not taken for one that
// is there, and is given up soon, so that its service goes to the next one of a cluster.
func TestBrokerSilent(t *testing.T) {
	t.Parallel()
	d := newInventory(t)
	readiness(t, http.StatusOK, "ok    inventory broker")
	back := silence(t, 4222)
	begun := time.Now()
	readiness(t, http.StatusServiceUnavailable, "FAILS inventory broker: the event broker is not connected")
	alive(t)
	must(t, lab.Await(t.Context(), patience, "the connection to be given up", func() error {
		if !strings.Contains(d.Output(), `msg="NATS is away"`) {
			return errors.New("not yet")
		}
		return nil
	}))
	t.Logf("given up after %s", time.Since(begun).Round(time.Second))
	back()
	readiness(t, http.StatusOK, "ok    inventory broker")
	must(t, d.Stop())
}

// TestDatabaseSilent: the same of a PostgreSQL, whose idle connections are given up too: what takes one of those would wait.
func TestDatabaseSilent(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const port = 5432
	at := machine(t)
	ok(l.PostgresServer(t.Context(), "postgres", "listen_addresses="+at, fmt.Sprintf("port=%d", port)))(t)
	dsn := fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", at, port)
	ok(l.Serve(t.Context(), "control", lab.ServeOptions{Config: config(t) + fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", dsn)}))(t)
	readiness(t, http.StatusOK, "ready")
	connections := func() (n int) {
		remote := fmt.Sprintf(" %02X00007F:%04X 01 ", netip.MustParseAddr(at).As4()[3], port) // established, proc(5)
		return strings.Count(string(ok(os.ReadFile("/proc/net/tcp"))(t)), remote)
	}
	if connections() == 0 {
		t.Fatal("there is no connection to give up")
	}

	back := silence(t, port)
	begun := time.Now()
	readiness(t, http.StatusServiceUnavailable, "FAILS inventory database: the database does not answer")
	alive(t)
	must(t, lab.Await(t.Context(), patience, "the connections to be given up", func() error {
		if n := connections(); n > 0 {
			return fmt.Errorf("%d stay", n)
		}
		return nil
	}))
	t.Logf("given up after %s", time.Since(begun).Round(time.Second))
	back()
	readiness(t, http.StatusOK, "ready")
}

// silence has the packets to and from a port of the test's machine come nowhere, until back.
func silence(t *testing.T, port int) (back func()) {
	t.Helper()
	at := machine(t)
	table := "silent" + strings.ReplaceAll(at, ".", "_")
	nft := func(rules string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	nft(fmt.Sprintf(`table inet %s {
	chain in {
		type filter hook input priority 0; policy accept;
		ip daddr %[2]s tcp dport %[3]d drop
		ip saddr %[2]s tcp sport %[3]d drop
	}
}
`, table, at, port))
	return func() { t.Helper(); nft("delete table inet " + table) }
}

// TestIdentityEnds: a daemon whose SVID has run out is not ready, until it has a new one.
func TestIdentityEnds(t *testing.T) {
	t.Parallel()
	d := newInventory(t, "--ttl", "40s")
	readiness(t, http.StatusOK, "ok    inventory svid")
	readiness(t, http.StatusServiceUnavailable, "FAILS inventory svid: the service's own SVID is not valid now")
	alive(t)
	await(t, "what Prometheus sees to be so", is(0), "sallyport_ready", "service=inventory")
	s, _ := scrape(t)
	fire(t, s, 0, nil, "SallyportNotReady", "SallyportSVIDEnding", "SallyportSVIDExpiring")
	d.issue("service/inventory")
	readiness(t, http.StatusOK, "ok    inventory svid")
}

// TestLogFull: an audit service whose log's disk is full is not ready, until there is room again.
func TestLogFull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	log := filepath.Join(l.Dir, "log")
	must(t, os.Mkdir(log, 0o700))
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", log).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { l.Close(); must(t, unix.Unmount(log, 0)) })
	plane := ok(l.Serve(t.Context(), "control", lab.ServeOptions{Config: config(t) + fmt.Sprintf("audit: {directory: %s}\n", log)}))(t)
	readiness(t, http.StatusOK, "ok    audit ledger")
	ballast := filepath.Join(log, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	readiness(t, http.StatusServiceUnavailable, "FAILS audit ledger: the audit log takes no records")
	readiness(t, http.StatusServiceUnavailable, "ok    inventory database")
	alive(t)
	begun := time.Now()
	ok(plane.Apply(t.Context(), "kind: Identity\nname: shop\nowner: team\npurpose: test\nnames: {dns: [shop.example.com]}\n"))(t)
	const age = "sallyport_consumer_oldest_unhandled_age_seconds"
	await(t, "its event to wait", func(v float64) bool { return v > 0 && v <= time.Since(begun).Seconds() }, age, "consumer=audit")
	s, _ := scrape(t)
	fire(t, s, 0, []string{age}, "SallyportAuditLag", "SallyportNotReady")
	must(t, os.Remove(ballast))
	await(t, "it to be recorded", is(0), age, "consumer=audit")
	readiness(t, http.StatusOK, "ok    audit ledger")
	must(t, plane.Stop())
}
