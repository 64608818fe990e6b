package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Site is a TLS server with its certificate in files.
type Site struct {
	*Process
	// Kind is the software: "nginx" or "haproxy".
	Kind string
	// Address is where it serves TLS.
	Address string
	// TLSDir is the folder the certificate lies in, the one that an agent must be allowed to write.
	TLSDir string
	// Config is the server's main configuration file.
	Config string
	// PIDFile holds the master's process id.
	PIDFile string
	// Certificate and Key are the files in use; haproxy has both in Certificate.
	Certificate, Key string
	// Socket is haproxy's admin socket.
	Socket string

	lab     *Lab
	command Command
	enter   func(func() error) error // runs a function where the server is
}

// ErrNotInstalled says that the server is not on this machine.
var ErrNotInstalled = errors.New("not installed")

// Nginx starts nginx with one TLS site for name, on a self-signed certificate to begin with.
func (l *Lab) Nginx(ctx context.Context, id, name string) (*Site, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	return l.NginxAt(ctx, id, name, fmt.Sprintf("127.0.0.1:%d", port), nil, func(f func() error) error { return f() })
}

// NginxAt is Nginx at an address of another network namespace: prefix starts a program there, enter runs a function there.
func (l *Lab) NginxAt(ctx context.Context, id, name, address string, prefix []string, enter func(func() error) error) (*Site, error) {
	bin, err := look("nginx")
	if err != nil {
		return nil, err
	}
	s, _, err := l.site("nginx", id, name)
	if err != nil {
		return nil, err
	}
	s.Address, s.enter = address, enter
	dir := filepath.Join(l.Dir, id)
	workers := ""
	if aloneInNamespace() {
		workers = "user root;\n"
	}
	config := workers + fmt.Sprintf(`worker_processes 2;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log warn;
daemon off;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path %[1]s/tmp; proxy_temp_path %[1]s/tmp; fastcgi_temp_path %[1]s/tmp; uwsgi_temp_path %[1]s/tmp; scgi_temp_path %[1]s/tmp;
  server {
    listen %[2]s ssl;
    server_name %[3]s;
    ssl_certificate %[4]s;
    ssl_certificate_key %[5]s;
    location / { return 200 "served by nginx\n"; }
  }
}
`, dir, address, name, s.Certificate, s.Key)
	s.Config, s.PIDFile = filepath.Join(dir, "nginx.conf"), filepath.Join(dir, "nginx.pid")
	if err := os.WriteFile(s.Config, []byte(config), 0o644); err != nil {
		return nil, err
	}
	s.command = Command{Name: id, Path: bin, Args: []string{"-p", dir, "-c", s.Config, "-e", filepath.Join(dir, "error.log")}, Prefix: prefix}
	return s, s.Restart(ctx)
}

// HAProxy starts haproxy with one TLS frontend for name, on a self-signed certificate to begin with.
func (l *Lab) HAProxy(ctx context.Context, id, name string) (*Site, error) {
	return l.haproxy(ctx, id, name, "")
}

// HAProxyOfOwnCAs is HAProxy that does not read all CAs of the system at each start: its HTTP client is told of one.
func (l *Lab) HAProxyOfOwnCAs(ctx context.Context, id, name string) (*Site, error) {
	ca := filepath.Join(l.Dir, id+"-ca.pem")
	if err := SelfSigned("ca", ca, os.DevNull); err != nil {
		return nil, err
	}
	return l.haproxy(ctx, id, name, "  httpclient.ssl.ca-file "+ca+"\n")
}

