package connector

import (
	"context"
	"crypto/x509"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/handshake"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// The settings of every connector.
const (
	// SettingVerify is host:port of the TLS listener on this host that must serve the certificate.
	SettingVerify = "verify"
	// SettingServerName is the name to ask for; by default the certificate's first DNS name.
	SettingServerName = "server_name"
)

const (
	// A server's reload takes between some milliseconds and seconds: the pause between looks is a share of what it took so far,
	// but no shorter than a look itself, so that looking is not what keeps a slow server from its reload.
	firstLook = 5 * time.Millisecond
	share     = 16
	slowLook  = time.Second
	oneLook   = 5 * time.Second
	// enough looks in a row: each may meet another worker, so more of them tell more than a longer pause between. They come one
	// after the other: several at once are more than an old worker that still accepts can take, and meet new ones only.
	enough   = 5
	nextLook = 1 * time.Millisecond
	// certain looks are enough where it is known that no old worker accepts any more; then they may come at once.
	certain = 2
)

// Listener is where a certificate must be seen. The zero value is nowhere.
type Listener struct {
	address    string
	serverName string
}

// ReadListener takes the listener out of a target's settings.
func ReadListener(s *Settings) (Listener, error) {
	l := Listener{address: s.Take(SettingVerify), serverName: s.Take(SettingServerName)}
	if l.address != "" {
		if _, _, err := net.SplitHostPort(l.address); err != nil {
			return l, fault.New(fault.Permanent, ReasonSettingsRefused, "%s: %q is not host:port", SettingVerify, clip(l.address))
		}
	}
	if l.serverName != "" {
		if _, err := pki.ParseDNS(l.serverName); err != nil {
			return l, fault.New(fault.Permanent, ReasonSettingsRefused, "%s: %w", SettingServerName, err)
		}
	}
	return l, nil
}

// Address is host:port, empty for nowhere.
func (l Listener) Address() string { return l.address }

// Verify looks until the certificate is served, at most so long. While a server
// reloads, its old workers may answer in between: it must be seen some times in
// a row, unless there is no time to wait; less often, and at once, where alone
// says that none but new workers are left.
func (l Listener) Verify(ctx context.Context, want *x509.Certificate, wait time.Duration, alone bool) Sight {
	if l.address == "" {
		return Sight{Detail: "the target's settings name no address to verify"}
	}
	ctx, cancel := context.WithTimeout(ctx, wait+oneLook)
	defer cancel()
	begun := time.Now()
	deadline := begun.Add(wait)
	enough := enough
	var last Sight
	if alone {
		enough = certain
		if last = l.together(ctx, want, certain); last.View == Right {
			return last
		}
	}
	for inRow := 0; ; {
		asked := time.Now()
		sight := l.look(ctx, want)
		if ctx.Err() != nil && last.Address != "" { // it was cut off
			return last
		}
		last = sight
		pause := nextLook
		if sight.View == Right {
			inRow++ // a row that has begun is brought to its end, even if it is late
		} else {
			inRow, pause = 0, min(max(firstLook, time.Since(asked), time.Since(begun)/share), slowLook)
		}
		if inRow >= enough || wait == 0 || inRow == 0 && time.Now().Add(pause).After(deadline) {
			return last
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(pause):
		}
	}
}

// together looks so many times at once. It is right if all are.
func (l Listener) together(ctx context.Context, want *x509.Certificate, times int) (sight Sight) {
	sights := make([]Sight, times)
	var all sync.WaitGroup
	for i := range sights {
		all.Go(func() { sights[i] = l.look(ctx, want) })
	}
	all.Wait()
	for _, sight = range sights {
		if sight.View != Right {
			break
		}
	}
	return sight
}

// look asks all local addresses once: one that serves the certificate makes it
// right, one that serves another makes it wrong whatever the others do.
func (l Listener) look(ctx context.Context, want *x509.Certificate) Sight {
	s := Sight{Address: l.address}
	addresses, err := handshake.Local(ctx, l.address)
	if err != nil {
		s.Detail = err.Error()
		return s
	}
	for _, a := range addresses {
		chain, err := handshake.Complete(ctx, a, l.nameFor(want))
		if err != nil {
			if s.View == CannotSee {
				s.Detail = err.Error()
			}
			continue
		}
		s.Served = pki.FingerprintOf(chain[0].Raw)
		if !chain[0].Equal(want) {
			s.View = Wrong
			return s
		}
		s.View = Right
	}
	return s
}

// nameFor is the server name to ask for: a wildcard stands for any label.
func (l Listener) nameFor(want *x509.Certificate) string {
	if l.serverName != "" {
		return l.serverName
	}
	if len(want.DNSNames) == 0 {
		return ""
	}
	if rest, wild := strings.CutPrefix(want.DNSNames[0], "*."); wild {
		return "sallyport-verify." + rest
	}
	return want.DNSNames[0]
}
