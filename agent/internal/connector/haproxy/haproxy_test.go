//go:build linux

package haproxy_test

import (
	"syscall"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/haproxy"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
)

func TestMain(m *testing.M) { connectortest.Main(m) }

func TestConformance(t *testing.T) {
	connectortest.Run(t, func(t *testing.T, dir string) *connectortest.Subject {
		s := connectortest.HAProxy(t, dir)
		cfg := haproxy.Config{Config: pemfile.Config{Allow: []string{s.TLS}}, Binary: s.Binary(), Main: s.Config, PIDFile: s.PIDFile}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		c, err := haproxy.New(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		return &connectortest.Subject{
			Server: s, Connector: c, Judges: true, DeadReason: connector.ReasonServerNotRunning,
			Settings: map[string]string{"combined": s.Files["combined"], "verify": s.Address},
			FailReload: func() func() {
				s.Handles(syscall.SIGUSR2) // just started, it does not yet
				s.Signal(syscall.SIGSTOP)
				return func() { s.Signal(syscall.SIGCONT) }
			},
		}
	})
}
