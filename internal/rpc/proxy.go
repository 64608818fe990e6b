package rpc

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	proxyTimeout   = 15 * time.Second
	proxyMaxHeader = 16 << 10
)

// ProxyDialer dials through an HTTP proxy by CONNECT (RFC 9110 9.3.6).
// proxyURL is http://[user:password@]host[:port] or https://...; an https
// proxy is verified against roots, nil for the system's. The proxy resolves
// names, and sees nothing but the address and TLS. Errors and logs never show
// user or password.
func ProxyDialer(proxyURL string, roots *x509.CertPool) (Dialer, error) {
	u, err := url.Parse(proxyURL)
	if err != nil || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("proxy URL: want http://host:port or https://host:port")
	}
	p := &proxy{host: u.Hostname(), port: u.Port(), user: u.User}
	switch u.Scheme {
	case "http":
		p.port = or(p.port, "80")
	case "https":
		p.port = or(p.port, "443")
		p.tls = &tls.Config{ServerName: p.host, RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	default:
		return nil, fmt.Errorf("proxy URL: scheme %q: want http or https", u.Scheme)
	}
	return p.dial, nil
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

type proxy struct {
	host, port string
	user       *url.Userinfo
	tls        *tls.Config
}

func (p *proxy) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	at := net.JoinHostPort(p.host, p.port)
	conn, err := Direct(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("connecting to proxy %s: %w", at, err)
	}
	if p.tls != nil {
		secure := tls.Client(conn, p.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("connecting to proxy %s: %w", at, err), conn.Close())
		}
		conn = secure
	}
	tunnel, err := p.connect(ctx, conn, address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("asking proxy %s for %s: %w", at, address, err), conn.Close())
	}
	return tunnel, nil
}

func (p *proxy) connect(ctx context.Context, conn net.Conn, address string) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes the reads below
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if p.user != nil {
		password, _ := p.user.Password()
		basic := &http.Request{Header: http.Header{}}
		basic.SetBasicAuth(p.user.Username(), password)
		req.Header.Set("Proxy-Authorization", basic.Header.Get("Authorization"))
	}
	limited := &io.LimitedReader{R: conn, N: proxyMaxHeader}
	br := bufio.NewReaderSize(limited, 4<<10)
	resp, err := roundTrip(req, conn, br) //nolint:bodyclose // the body of the answer to a CONNECT is the tunnel
	switch {
	case !stop():
		return nil, context.Cause(ctx)
	case err != nil && limited.N <= 0:
		return nil, fmt.Errorf("answer longer than %d bytes", proxyMaxHeader)
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return nil, errors.New("it wants a user and password, or other ones (407)")
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("refused: %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	if br.Buffered() == 0 {
		return conn, nil
	}
	early, err := br.Peek(br.Buffered())
	if err != nil {
		return nil, err
	}
	return &earlyConn{Conn: conn, r: io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)}, nil
}

func roundTrip(req *http.Request, conn net.Conn, br *bufio.Reader) (*http.Response, error) {
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(br, req)
}

// earlyConn gives first what came in one packet with the proxy's answer.
type earlyConn struct {
	net.Conn
	r io.Reader
}

func (c *earlyConn) Read(b []byte) (int, error) { return c.r.Read(b) }
