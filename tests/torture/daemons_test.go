package torture

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

var services = []string{"inventory", "issuer", "deployer", "audit"}

const trustDomain = "sallyport.example.com"

// pointsOf are the points that a daemon comes to: its own, and those of the events it sends and takes.
func pointsOf(service string) []crash.Point {
	points := slices.DeleteFunc(crash.Plane(), func(p crash.Point) bool { return !strings.HasPrefix(string(p), service+"-") })
	if service != "audit" {
		points = append(points, crash.EventsPassed, crash.EventsMarked)
	}
	if service == "inventory" || service == "deployer" {
		points = append(points, crash.EventHandled, crash.EventAcked)
	}
	return points
}

// daemons makes a control plane of four daemons, with a broker of their own. The broker can be killed too. Each service has the
// database that the seed gives it, SQLite or PostgreSQL.
func (w *world) daemons(dsn string) {
	w.at = map[string]string{"nats": address(w)}
	for _, service := range services {
		w.at[service] = address(w)
	}
	w.plane = ok(w.NewPlane("control", lab.ServeOptions{Address: w.at["deployer"]}))(w.t)
	w.plane.At = w.at
	w.log = filepath.Join(w.plane.Data, "log")
	trust := filepath.Join(w.plane.Data, "trust")
	must(w.t, os.MkdirAll(w.plane.Data, 0o700))
	ok(w.plane.Do(w.t.Context(), "trust", "init", "--dir", trust, "--trust-domain", trustDomain))(w.t)
	issue := func(id, out string) {
		ok(w.plane.Do(w.t.Context(), "trust", "issue", "--dir", trust, id, "--out", filepath.Join(w.plane.Data, out)))(w.t)
	}
	issue("operator/alice", "operator")
	contexts := "current_context: site\ncontexts:\n  - name: site\n    identity: " + w.plane.Operator() + "\n    servers:\n"
	for _, service := range services {
		issue("service/"+service, service)
		contexts += fmt.Sprintf("      %s: %s\n", service, w.at[service])
	}
	must(w.t, os.WriteFile(filepath.Join(w.plane.Operator(), "config.yaml"), []byte(contexts), 0o600))
	issue("service/nats", "nats")
	w.broker()
	for _, service := range services {
		database := fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", dsn)
		if w.r.IntN(2) == 0 {
			database = fmt.Sprintf("database: {driver: sqlite, dsn: %s}\n", filepath.Join(w.plane.Data, service, "data.db"))
		}
		w.t.Logf("the %s: %s", service, strings.TrimSpace(database))
		w.daemon(service, database)
	}
}

func address(w *world) string { return fmt.Sprintf("127.0.0.1:%d", ok(lab.FreePort())(w.t)) }

func (w *world) broker() {
	dir := filepath.Join(w.plane.Data, "nats")
	users := ""
	for _, service := range services {
		users += fmt.Sprintf("{user: \"spiffe://%s/service/%s\"}\n", trustDomain, service)
	}
	config := filepath.Join(dir, "nats.conf")
	must(w.t, os.WriteFile(config, fmt.Appendf(nil, `server_name: nats-1
listen: %s
jetstream { store_dir: %q, sync_interval: always }
tls { cert_file: %[3]q, key_file: %[4]q, ca_file: %[5]q, verify_and_map: true, min_version: "1.3" }
authorization { users = [
%[6]s] }
`, w.at["nats"], filepath.Join(dir, "store"), filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid-key.pem"), filepath.Join(dir, "bundle.pem"), users), 0o600))
	b := ok(w.NATSProcess(w.t.Context(), "nats", config, w.at["nats"]))(w.t)
	w.control = append(w.control, &victim{name: "nats", tally: &tally{book: newBook(), file: filepath.Join(w.Dir, "seen-nats")},
		proc:   func() *lab.Process { return b.Process },
		launch: func(...string) error { return b.Start(w.t.Context()) },
		answers: func(context.Context) error {
			conn, err := net.Dial("tcp", w.at["nats"])
			if err == nil {
				err = conn.Close()
			}
			return err
		}})
}

// daemon starts a daemon the first time; that of the audit log dies once on its way.
func (w *world) daemon(service, database string) {
	dir := filepath.Join(w.plane.Data, service)
	config := fmt.Sprintf("listen: %s\nidentity: {dir: %s}\nnats: {url: \"tls://%s\"}\n", w.at[service], dir, w.at["nats"]) + database + tuning[service]
	switch service {
	case "deployer":
		config += fmt.Sprintf("svid_authority: {certificate: %[1]s/root.pem, key: %[1]s/root-key.pem}\npeers: {issuer: %q, inventory: %q}\n",
			filepath.Join(w.plane.Data, "trust"), w.at["issuer"], w.at["inventory"])
	case "issuer":
		config += fmt.Sprintf("key_encryption_key: %s/kek\npeers: {inventory: %q}\n", dir, w.at["inventory"])
	case "audit":
		config += "directory: " + w.log + "\n"
	}
	file := filepath.Join(dir, "config.yaml")
	must(w.t, os.WriteFile(file, []byte(config), 0o600))
	var proc *lab.Process
	v := &victim{name: service, points: w.shuffled(pointsOf(service)), tally: &tally{book: newBook(), file: filepath.Join(w.Dir, "seen-"+service)},
		proc: func() *lab.Process { return proc },
		launch: func(env ...string) (err error) {
			proc, err = w.Start(lab.Command{Name: service, Path: filepath.Join(bin, "sallyport-"+service), Args: []string{"--config", file}, Env: env})
			return err
		},
		answers: w.answers(service),
	}
	w.control = append(w.control, v)
	if service == "audit" {
		w.start(v, 1, crash.LogKeyMade)
		select {
		case <-proc.Done():
		case <-time.After(time.Minute):
			w.t.Fatal("the audit daemon did not die when it had made its key")
		}
	}
	w.start(v, 0)
}

// answers asks a service for the least there is.
func (w *world) answers(service string) func(context.Context) error {
	return map[string]func(context.Context) error{
		"deployer": func(ctx context.Context) error {
			_, err := w.deployer.ListAgents(ctx, &deployerv1.ListAgentsRequest{PageSize: 1})
			return err
		},
		"inventory": func(ctx context.Context) error {
			_, err := w.inventory.ListCertificates(ctx, &inventoryv1.ListCertificatesRequest{PageSize: 1})
			return err
		},
		"issuer": func(ctx context.Context) error {
			_, err := w.issuer.ListRequests(ctx, &issuerv1.ListRequestsRequest{PageSize: 1})
			return err
		},
		"audit": func(ctx context.Context) error {
			_, err := w.audit.GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
			return err
		},
	}[service]
}
