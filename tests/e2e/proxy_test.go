package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestThroughAProxy: the agent reaches the control plane through a real HTTP proxy by CONNECT, with user and password, and by
// no other way.
func TestThroughAProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	_, port, err := net.SplitHostPort(w.plane.Address)
	must(t, err)
	proxy := ok(w.TinyProxy(t.Context(), "proxy", port, "branch", "let-me-out"))(t)
	t.Cleanup(func() { w.show(t, proxy.Process) })
	credentials := filepath.Join(w.Dir, "proxy-credentials")
	must(t, os.WriteFile(credentials, []byte("branch:let-me-out\n"), 0o600))

	through := fmt.Sprintf("proxy: http://%s\nproxy_credentials_file: %s\n", proxy.Address, credentials)
	h := w.nginx(t, "branch", through)
	h.deploy(t, "corp")
	h.healthy(t, 1)
	h.renew(t)
	h.healthy(t, 2)

	out := netip.MustParseAddrPort(proxy.Address)
	all := ok(sockets(h.PID()))(t)
	connected := 0
	for _, s := range all {
		if s.listening {
			t.Errorf("the agent listens on %s", s.local)
		}
		if s.remote == out {
			connected++
		} else if s.remote == netip.MustParseAddrPort(w.plane.Address) {
			t.Errorf("the agent has a connection past the proxy: %v", s)
		}
	}
	if connected == 0 {
		t.Errorf("the agent has no connection to the proxy: %v", all)
	}
	journal := string(ok(os.ReadFile(proxy.Journal))(t))
	if !strings.Contains(journal, "CONNECT "+w.plane.Address) {
		t.Errorf("the proxy does not know of it:\n%s", journal)
	}
	if text := h.Output(); strings.Contains(text, "let-me-out") {
		t.Error("the proxy's password is in the agent's log")
	}

	// The proxy goes away and comes back: so does the agent, by itself.
	must(t, proxy.Stop())
	w.do(t, "renew", "deployment", h.Name)
	again := ok(w.Start(lab.Command{Name: "proxy-again", Path: "/usr/bin/tinyproxy", Args: []string{"-d", "-c", filepath.Join(w.Dir, "proxy.conf")}}))(t)
	t.Cleanup(func() { w.show(t, again) })
	h.healthy(t, 3)
}
