// Package handshake asks a TLS server on this host which certificate it shows.
//
// It guarantees that the question is bounded in time, goes to this host alone,
// and trusts nothing of the answer: whether the certificate is the right one is
// a comparison, not a validation.
package handshake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// timeout bounds one handshake.
const timeout = 5 * time.Second

// maxChain bounds what a peer can make us keep.
const maxChain = 16

// errSeen ends a handshake that has shown what was asked for.
var errSeen = errors.New("seen enough")

// Peek gives the chain that the server at address shows for the name, leaf
// first. An empty name asks without SNI. The server never gets more than the
// opening of a handshake.
func Peek(ctx context.Context, address netip.AddrPort, name string) ([]*x509.Certificate, error) {
	chain, err := ask(ctx, address, name, true)
	if errors.Is(err, errSeen) {
		return chain, nil
	}
	return nil, err
}

// Complete is Peek with the handshake brought to its end, so that the server
// has proven its key. A server that then refuses us for want of a client
// certificate has done so too.
func Complete(ctx context.Context, address netip.AddrPort, name string) ([]*x509.Certificate, error) {
	chain, err := ask(ctx, address, name, false)
	var alert *net.OpError
	if err == nil || errors.As(err, &alert) && alert.Op == "remote error" && len(chain) > 0 {
		return chain, nil
	}
	return nil, err
}

func ask(ctx context.Context, address netip.AddrPort, name string, hush bool) (chain []*x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address.String())
	if err != nil {
		return nil, err
	}
	conn := &quiet{Conn: raw}
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{
		ServerName:             name,
		InsecureSkipVerify:     true,             //nolint:gosec // what is shown is compared, not trusted
		MinVersion:             tls.VersionTLS10, //nolint:gosec // old servers' certificates are of interest too
		CipherSuites:           suites(),
		SessionTicketsDisabled: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			chain, err = parse(raw)
			if err == nil && hush {
				conn.hushed = true
				err = errSeen
			}
			return err
		},
	})
	err = client.HandshakeContext(ctx)
	return chain, err
}

// suites are all that Go knows, as old servers' certificates are of interest too.
func suites() (ids []uint16) {
	for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		ids = append(ids, s.ID)
	}
	return ids
}

func parse(raw [][]byte) ([]*x509.Certificate, error) {
	if len(raw) == 0 {
		return nil, errors.New("the server shows no certificate")
	}
	chain := make([]*x509.Certificate, 0, min(len(raw), maxChain))
	for _, der := range raw[:min(len(raw), maxChain)] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the server shows a certificate that cannot be read: %w", err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// quiet swallows what TLS would still send once the certificate was seen.
type quiet struct {
	net.Conn
	hushed bool
}

func (q *quiet) Write(b []byte) (int, error) {
	if q.hushed {
		return len(b), nil
	}
	return q.Conn.Write(b)
}

// Local gives the addresses of this host that host:port means, or says why it
// must not be asked: an agent connects to its own host only, whatever the
// control plane names.
func Local(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%q is not host:port", address)
	}
	num, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil || num < 1 {
		return nil, fmt.Errorf("%q is not a port", port)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	own, err := ownAddresses()
	if err != nil {
		return nil, err
	}
	var local []netip.AddrPort
	for _, ip := range ips {
		ip = ip.Unmap()
		switch ip { // what a server listens on, taken for where it can be asked
		case netip.IPv4Unspecified():
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case netip.IPv6Unspecified():
			ip = netip.IPv6Loopback()
		}
		if ip.IsLoopback() || own[ip.WithZone("")] {
			local = append(local, netip.AddrPortFrom(ip, uint16(num)))
		}
	}
	if len(local) == 0 {
		return nil, fmt.Errorf("%s is not this host", host)
	}
	return local, nil
}

func ownAddresses() (map[netip.Addr]bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := map[netip.Addr]bool{}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own, nil
}
