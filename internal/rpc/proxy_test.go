package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/heldport"
	"github.com/sallyport-pki/sallyport/internal/pki"

	"crypto/rand"
	"math/big"
)

// connectProxy is a real HTTP proxy for CONNECT on loopback.
type connectProxy struct {
	addr   string
	auth   string // wanted Proxy-Authorization, "" for none
	answer func(conn net.Conn) bool

	mu    sync.Mutex
	asked []string
}

func newProxy(t *testing.T, cfg *tls.Config) *connectProxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{addr: lis.Addr().String()}
	if cfg != nil {
		lis = tls.NewListener(lis, cfg)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() { lis.Close(); wg.Wait() })
	return p
}

func (p *connectProxy) serve(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, req.Method+" "+req.Host)
	answer, auth := p.answer, p.auth
	p.mu.Unlock()
	if answer != nil && !answer(conn) {
		return
	}
	if auth != "" && req.Header.Get("Proxy-Authorization") != auth {
		_, _ = io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		return
	}
	up, err := net.Dial("tcp", req.Host)
	if err != nil {
		_, _ = io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer up.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(up, br); up.Close() })
	_, _ = io.Copy(conn, up)
	conn.Close()
	wg.Wait()
}

func proxyCert(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := pki.GenerateKey(pki.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

func TestProxy(t *testing.T) {
	w := newWorld(t)
	cfg, pool := proxyCert(t)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("ann:s3cret/pw"))
	for name, tt := range map[string]struct {
		proxy *connectProxy
		url   string
		auth  string
	}{
		"http":            {newProxy(t, nil), "http://%s", ""},
		"https":           {newProxy(t, cfg), "https://%s/", ""},
		"http with user":  {newProxy(t, nil), "http://ann:s3cret%%2Fpw@%s", basic},
		"https with user": {newProxy(t, cfg), "https://ann:s3cret%%2Fpw@%s", basic},
	} {
		t.Run(name, func(t *testing.T) {
			tt.proxy.auth = tt.auth
			dialer, err := ProxyDialer(fmt.Sprintf(tt.url, tt.proxy.addr), pool)
			if err != nil {
				t.Fatal(err)
			}
			cc := w.dial(w.source("/agent/web-1"), func(c *ClientConfig) { c.Dialer = dialer })
			if got, err := say(t.Context(), cc, "through"); err != nil || got != "through" {
				t.Fatalf("got %q, %v", got, err)
			}
			if got := strings.Join(tt.proxy.asked, ","); got != "CONNECT "+w.addr {
				t.Fatalf("the proxy was asked %q", got)
			}
		})
	}
}

func TestProxyErrors(t *testing.T) {
	w := newWorld(t)
	plain := newProxy(t, nil)
	cfg, _ := proxyCert(t)
	secure := newProxy(t, cfg)
	gone := heldport.Address(t)
	long := newProxy(t, nil)
	long.answer = func(c net.Conn) bool {
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX: %s\r\n\r\n", strings.Repeat("x", proxyMaxHeader))
		return false
	}
	garbage := newProxy(t, nil)
	garbage.answer = func(c net.Conn) bool { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH\r\n"); return false }
	auth := newProxy(t, nil)
	auth.auth = "Basic other"
	for name, tt := range map[string]struct{ url, address, wants string }{
		"nobody there":    {"http://ann:s3cret@" + gone, w.addr, "connecting to proxy"},
		"target refused":  {"http://ann:s3cret@" + plain.addr, gone, "refused: 502 Bad Gateway"},
		"wrong password":  {"http://ann:s3cret@" + auth.addr, w.addr, "407"},
		"unknown CA":      {"https://ann:s3cret@" + secure.addr, w.addr, "certificate"},
		"endless header":  {"http://ann:s3cret@" + long.addr, w.addr, "longer than"},
		"no HTTP":         {"http://ann:s3cret@" + garbage.addr, w.addr, "malformed HTTP"},
		"TLS where plain": {"https://ann:s3cret@" + plain.addr, w.addr, "connecting to proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			dialer, err := ProxyDialer(tt.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			cc := w.dial(w.source("/agent/web-1"), func(c *ClientConfig) { c.Dialer, c.Address = dialer, tt.address })
			f := want(t, second(say(t.Context(), cc, "")), fault.Transient, fault.ReasonUnavailable)
			has(t, f.Message, tt.wants)
			if strings.Contains(f.Message, "s3cret") || strings.Contains(f.Message, "ann") {
				t.Fatalf("%q shows the user", f.Message)
			}
		})
	}
}

// A proxy that takes the connection and says nothing holds nobody up.
func TestProxySilent(t *testing.T) {
	release := make(chan struct{})
	silent := newProxy(t, nil)
	silent.answer = func(net.Conn) bool { <-release; return false }
	defer close(release)
	dialer, err := ProxyDialer("http://"+silent.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := dialer(ctx, "example.org:443"); done <- err }()
	for silentAsked := 0; silentAsked == 0; {
		silent.mu.Lock()
		silentAsked = len(silent.asked)
		silent.mu.Unlock()
	}
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Fatalf("got %v", err)
	}
}

// What comes in one packet with the answer belongs to the tunnel.
func TestProxyEarlyBytes(t *testing.T) {
	p := newProxy(t, nil)
	p.answer = func(c net.Conn) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nhello, ")
		_, _ = io.WriteString(c, "world")
		return false
	}
	dialer, err := ProxyDialer("http://"+p.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dialer(t.Context(), "example.org:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello, world" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestProxyURL(t *testing.T) {
	for _, u := range []string{"", "proxy:3128", "socks5://proxy:1080", "http://", "http://proxy/path", "http://proxy?x", "http://ann:s3cret@proxy:port", "http://ann:s3cret@pro xy"} {
		if _, err := ProxyDialer(u, nil); err == nil {
			t.Errorf("%q: no error", u)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: the error shows the password: %v", u, err)
		}
	}
}
