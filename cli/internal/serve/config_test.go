package serve

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// A wrong value in any section is told before anything is made, with the name of its field, all of them at once.
func TestWrongConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		"listen: nowhere":                          "listen: ",
		"trust_domain: Example":                    "trust_domain: ",
		"operator: {name: a/b}":                    "operator.name: ",
		"operator: {lifetime: 1m}":                 "operator.lifetime: ",
		"database: {driver: oracle}":               "database.driver: ",
		"database: {driver: postgres}":             "database.dsn: ",
		"tracing: {endpoint: collector}":           "tracing.endpoint: ",
		"limits: {caller_rate: -1}":                "limits: ",
		"log: {level: loud}":                       "log: ",
		"metrics: {listen: nowhere}":               "metrics.listen: ",
		"issuer: {orders: {workers: -1}}":          "issuer.orders.workers: ",
		"issuer: {crl: {url: ftp://x}}":            "issuer.crl.url: ",
		"issuer: {database: {driver: oracle}}":     "issuer.database.driver: ",
		"issuer: {database: {dsn: host=db}}":       "issuer.database.driver: ",
		"issuer: {tracing: {sample: 0.5}}":         "issuer.tracing.endpoint: ",
		"inventory: {findings: {critical: 60d}}":   "inventory.findings.critical: ",
		"deployer: {agents: {svid_ttl: 1s}}":       "deployer.agents.svid_ttl: ",
		"deployer: {restored: {at: yesterday}}":    "deployer.restored",
		"audit: {checkpoint_interval: 1h}":         "audit.checkpoint_interval: ",
		"audit: {tracing: {endpoint: 'http://x'}}": "audit.tracing.endpoint: ",
		"listen: x\nissuer: {orders: {workers: -1}}\naudit: {checkpoint_interval: 1h}": "listen: ; issuer.orders.workers: ; audit.checkpoint_interval: ",
	} {
		dir := t.TempDir()
		file, data := filepath.Join(dir, "serve.yaml"), filepath.Join(dir, "data")
		must(t, os.WriteFile(file, []byte(text), 0o600))
		told := func(err error, more ...string) {
			t.Helper()
			if err == nil {
				t.Errorf("%s: taken", text)
				return
			}
			for _, w := range append(strings.Split(want, "; "), more...) {
				if strings.Count(err.Error(), w) != 1 || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %q, want %q once in it", text, err, w)
				}
			}
		}
		var cfg Config
		told(config.Load(file, &cfg), file)
		cfg = Config{Data: data}
		must(t, config.Decode(file, []byte(text), &cfg))
		err := Run(t.Context(), cfg, Environment{Out: io.Discard, Err: io.Discard, Now: time.Now})
		told(err)
		if exit.Of(err) != exit.Usage {
			t.Errorf("%s: code %d", text, exit.Of(err))
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: left behind: %v, %v", text, left, err)
		}
	}
}
