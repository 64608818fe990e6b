//go:build linux

package haproxy_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/haproxy"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == oldHAProxy {
		beOld()
	}
	connectortest.Main(m)
}

func subject(t *testing.T, s *connectortest.Server, socket string) *connectortest.Subject {
	t.Helper()
	cfg := haproxy.Config{Config: pemfile.Config{Allow: []string{s.TLS}}, Binary: s.Binary(), Main: s.Config, PIDFile: s.PIDFile, Socket: socket}
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
			away := func(from, to string) {
				if err := os.Rename(from, to); err != nil {
					t.Fatal(err)
				}
			}
			away(s.Socket, s.Socket+".away")
			return func() {
				away(s.Socket+".away", s.Socket)
				s.Signal(syscall.SIGCONT)
			}
		},
	}
}

func TestConformance(t *testing.T) {
	connectortest.Run(t, func(t *testing.T, dir string) *connectortest.Subject {
		return subject(t, connectortest.HAProxy(t, dir), "")
	})
}

// The same where certificates are replaced in memory.
func TestConformanceInMemory(t *testing.T) {
	connectortest.Run(t, func(t *testing.T, dir string) *connectortest.Subject {
		s := connectortest.HAProxy(t, dir)
		return subject(t, s, s.Socket)
	})
}
