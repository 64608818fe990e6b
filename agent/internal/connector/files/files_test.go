//go:build linux

package files_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/command"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/files"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
)

func TestMain(m *testing.M) { connectortest.Main(m) }

// The software is an nginx that the connector knows nothing of: it is reloaded
// by a hook.
func TestConformance(t *testing.T) {
	connectortest.Run(t, func(t *testing.T, dir string) *connectortest.Subject {
		s := connectortest.Nginx(t, dir, "")
		broken := filepath.Join(dir, "broken")
		hooks := pemfile.Hooks{"reload-app": command.Command{
			Args:    []string{"/bin/sh", "-c", `test ! -e "$1" && exec "$2" -p "$3" -c "$4" -e stderr -s reload`, "sh", broken, s.Binary(), dir, s.Config},
			Timeout: 10 * time.Second,
		}}
		cfg := files.Config{Config: pemfile.Config{Allow: []string{s.TLS}}}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		c, err := files.New(cfg, hooks)
		if err != nil {
			t.Fatal(err)
		}
		return &connectortest.Subject{
			Server: s, Connector: c, DeadReason: connector.ReasonHookFailed, Lingers: true,
			Settings: map[string]string{
				"certificate": s.Files["certificate"], "key": s.Files["key"], "verify": s.Address, "reload": "reload-app",
			},
			FailReload: func() func() {
				if err := os.WriteFile(broken, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := os.Remove(broken); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}
