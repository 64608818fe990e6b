package scan

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/handshake"
)

// The bounds of asking listeners.
const (
	maxSockets   = 5000
	maxListeners = 500
	maxNames     = 50
	parallel     = 4
	askTimeout   = 3 * time.Second
)

func (s *Scanner) listeners(ctx context.Context, c *counter) error {
	if s.Listeners == "off" {
		return nil
	}
	addresses, err := s.listening()
	if err != nil {
		s.Log.DebugContext(ctx, "listeners not scanned", "error", err)
		return nil
	}
	names := s.Names()
	slices.Sort(names)
	names = slices.Compact(names)
	names = names[:min(len(names), maxNames)]
	seen := make([][]Sighting, len(addresses))
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i, a := range addresses {
		slots <- struct{}{}
		if ctx.Err() != nil {
			<-slots
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			seen[i] = ask(ctx, a, names)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, of := range seen {
		for _, sighting := range of {
			if err := c.add(sighting); err != nil {
				return err
			}
		}
	}
	return nil
}

// listening lists where this host listens, by an address it can be asked at.
func (s *Scanner) listening() ([]netip.AddrPort, error) {
	sockets, err := listeningSockets()
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range sockets {
		ip := a.Addr().Unmap()
		switch {
		case slices.Contains(s.ExcludePorts, a.Port()):
			continue
		case ip == netip.IPv4Unspecified():
			ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case ip == netip.IPv6Unspecified(): // which may take IPv4 too
			out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port()))
			ip = netip.IPv6Loopback()
		case !ip.IsLoopback() && s.Listeners == "loopback":
			continue
		}
		out = append(out, netip.AddrPortFrom(ip, a.Port()))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	out = slices.Compact(out)
	return out[:min(len(out), maxListeners)], nil
}

// ask asks one listener without a name, and then for each name. A name is
// reported if it brings up another certificate, or one that is for it.
func ask(ctx context.Context, a netip.AddrPort, names []string) []Sighting {
	plain, err := peek(ctx, a, "")
	var alert *net.OpError
	if err != nil && (!errors.As(err, &alert) || alert.Op != "remote error") {
		return nil // no TLS: one that wants a name says so in TLS
	}
	var out []Sighting
	if err == nil {
		out = append(out, sighting(a, "", plain))
	}
	for _, n := range names {
		chain, err := peek(ctx, a, n)
		if err != nil || plain != nil && chain[0].Equal(plain[0]) && chain[0].VerifyHostname(n) != nil {
			continue
		}
		out = append(out, sighting(a, n, chain))
	}
	return out
}

func peek(ctx context.Context, a netip.AddrPort, name string) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return handshake.Peek(ctx, a, name)
}

func sighting(a netip.AddrPort, name string, chain []*x509.Certificate) Sighting {
	s := Sighting{Role: Listener, Location: a.String(), ServerName: name}
	for _, c := range chain {
		s.Chain = append(s.Chain, c.Raw)
	}
	return s
}

// socketTable reads /proc/net/tcp or tcp6 (proc_net_tcp.txt of the kernel): the
// local addresses in state LISTEN. The address is in the byte order of the
// machine, in words of 32 bits.
func socketTable(table io.Reader) ([]netip.AddrPort, error) {
	const listen = "0A"
	var out []netip.AddrPort
	lines := bufio.NewScanner(table)
	for n := 1; lines.Scan() && len(out) < maxSockets; n++ {
		f := strings.Fields(lines.Text())
		if n == 1 || len(f) < 4 || f[3] != listen {
			continue
		}
		host, port, ok := strings.Cut(f[1], ":")
		words, err := hex.DecodeString(host)
		if !ok || err != nil || len(words) != 4 && len(words) != 16 {
			return nil, fmt.Errorf("line %d: %q is not an address", n, f[1])
		}
		num, err := strconv.ParseUint(port, 16, 16)
		if err != nil {
			return nil, fmt.Errorf("line %d: %q is not a port", n, port)
		}
		for w := words; len(w) > 0; w = w[4:] {
			binary.BigEndian.PutUint32(w, binary.NativeEndian.Uint32(w))
		}
		ip, _ := netip.AddrFromSlice(words)
		out = append(out, netip.AddrPortFrom(ip, uint16(num)))
	}
	return out, lines.Err()
}
