//go:build linux

package scan

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestMain(m *testing.M) { connectortest.Main(m) }

func scanner(t testing.TB, cfg Config) *Scanner {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Names == nil {
		cfg.Names = func() []string { return nil }
	}
	if cfg.Listeners == "" {
		cfg.Listeners = "off"
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func look(t testing.TB, s *Scanner) (all []Sighting) {
	t.Helper()
	if err := s.Scan(t.Context(), func(g Sighting) error { all = append(all, g); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func put(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	ca := connectortest.NewCA(t)
	pair := ca.Pair(t, "x.test")
	key, err := pki.EncodeKeyPEM(pair.Key())
	if err != nil {
		t.Fatal(err)
	}
	chain := pki.EncodeChainPEM(pair.Chain())
	in := func(name string) string { return filepath.Join(dir, name) }
	put(t, in("a/chain.pem"), chain)
	put(t, in("a/combined.pem"), append(bytes.Clone(key), chain...))
	put(t, in("a/der.cer"), pair.Leaf().Raw)
	put(t, in("a/UPPER.CRT"), chain)
	put(t, in("a/key.pem"), key)
	put(t, in("a/notes.txt"), chain) // not by its name
	put(t, in("a/garbage.pem"), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	put(t, in("a/store.pem"), bytes.Repeat(chain, 20)) // a trust store
	put(t, in("a/big.pem"), append(bytes.Repeat([]byte("#"), maxFile), chain...))
	put(t, in("excluded/x.pem"), chain)
	put(t, in("single.conf"), chain) // named itself
	deep := dir
	for range maxDepth + 3 {
		deep = filepath.Join(deep, "d")
	}
	put(t, filepath.Join(deep, "deep.pem"), chain)
	for link, to := range map[string]string{"a/loop": ".", "b-link.pem": "a/chain.pem", "nowhere.pem": "none", "proc": "/proc"} {
		if err := os.Symlink(to, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(in("pipe.pem"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := scanner(t, Config{Paths: []string{dir, in("single.conf"), "/proc", in("none")}, Exclude: []string{in("excluded")}})
	var got []string
	for _, g := range look(t, s) {
		name, err := filepath.Rel(dir, g.Location)
		if err != nil || g.Role != File || !bytes.Equal(g.Chain[0], pair.Leaf().Raw) {
			t.Errorf("%+v", g)
		}
		got = append(got, fmt.Sprint(name, ":", len(g.Chain)))
		for _, der := range g.Chain {
			if bytes.Contains(der, []byte("PRIVATE")) {
				t.Error("a key was taken along")
			}
		}
	}
	if want := "[a/UPPER.CRT:2 a/chain.pem:2 a/combined.pem:2 a/der.cer:1 single.conf:2]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestReferences(t *testing.T) {
	dir := t.TempDir()
	chain := pki.EncodeChainPEM(connectortest.NewCA(t).Pair(t, "x.test").Chain())
	for _, f := range []string{"etc/nginx/tls/a", "tls/b", "tls/client", "ha/one", "ha/certs/two.any", "ha/listed", "ha/ca"} {
		put(t, filepath.Join(dir, f), chain)
	}
	nginx := filepath.Join(dir, "etc/nginx/nginx.conf")
	put(t, nginx, []byte(fmt.Sprintf("# ssl_certificate %[1]s/commented;\nhttp { include sites/*.conf; include nginx.conf; server { ssl_certificate tls/a; ssl_certificate_key tls/key; } }\n", dir)))
	put(t, filepath.Join(dir, "etc/nginx/sites/x.conf"), []byte(fmt.Sprintf("server { ssl_certificate \"%[1]s/tls/b\"; ssl_client_certificate %[1]s/tls/client; ssl_certificate $var; }", dir)))
	haproxy := filepath.Join(dir, "haproxy.cfg")
	put(t, haproxy, []byte(fmt.Sprintf("global\n crt-base %[1]s/ha\n ca-base %[1]s/ha\nfrontend f\n bind :443 ssl crt one crt %[1]s/ha/certs crt-list %[1]s/ha/list ca-file ca # crt commented\n", dir)))
	put(t, filepath.Join(dir, "ha/list"), []byte(fmt.Sprintf("# a list\n%[1]s/ha/listed [alpn h2] x.test\n", dir)))
	var got []string
	for _, g := range look(t, scanner(t, Config{Nginx: nginx, HAProxy: haproxy})) {
		name, err := filepath.Rel(dir, g.Location)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, name)
	}
	slices.Sort(got)
	if want := "[etc/nginx/tls/a ha/ca ha/certs/two.any ha/listed ha/one tls/b tls/client]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// eavesdropper is a TLS listener that notes all it is sent.
type eavesdropper struct {
	addr netip.AddrPort
	mu   sync.Mutex
	got  [][]byte
}

type tap struct {
	net.Conn
	e *eavesdropper
	i int
}

func (c tap) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	c.e.got[c.i] = append(c.e.got[c.i], b[:n]...)
	return n, err
}

func eavesdrop(t *testing.T, cfg *tls.Config) *eavesdropper {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &eavesdropper{addr: netip.MustParseAddrPort(lis.Addr().String())}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := lis.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.got = append(e.got, nil)
			i := len(e.got) - 1
			e.mu.Unlock()
			wg.Go(func() {
				defer raw.Close()
				conn := tls.Server(tap{raw, e, i}, cfg)
				if conn.Handshake() == nil {
					_, _ = io.Copy(io.Discard, conn)
				}
			})
		}
	})
	t.Cleanup(func() { lis.Close(); wg.Wait() })
	return e
}

func TestListeners(t *testing.T) {
	ca := connectortest.NewCA(t)
	certs := map[string]tls.Certificate{}
	for _, n := range []string{"default.test", "x.test"} {
		pair := ca.Pair(t, n)
		c := tls.Certificate{PrivateKey: pair.Key()}
		for _, x := range pair.Chain() {
			c.Certificate = append(c.Certificate, x.Raw)
		}
		certs[n] = c
	}
	choose := func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName == "x.test" {
			c := certs["x.test"]
			return &c, nil
		}
		c := certs["default.test"]
		return &c, nil
	}
	modern := eavesdrop(t, &tls.Config{GetCertificate: choose, MinVersion: tls.VersionTLS13})
	old := eavesdrop(t, &tls.Config{GetCertificate: choose, MaxVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert})
	plain, err := net.Listen("tcp", "127.0.0.1:0") // a listener that is no TLS
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	s := scanner(t, Config{Listeners: "loopback", Names: func() []string { return []string{"x.test", "default.test", "unknown.test", "x.test"} }})
	for _, e := range []*eavesdropper{modern, old} {
		var got []string
		for _, g := range look(t, s) {
			if g.Location == e.addr.String() {
				chain, err := pki.ParseChainDER(g.Chain)
				if err != nil || len(chain) != 2 || g.Role != Listener {
					t.Errorf("%+v, %v", g, err)
				}
				got = append(got, g.ServerName+"="+chain[0].DNSNames[0])
			}
		}
		slices.Sort(got)
		if want := "[=default.test default.test=default.test x.test=x.test]"; fmt.Sprint(got) != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
	for _, e := range []*eavesdropper{modern, old} {
		e.mu.Lock()
		for _, sent := range e.got {
			onlyHello(t, sent)
		}
		e.mu.Unlock()
	}
	s.ExcludePorts = []uint16{modern.addr.Port()}
	for _, g := range look(t, s) {
		if g.Location == modern.addr.String() {
			t.Error("an excluded port was asked")
		}
	}
	s.Listeners = "off"
	if got := look(t, s); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// onlyHello fails the test if the TLS records sent are more than the opening of
// a handshake (RFC 8446 5.1, 4.1.2).
func onlyHello(t *testing.T, sent []byte) {
	t.Helper()
	for rest := sent; len(rest) >= 5; {
		size := 5 + int(rest[3])<<8 + int(rest[4])
		switch kind := rest[0]; {
		case kind == 22 && len(rest) > 5 && rest[5] == 1: // a handshake message, ClientHello
		case kind == 20: // change_cipher_spec, between two of them
		default:
			t.Errorf("a record of type %d was sent", kind)
		}
		rest = rest[min(size, len(rest)):]
	}
}

func TestBounds(t *testing.T) {
	dir := t.TempDir()
	ca := connectortest.NewCA(t)
	data := pki.EncodeChainPEM(ca.Pair(t, "x.test").Chain())
	for i := range 20 {
		put(t, filepath.Join(dir, fmt.Sprint(i, ".pem")), data)
	}
	c := &counter{emit: func(Sighting) error { return nil }, sightings: maxSightings - 5}
	s := scanner(t, Config{Paths: []string{dir}})
	if err := s.files(t.Context(), c); !errors.Is(err, errEnough) {
		t.Error(err)
	}
	boom := errors.New("boom")
	if err := s.Scan(t.Context(), func(Sighting) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Scan(ctx, func(Sighting) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSocketTable(t *testing.T) {
	const v4 = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	const v6 = `  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:0CEA 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1
`
	got, err := socketTable(strings.NewReader(v4))
	if err != nil || fmt.Sprint(got) != "[127.0.0.1:8080 0.0.0.0:443]" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err = socketTable(strings.NewReader(v6)); err != nil || fmt.Sprint(got) != "[[::1]:3306]" {
		t.Errorf("%v, %v", got, err)
	}
}

// sample is a file as it is found on hosts.
func sample(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRealConfigs reads configurations as servers have them (nginx -t and haproxy -c take these where their files are there).
func TestRealConfigs(t *testing.T) {
	var got []string
	for _, d := range nginxConfig(sample(t, "nginx.conf")) {
		if slices.Contains(nginxDirectives, d[0]) || d[0] == "include" {
			got = append(got, d[1])
		}
	}
	if want := []string{
		"/etc/nginx/modules-enabled/*.conf", "/etc/nginx/mime.types", "tls/shop.crt", "/etc/nginx/tls/partners ca.pem", "/etc/nginx/tls/the chain.pem",
		"/etc/nginx/tls/client.crt", "$pair.crt", "/etc/nginx/conf.d/*.conf", "/etc/nginx/sites-enabled/*",
	}; !slices.Equal(got, want) {
		t.Errorf("nginx: %q", got)
	}
	crts, lists := haproxyConfig(sample(t, "haproxy.cfg"))
	if want := []string{
		"/etc/ssl/private/shop.pem", "/etc/haproxy/tls/with blank.pem", "/etc/ssl/certs/partners.pem", "/etc/ssl/certs/internal-ca.pem", "/etc/ssl/private/client.pem",
	}; !slices.Equal(crts, want) || !slices.Equal(lists, []string{"/etc/haproxy/tls/list.txt"}) {
		t.Errorf("haproxy: %q, %q", crts, lists)
	}
	if got, want := crtList(sample(t, "crt-list.txt")), []string{"/etc/haproxy/tls/default.pem", "/etc/haproxy/tls/api.pem", "/etc/haproxy/tls/wild.pem"}; !slices.Equal(got, want) {
		t.Errorf("crt-list: %q", got)
	}
}

// FuzzSocketTable: each address that is found stands in a line that says LISTEN, as the kernel writes it, in their order, and there are
// no more than are asked.
func FuzzSocketTable(f *testing.F) {
	f.Add(sample(f, "tcp")) // of /proc/net
	f.Add(sample(f, "tcp6"))
	f.Add("x\n 0: 0100007F:1F90 00000000:0000 0A\n")
	f.Add("x\n 0: 00:1 2 0A\n")
	f.Add("x\n" + strings.Repeat("0: 0100007F:1F90 0 0A\n", maxSockets+1))
	f.Fuzz(func(t *testing.T, text string) {
		out, err := socketTable(strings.NewReader(text))
		if err != nil {
			return
		}
		var want []string
		for i, line := range strings.Split(text, "\n") {
			if f := strings.Fields(line); i > 0 && len(f) > 3 && f[3] == "0A" && len(want) < maxSockets {
				host, port, _ := strings.Cut(strings.ToUpper(f[1]), ":")
				want = append(want, host+":"+fmt.Sprintf("%04s", strings.TrimLeft(port, "0")))
			}
		}
		var got []string
		for _, a := range out {
			host := ""
			for w := a.Addr().AsSlice(); len(w) > 0; w = w[4:] {
				host += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(w))
			}
			got = append(got, fmt.Sprintf("%s:%04X", host, a.Port()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func FuzzCertificates(f *testing.F) {
	pair := connectortest.NewCA(f).Pair(f, "x.test")
	key, err := pki.EncodeKeyPEM(pair.Key())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pki.EncodeChainPEM(pair.Chain()))
	f.Add(pair.Leaf().Raw)
	f.Add(append(key, pki.EncodeChainPEM(pair.Chain())...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, der := range certificates(data) {
			if _, err := pki.ParseChainDER([][]byte{der}); err != nil && len(der) <= 64<<10 {
				t.Errorf("took what is no certificate: %v", err)
			}
		}
	})
}

func FuzzServerConfigs(f *testing.F) {
	for _, name := range []string{"nginx.conf", "haproxy.cfg", "crt-list.txt"} {
		f.Add(sample(f, name))
	}
	f.Add(`http { server { ssl_certificate "a b"; include x; } } # y`)
	f.Add("bind :443 ssl crt /x crt 'a\\b' # c\n crt-base /y\n")
	f.Add(`a\`)
	f.Fuzz(func(_ *testing.T, text string) {
		start := time.Now()
		nginxConfig(text)
		haproxyConfig(text)
		crtList(text)
		if time.Since(start) > 10*time.Second {
			panic("too slow")
		}
	})
}
