package monitoring

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const inventoryAPI = "sallyport.inventory.v1.InventoryService"

// TestDatabaseAway: while PostgreSQL is stopped nothing is ready, and who asks learns why, by HTTP and by gRPC.
func TestDatabaseAway(t *testing.T) {
	l := newLab(t)
	postgres := ok(l.PostgresServer(t.Context(), "postgres"))(t)
	plane := ok(l.Serve(t.Context(), "control", lab.ServeOptions{Config: config + fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", postgres.DSN)}))(t)
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
	if code, _, err := get(t.Context(), "/healthz", ""); err != nil || code != http.StatusOK {
		t.Errorf("alive without its database: %d %v", code, err)
	}

	must(t, postgres.Start(t.Context()))
	readiness(t, http.StatusOK, "ready")
	health(t, conn, "", healthpb.HealthCheckResponse_SERVING)
	await(t, "the metrics to be back", is(0), "sallyport_survey_failed", "service=inventory", "survey=findings")
	log := plane.Output()
	if !strings.Contains(log, `msg="not ready" service=inventory check=database`) || !strings.Contains(log, `msg="ready again" service=inventory check=database`) {
		t.Error("the log does not say when it was not ready and when it was again")
	}
}

// TestBrokerAway: the same for a daemon whose broker is stopped.
func TestBrokerAway(t *testing.T) {
	l := newLab(t)
	trust := filepath.Join(l.Dir, "trust")
	do := func(args ...string) {
		t.Helper()
		if r := ok(l.Run(t.Context(), lab.Command{Path: filepath.Join(l.Bin, "sallyport"), Args: args}))(t); r.Code != 0 {
			t.Fatalf("sallyport %v: %s", args, r.Stderr)
		}
	}
	id := func(name string) string { return filepath.Join(l.Dir, "identity", name) }
	do("trust", "init", "--dir", trust, "--trust-domain", "sallyport.example.com")
	for _, name := range []string{"service/nats", "service/inventory", "operator/ann"} {
		do("trust", "issue", "--dir", trust, name, "--out", id(filepath.Base(name)))
	}
	conf := string(ok(os.ReadFile(filepath.Join(repository(t), "deploy/config/nats.conf")))(t))
	conf = strings.NewReplacer("0.0.0.0:4222", "127.0.0.1:4222", "/etc/sallyport/identity/", id("")+"/", "/var/lib/sallyport/", l.Dir+"/").Replace(conf)
	must(t, os.WriteFile(filepath.Join(l.Dir, "nats.conf"), []byte(conf), 0o600))
	broker := ok(l.NATS(filepath.Join(l.Dir, "nats.conf")))(t)
	file := filepath.Join(l.Dir, "inventory.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "listen: 127.0.0.1:8444\nidentity: {dir: %s}\nnats: {url: \"tls://127.0.0.1:4222\"}\ndatabase: {driver: sqlite, dsn: %s}\n%s",
		id("inventory"), filepath.Join(l.Dir, "inventory.db"), config), 0o600))
	daemon := ok(l.Start(lab.Command{Name: "inventory", Path: filepath.Join(l.Bin, "sallyport-inventory"), Args: []string{"--config", file}}))(t)
	readiness(t, http.StatusOK, "ok    inventory broker")
	source := ok(identity.NewFiles(id("ann"), nil))(t)
	defer source.Close()
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: "127.0.0.1:8444", Service: "inventory", Source: source}))(t)
	defer conn.Close()
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_SERVING)

	broker.Stop()
	readiness(t, http.StatusServiceUnavailable, "FAILS inventory broker: the event broker is not connected")
	readiness(t, http.StatusServiceUnavailable, "ok    inventory database")
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_NOT_SERVING)

	must(t, broker.Start())
	readiness(t, http.StatusOK, "ok    inventory broker")
	health(t, conn, inventoryAPI, healthpb.HealthCheckResponse_SERVING)
	must(t, daemon.Stop())
}