func (l *Lab) haproxy(ctx context.Context, id, name, global string) (*Site, error) {
	bin, err := look("haproxy")
	if err != nil {
		return nil, err
	}
	s, port, err := l.site("haproxy", id, name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(l.Dir, id)
	s.Certificate = filepath.Join(s.TLSDir, "site.pem")
	s.Key = ""
	if err := os.Remove(s.Certificate); err != nil { // with a key in it, it must not be readable by all
		return nil, err
	}
	if err := SelfSigned(name, s.Certificate, s.Certificate); err != nil {
		return nil, err
	}
	s.Socket = filepath.Join(dir, "admin.sock")
	config := fmt.Sprintf(`global
  stats socket %[1]s mode 600 level admin
  maxconn 256
%[4]sdefaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend tls
  bind 127.0.0.1:%[2]d ssl crt %[3]s
  http-request return status 200 content-type text/plain string "served by haproxy\n"
`, s.Socket, port, s.Certificate, global)
	s.Config, s.PIDFile = filepath.Join(dir, "haproxy.cfg"), filepath.Join(dir, "haproxy.pid")
	if err := os.WriteFile(s.Config, []byte(config), 0o644); err != nil {
		return nil, err
	}
	s.command = Command{Name: id, Path: bin, Args: []string{"-Ws", "-f", s.Config, "-p", s.PIDFile}}
	return s, s.Restart(ctx)
}

func look(name string) (string, error) {
	for _, path := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotInstalled)
}

// site prepares the folder of one server.
func (l *Lab) site(kind, id, name string) (*Site, int, error) {
	dir := filepath.Join(l.Dir, id)
	s := &Site{lab: l, enter: func(f func() error) error { return f() }, Kind: kind, TLSDir: filepath.Join(dir, "tls")}
	s.Certificate, s.Key = filepath.Join(s.TLSDir, "site.pem"), filepath.Join(s.TLSDir, "site.key")
	for _, d := range []string{s.TLSDir, filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, 0, err
		}
	}
	port, err := FreePort()
	if err != nil {
		return nil, 0, err
	}
	s.Address = fmt.Sprintf("127.0.0.1:%d", port)
	return s, port, SelfSigned(name, s.Certificate, s.Key)
}

// Restart starts the server, stopping it first if it runs, and waits until it serves TLS.
func (s *Site) Restart(ctx context.Context) error {
	if s.Process != nil {
		if err := s.Stop(); err != nil {
			return err
		}
	}
	p, err := s.lab.Start(s.command)
	if err != nil {
		return err
	}
	s.Process = p
	return Await(ctx, time.Minute, s.Name+" to serve", func() error {
		return s.enter(func() error {
			_, err := Served(ctx, s.Address, "")
			return err
		})
	}, p)
}

// Connector is the YAML, below "connectors:", by which an agent's configuration enables the site's software.
func (s *Site) Connector() string {
	return fmt.Sprintf("  %s:\n    allow: [%s]\n    config: %s\n    pid_file: %s\n", s.Kind, s.TLSDir, s.Config, s.PIDFile)
}

// InMemory is what to add to Connector so that haproxy has certificates replaced in its memory instead of being reloaded.
func (s *Site) InMemory() string { return "    socket: " + s.Socket + "\n" }

// Workers are the processes that the master has started and that still run.
func (s *Site) Workers() (string, error) {
	master, err := s.Master()
	if err != nil {
		return "", err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", master))
	return string(children), err
}

// Settings are those of a target that is this site.
func (s *Site) Settings() map[string]string {
	if s.Kind == "haproxy" {
		return map[string]string{"combined": s.Certificate, "verify": s.Address}
	}
	return map[string]string{"certificate": s.Certificate, "key": s.Key, "verify": s.Address}
}

// SelfSign puts a new certificate for name that nobody trusts into the server's files. The server is not told.
func (s *Site) SelfSign(name string) error {
	if s.Key == "" {
		return SelfSigned(name, s.Certificate, s.Certificate)
	}
	return SelfSigned(name, s.Certificate, s.Key)
}

// Master is the process to signal: the one that its file of the process id names.
func (s *Site) Master() (int, error) {
	text, err := os.ReadFile(s.PIDFile)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Served asks the TLS server at address for name and gives the chain it shows, leaf first, whoever issued it.
func Served(ctx context.Context, address, name string) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}} //nolint:gosec // what is served is what is asked
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates, nil
}

// Fingerprint is the lower-case hex SHA-256 of the certificate.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// SelfSigned writes a certificate for name that nobody trusts, valid for a day. The two files may be the same.
func SelfSigned(name, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "placeholder"}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if certFile == keyFile {
		return os.WriteFile(certFile, append(cert, private...), 0o600)
	}
	if err := os.WriteFile(certFile, cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(keyFile, private, 0o600)
}
