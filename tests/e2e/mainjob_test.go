package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestMainJob is issue, install, serve and renew, from the company's own CA and from a public one, with all data in SQLite, and
// in PostgreSQL.
func TestMainJob(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"sqlite", "postgres"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, database(t, store))
			t.Run("software", func(t *testing.T) {
				for _, software := range []string{"nginx", "haproxy", "memory", "files", "acme"} {
					t.Run(software, func(t *testing.T) {
						t.Parallel()
						mainJob(t, w, software)
					})
				}
			})
			stored(t, w, store)
		})
	}
}

// database is the configuration of a control plane on this store.
func database(t *testing.T, store string) string {
	t.Helper()
	if store == "sqlite" {
		return ""
	}
	servers := lab.New(t.TempDir(), "")
	t.Cleanup(servers.Close)
	return fmt.Sprintf("database: {driver: postgres, dsn: %q}\n", ok(servers.Postgres(t.Context(), "postgres"))(t))
}

func mainJob(t *testing.T, w *world, software string) {
	var h *host
	profile, roots := "corp", w.root(t, "corp")
	switch software {
	case "acme":
		ca := w.acme(t, "public", pebbletest.Options{})
		h, profile, roots = w.nginx(t, "www", ca.answers()), "public", ca.roots(t)
	case "nginx":
		h = w.nginx(t, "shop", "")
	case "haproxy":
		h = w.haproxy(t, "pay", "")
	case "memory": // haproxy's, through its socket
		site := ok(w.HAProxy(t.Context(), "kiosk-haproxy", "kiosk.example.com"))(t)
		h = w.enrol(t, "kiosk", site, site.InMemory())
	case "files": // the connector that knows nothing of the server, with a reload hook of the host's own
		site := ok(w.Nginx(t.Context(), "app-nginx", "app.example.com"))(t)
		h = w.enrolWith(t, "app", site, watching+enableFiles(site)+"hooks:\n  reload-web: {command: [/usr/sbin/nginx, -c, "+site.Config+", -s, reload]}\n")
	}
	before := h.served(t)
	if software == "files" {
		settings := h.site.Settings()
		settings["reload"] = "reload-web"
		h.deployWith(t, profile, "files", settings, "")
	} else {
		h.deploy(t, profile)
	}
	w.do(t, "watch", "deployment", h.Name, "--timeout", "30s")
	first := h.healthy(t, 1)
	if first.Equal(before) {
		t.Fatal("the placeholder is still served")
	}
	h.trusted(t, roots)

	clients := begin(t, h, roots) // it starts the server anew
	workers := ok(h.site.Workers())(t)
	keys := map[string]bool{h.keepKey(t): true}
	last := first
	for generation := int64(2); generation <= 3; generation++ {
		h.renew(t)
		leaf := h.healthy(t, generation)
		if leaf.Equal(last) {
			t.Fatalf("generation %d is served with the certificate before it", generation)
		}
		keys[h.keepKey(t)] = true
		last = leaf
	}
	clients.end(t, first, last)
	if software == "memory" && ok(h.site.Workers())(t) != workers {
		t.Error("haproxy was reloaded")
	}
	if len(keys) != 3 {
		t.Errorf("%d keys in 3 generations", len(keys))
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	h.noPendingKeys(t)
	h.listensOnNothing(t)
	for _, kind := range []string{"deployer.deployment.applied", "deployer.assignment.assigned", "deployer.assignment.requested", "issuer.request.issued", "deployer.assignment.issued", "deployer.assignment.served"} {
		w.awaitRecord(t, kind, h.Name, "")
	}
	if found, _ := w.keys.find(t, h.site.TLSDir); found == "" {
		t.Error("the search for private keys does not even find the one in use")
	}
}

func enableFiles(site *lab.Site) string {
	return fmt.Sprintf("connectors:\n  files:\n    allow: [%s]\n", site.TLSDir)
}

// stored makes sure that the data lies where it was meant to.
func stored(t *testing.T, w *world, store string) {
	t.Helper()
	databases, err := filepath.Glob(filepath.Join(w.plane.Data, "*.db"))
	must(t, err)
	if store == "sqlite" && len(databases) != 4 || store == "postgres" && len(databases) != 0 {
		t.Errorf("with %s there are the SQLite files %v", store, databases)
	}
	config := ok(os.ReadFile(filepath.Join(w.Dir, "control.yaml")))(t)
	if strings.Contains(string(config), "driver: postgres") != (store == "postgres") {
		t.Errorf("the control plane was configured for another store:\n%s", config)
	}
}
