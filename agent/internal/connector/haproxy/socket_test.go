//go:build linux

package haproxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// site is a HAProxy with a pair to change to, and one to change from.
type site struct {
	*connectortest.Subject
	t          *testing.T
	old, fresh connector.Pair
}

func start(t *testing.T, alter func(s *connectortest.Server)) *site {
	t.Helper()
	s := connectortest.HAProxy(t, t.TempDir())
	ca := connectortest.NewCA(t)
	l := &site{Subject: subject(t, s, s.Socket), t: t, old: ca.Pair(t, "x.test"), fresh: ca.Pair(t, "x.test")}
	s.Put(l.old)
	if alter != nil {
		alter(s)
	}
	s.Start()
	s.Handles(syscall.SIGUSR2)
	return l
}

// workers are the processes of the master.
func (l *site) workers() string {
	l.t.Helper()
	pid, err := os.ReadFile(l.PIDFile)
	if err != nil {
		l.t.Fatal(err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]s/task/%[1]s/children", strings.TrimSpace(string(pid))))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(children)
}

// told says whether the signal waits for the master (proc(5): ShdPnd).
func (l *site) told(sig syscall.Signal) bool {
	l.t.Helper()
	pid, err := os.ReadFile(l.PIDFile)
	if err != nil {
		l.t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/status")
	if err != nil {
		l.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nShdPnd:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		l.t.Fatal(err)
	}
	return mask&(1<<(uint(sig)-1)) != 0
}

// change installs the fresh pair, sees it served, and says whether HAProxy was reloaded for it.
func (l *site) change() (reloaded bool) {
	l.t.Helper()
	before := l.workers()
	l.activate()
	return l.workers() != before
}

// activate installs the fresh pair and sees it served.
func (l *site) activate() (connector.Place, connector.Staged) {
	l.t.Helper()
	place, err := l.Connector.At(l.Settings)
	if err != nil {
		l.t.Fatal(err)
	}
	staged, err := place.Stage(l.t.Context(), l.fresh)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := place.Activate(l.t.Context(), staged); err != nil {
		l.t.Fatal(err)
	}
	if sight := place.Verify(l.t.Context(), l.fresh.Leaf(), time.Minute); sight.View != connector.Right {
		l.t.Fatal(sight)
	}
	return place, staged
}

// say says a line to HAProxy's socket.
func (l *site) say(line string) string {
	l.t.Helper()
	conn, err := net.Dial("unix", l.Socket)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		l.t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(answer)
}

// A loaded file is replaced without a new process, and the next start has it too.
func TestReplacedInMemory(t *testing.T) {
	l := start(t, nil)
	if troubles := l.Connector.Check(t.Context()); len(troubles) > 0 {
		t.Error(troubles)
	}
	l.Signal(syscall.SIGSTOP) // a master that does nothing shows whether it was told anything
	if l.change() || l.told(syscall.SIGUSR2) {
		t.Error("HAProxy was reloaded")
	}
	l.Stop()
	l.Start()
	l.MustShow(l.fresh)
}

// An old file is put back in memory too, however it was written.
func TestPutBackInMemory(t *testing.T) {
	l := start(t, func(s *connectortest.Server) {
		data, err := os.ReadFile(s.Files["combined"])
		if err != nil {
			t.Fatal(err)
		}
		spaced := strings.ReplaceAll(string(data), "-----BEGIN", "\n\n# by hand\n-----BEGIN")
		if err := os.WriteFile(s.Files["combined"], []byte(spaced), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	place, staged := l.activate()
	l.Signal(syscall.SIGSTOP)
	if err := place.Restore(t.Context(), staged); err != nil {
		t.Fatal(err)
	}
	if sight := place.Verify(t.Context(), l.old.Leaf(), time.Minute); sight.View != connector.Right || l.told(syscall.SIGUSR2) {
		t.Errorf("%v, reloaded: %v", sight, l.told(syscall.SIGUSR2))
	}
}

// configured replaces a part of the server's configuration.
func configured(t *testing.T, from, to string) func(s *connectortest.Server) {
	return func(s *connectortest.Server) {
		text, err := os.ReadFile(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		s.Write(strings.ReplaceAll(string(text), from, strings.ReplaceAll(to, "DIR", s.Dir)))
	}
}

// Whatever could come to something else than a reload is reloaded.
func TestReloadedInDoubt(t *testing.T) {
	for _, c := range []struct {
		name   string
		alter  func(s *connectortest.Server)
		before func(l *site)
		says   string // of the check, when it is seen there
	}{
		{name: "somebody else is changing it", before: func(l *site) {
			pem, err := os.ReadFile(l.Files["combined"])
			if err != nil {
				t.Fatal(err)
			}
			if got := l.say("set ssl cert " + l.Files["combined"] + " <<\n" + string(pem)); !strings.Contains(got, "Transaction created") {
				t.Fatal(got)
			}
		}},
		{name: "it is loaded under two names", alter: func(s *connectortest.Server) {
			if err := os.Symlink(s.Files["combined"], filepath.Join(s.Dir, "other.pem")); err != nil {
				t.Fatal(err)
			}
			configured(t, "  http-request", "  bind unix@DIR/other.sock ssl crt DIR/other.pem\n  http-request")(s)
		}},
		{name: "a file goes with it", before: func(l *site) {
			issuer := pki.EncodeChainPEM(l.old.Chain()[1:])
			if err := os.WriteFile(l.Files["combined"]+".issuer", issuer, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "the socket may not", alter: configured(t, "level admin", "level operator"), says: `it needs "level admin"`},
		{name: "the socket is somebody else's", says: "is not answered by HAProxy's worker", before: func(l *site) {
			if err := os.Remove(l.Socket); err != nil {
				t.Fatal(err)
			}
			lis, err := net.Listen("unix", l.Socket)
			if err != nil {
				t.Fatal(err)
			}
			l.t.Cleanup(func() { lis.Close() })
			go answer(l.t, lis, "# filename\n"+l.Files["combined"]+"\n\nName: HAProxy\nPid: 1\n\nSuccess!\n")
		}},
		{name: "there is no socket", says: "no such file", before: func(l *site) {
			if err := os.Remove(l.Socket); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := start(t, c.alter)
			if c.before != nil {
				c.before(l)
			}
			if troubles := strings.Join(l.Connector.Check(t.Context()), "\n"); !strings.Contains(troubles, c.says) || (c.says == "") != (troubles == "") {
				t.Errorf("checked: %q, want %q", troubles, c.says)
			}
			if !l.change() {
				t.Error("it was not reloaded")
			}
		})
	}
}

// answer says the same to every line, and fails the test when a key is said to it.
func answer(t *testing.T, lis net.Listener, text string) {
	for {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(conn).ReadString('\n') // who asked may be gone
		if strings.HasPrefix(line, "set ssl cert") {
			t.Error("a certificate and its key were said to somebody else")
		}
		_, _ = io.WriteString(conn, text)
		_ = conn.Close()
	}
}
