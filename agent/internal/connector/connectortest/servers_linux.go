package connectortest

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/handshake"
	"github.com/sallyport-pki/sallyport/internal/heldport"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Server is one real server with its files, in a folder of its own.
type Server struct {
	Dir     string // of everything
	TLS     string // of the certificate files, the one that is allowed
	Config  string // main configuration file
	PIDFile string
	Address string // where it serves TLS
	Socket  string // HAProxy's, of level admin
	// Files are the certificate files by pair part: "certificate" and "key", or
	// "combined".
	Files map[string]string

	t    testing.TB
	args []string
	mu   sync.Mutex
	cmd  *exec.Cmd
	out  *log
}

type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func program(t testing.TB, name string) string {
	t.Helper()
	for _, p := range []string{"/usr/sbin/" + name, "/usr/local/sbin/" + name, "/usr/bin/" + name} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("%s is not installed: run \"make tools\"", name)
	return ""
}

func newServer(t testing.TB, dir string, files map[string]string) *Server {
	t.Helper()
	s := &Server{
		t: t, Dir: dir, TLS: filepath.Join(dir, "tls"), Address: heldport.Address(t), Files: map[string]string{}, out: &log{},
		Config: filepath.Join(dir, "server.conf"), PIDFile: filepath.Join(dir, "server.pid"),
	}
	for _, d := range []string{s.TLS, filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for part, name := range files {
		s.Files[part] = filepath.Join(s.TLS, name)
	}
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			t.Logf("server output:\n%s", s.out.String())
		}
	})
	return s
}

// Nginx prepares an nginx; extra goes into its server block.
func Nginx(t testing.TB, dir, extra string) *Server {
	t.Helper()
	s := newServer(t, dir, map[string]string{"certificate": "site.crt", "key": "site.key"})
	s.Write(fmt.Sprintf(`daemon off; worker_processes 2; pid %[1]s; error_log stderr warn;
events { worker_connections 256; }
http {
  access_log off; keepalive_timeout 60s;
  client_body_temp_path %[2]s/tmp; proxy_temp_path %[2]s/tmp; fastcgi_temp_path %[2]s/tmp; uwsgi_temp_path %[2]s/tmp; scgi_temp_path %[2]s/tmp;
  server { listen %[3]s ssl; ssl_certificate %[4]s; ssl_certificate_key %[5]s; %[6]s
    location / { return 200 "answer\n"; } }
}
`, s.PIDFile, dir, s.Address, s.Files["certificate"], s.Files["key"], extra))
	s.args = []string{program(t, "nginx"), "-p", dir, "-c", s.Config, "-e", "stderr"}
	return s
}

// HAProxy prepares a HAProxy.
func HAProxy(t testing.TB, dir string) *Server {
	t.Helper()
	s := newServer(t, dir, map[string]string{"combined": "site.pem"})
	s.Socket = filepath.Join(dir, "admin.sock")
	s.Write(fmt.Sprintf(`global
  stats socket %[3]s mode 600 level admin
  maxconn 256
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend f
  bind %[1]s ssl crt %[2]s
  http-request return status 200 content-type text/plain string answer
`, s.Address, s.Files["combined"], s.Socket))
	s.args = []string{program(t, "haproxy"), "-Ws", "-f", s.Config, "-p", s.PIDFile}
	return s
}

// Binary is the server's program.
func (s *Server) Binary() string { return s.args[0] }

// Write replaces the server's configuration.
func (s *Server) Write(config string) {
	s.t.Helper()
	if err := os.WriteFile(s.Config, []byte(config), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// Break appends what no server understands to the configuration, and gives a
// function that takes it out again.
func (s *Server) Break() (mend func()) {
	s.t.Helper()
	good, err := os.ReadFile(s.Config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Write(string(good) + "\nthis_is_no_directive here;\n")
	return func() { s.Write(string(good)) }
}

// Put writes the pair's files as an operator would.
func (s *Server) Put(pair connector.Pair) {
	s.t.Helper()
	key, err := pki.EncodeKeyPEM(pair.Key())
	if err != nil {
		s.t.Fatal(err)
	}
	chain := pki.EncodeChainPEM(pair.Chain())
	for part, data := range map[string][]byte{"certificate": chain, "key": key, "combined": append(bytes.Clone(chain), key...)} {
		if path := s.Files[part]; path != "" {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// Start starts the server and waits until it shows a certificate.
func (s *Server) Start() {
	s.t.Helper()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Stdout, cmd.Stderr = s.out, s.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.cmd = cmd
	s.mu.Unlock()
	for end := time.Now().Add(time.Minute); ; {
		if _, err := s.Shows("x.test"); err == nil {
			if _, err := os.Stat(s.PIDFile); err == nil {
				return
			}
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s does not serve TLS:\n%s", s.args[0], s.out.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Stop kills the server with all its processes.
func (s *Server) Stop() {
	s.mu.Lock()
	cmd := s.cmd
	s.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		s.t.Logf("killing the server: %v", err)
	}
	_ = cmd.Wait() // killed
}

// Signal sends a signal to the master.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Said is what the server has written.
func (s *Server) Said() string { return s.out.String() }

// Handles waits until the master handles the signal (proc(5): SigCgt).
func (s *Server) Handles(sig syscall.Signal) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
		if err != nil {
			s.t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(status, []byte("\nSigCgt:"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		if mask, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64); err == nil && mask&(1<<(uint(sig)-1)) != 0 {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the server does not handle signal %d", sig)
		}
	}
}

// Shows gives the fingerprint of what the server shows for the name.
func (s *Server) Shows(name string) (pki.Fingerprint, error) {
	chain, err := handshake.Complete(context.Background(), netip.MustParseAddrPort(s.Address), name)
	if err != nil {
		return "", err
	}
	return pki.FingerprintOf(chain[0].Raw), nil
}

// MustShow fails the test unless the server comes to show the pair.
func (s *Server) MustShow(pair connector.Pair) {
	s.t.Helper()
	want := pki.FingerprintOf(pair.Leaf().Raw)
	var have pki.Fingerprint
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if have, err = s.Shows("x.test"); err == nil && have == want {
			return
		}
	}
	s.t.Fatalf("the server shows %s (%v), want %s", have, err, want)
}
