//go:build linux

package nginx_test

import (
	"syscall"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/nginx"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
)

func TestMain(m *testing.M) { connectortest.Main(m) }

func subject(t *testing.T, s *connectortest.Server) *connectortest.Subject {
	t.Helper()
	cfg := nginx.Config{Config: pemfile.Config{Allow: []string{s.TLS}}, Binary: s.Binary(), Main: s.Config, PIDFile: s.PIDFile}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	c, err := nginx.New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &connectortest.Subject{
		Server: s, Connector: c, Judges: true, Careful: true, DeadReason: connector.ReasonServerNotRunning,
		Settings: map[string]string{"certificate": s.Files["certificate"], "key": s.Files["key"], "verify": s.Address},
		FailReload: func() func() {
			s.Signal(syscall.SIGSTOP) // a master that hangs
			return func() { s.Signal(syscall.SIGCONT) }
		},
	}
}

func TestConformance(t *testing.T) {
	connectortest.Run(t, func(t *testing.T, dir string) *connectortest.Subject {
		return subject(t, connectortest.Nginx(t, dir, ""))
	})
}
