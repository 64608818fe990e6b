package rpc

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// maxPeerChain bounds what a peer can make us parse and verify.
const maxPeerChain = 8

// serverCreds is TLS whose client certificate is optional and is judged after
// the handshake: a bad one then fails the call with a reason, where a failed
// handshake would show the client nothing but a broken connection.
type serverCreds struct {
	credentials.TransportCredentials
	sources map[string]*ownCert
	def     string
	now     func() time.Time
	gate    *gate
}

// ownCert makes a source's SVID into what TLS sends, once per SVID.
type ownCert struct {
	identity.Source
	mu   sync.Mutex
	svid *x509svid.SVID
	cert *tls.Certificate
}

func (o *ownCert) get() (*tls.Certificate, error) {
	svid, err := o.GetX509SVID()
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.svid == svid {
		return o.cert, nil
	}
	cert, err := withRoot(svid, o.Source)
	if err != nil {
		return nil, err
	}
	o.svid, o.cert = svid, cert
	return cert, nil
}

// peerInfo is what is known of the other end of a connection, once per connection.
type peerInfo struct {
	credentials.CommonAuthInfo
	caller   identity.Caller
	notAfter time.Time    // of the caller's SVID
	refused  *fault.Error // a certificate was given and is no good
	conn     net.Conn
}

func (*peerInfo) AuthType() string { return "spiffe" }

func newServerCreds(sources map[string]identity.Source, def string, now func() time.Time, log *slog.Logger) *serverCreds {
	c := &serverCreds{sources: map[string]*ownCert{}, def: def, now: now, gate: newGate(2*runtime.GOMAXPROCS(0), handshakeBound/2)}
	for name, src := range sources {
		c.sources[name] = &ownCert{Source: src}
	}
	c.TransportCredentials = credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequestClientCert,
		// A resumed session would bring back a certificate judged long ago.
		SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := c.source(hello.ServerName).get()
			if err != nil {
				log.ErrorContext(hello.Context(), "no certificate of our own to show", "server_name", hello.ServerName, "error", err)
			}
			return cert, err
		},
	})
	return c
}

func (c *serverCreds) source(serverName string) *ownCert {
	name, ok := strings.CutSuffix(serverName, ServerNameSuffix)
	if src := c.sources[name]; ok && src != nil {
		return src
	}
	return c.sources[c.def]
}

// withRoot gives the SVID's chain with the trust domain's root at its end: an
// agent at first contact knows only the root's hash.
func withRoot(svid *x509svid.SVID, src identity.Source) (*tls.Certificate, error) {
	cert := tlsCertificate(svid)
	// Judged at the SVID's own last moment: whether that is past is for the client to see.
	_, chains, err := x509svid.Verify(svid.Certificates, src, x509svid.WithTime(svid.Certificates[0].NotAfter))
	if err != nil {
		return nil, fmt.Errorf("own SVID: %w", err)
	}
	chain := chains[0]
	if root := chain[len(chain)-1]; !root.Equal(svid.Certificates[len(svid.Certificates)-1]) {
		cert.Certificate = append(cert.Certificate, root.Raw)
	}
	return cert, nil
}

func tlsCertificate(svid *x509svid.SVID) *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

func (c *serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	gated := &gatedConn{Conn: raw, gate: c.gate}
	defer gated.done()
	conn, auth, err := c.TransportCredentials.ServerHandshake(gated)
	if err != nil {
		return nil, nil, err
	}
	state := auth.(credentials.TLSInfo).State
	info := &peerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		caller:         identity.Anonymous,
		conn:           raw,
	}
	if len(state.PeerCertificates) > 0 {
		info.caller, info.refused = c.judge(state.PeerCertificates, c.source(state.ServerName))
		info.notAfter = state.PeerCertificates[0].NotAfter
	}
	if info.caller.Name != "" {
		left := info.notAfter.Sub(c.now())
		left -= min(time.Second, left/2) // before the first call that would be refused
		conn = &mortalConn{Conn: conn, end: time.AfterFunc(left, func() { _ = raw.Close() })}
	}
	return conn, info, nil
}

// mortalConn ends with the SVID it was opened with, so that a client which has
// a new one by then comes back with it instead of being refused. It is the
// backstop for a ConnectionAge too long for the life of the SVIDs.
type mortalConn struct {
	net.Conn
	end *time.Timer
}

func (c *mortalConn) Close() error {
	c.end.Stop()
	return c.Conn.Close()
}

func (c *serverCreds) Clone() credentials.TransportCredentials {
	d := *c
	d.TransportCredentials = c.TransportCredentials.Clone()
	return &d
}

func (c *serverCreds) judge(certs []*x509.Certificate, src identity.Source) (identity.Caller, *fault.Error) {
	now := c.now()
	id, err := verify(certs, src, now)
	if err != nil {
		if late := validity(certs[0], now); late != nil {
			return identity.Anonymous, fault.New(fault.Unauthenticated, ReasonCertificateExpired, "client certificate: %v", late)
		}
		return identity.Anonymous, &fault.Error{Kind: fault.Unauthenticated, Reason: ReasonCertificateInvalid,
			Message: "client certificate: not a valid SVID of this trust domain", Cause: err}
	}
	caller, err := identity.CallerOf(id)
	if err != nil {
		return identity.Anonymous, &fault.Error{Kind: fault.Unauthenticated, Reason: ReasonUnknownIdentity,
			Message: "client certificate: no known kind of caller", Cause: err}
	}
	caller.Key = string(pki.FingerprintOf(certs[0].RawSubjectPublicKeyInfo))
	caller.SVID = certs[0]
	return caller, nil
}

// verify checks a chain as an X.509-SVID of our own trust domain. Federated
// domains, whose bundle a Workload API may also give, are strangers here.
func verify(certs []*x509.Certificate, src identity.Source, now time.Time) (spiffeid.ID, error) {
	if len(certs) > maxPeerChain {
		return spiffeid.ID{}, fmt.Errorf("chain of more than %d certificates", maxPeerChain)
	}
	own, err := src.GetX509SVID()
	if err != nil {
		return spiffeid.ID{}, err
	}
	id, _, err := x509svid.Verify(certs, src, x509svid.WithTime(now))
	if err != nil {
		return spiffeid.ID{}, err
	}
	if !id.MemberOf(own.ID.TrustDomain()) {
		return spiffeid.ID{}, fmt.Errorf("%q is of another trust domain", id)
	}
	return id, nil
}

// validity says whether the certificate's time is wrong by our clock, and that
// it may be our clock that is.
func validity(cert *x509.Certificate, now time.Time) error {
	const f = time.RFC3339
	switch {
	case now.Before(cert.NotBefore):
		return fmt.Errorf("not valid before %s, and the clock says %s: check the clocks of both machines",
			cert.NotBefore.UTC().Format(f), now.UTC().Format(f))
	case now.After(cert.NotAfter):
		return fmt.Errorf("expired on %s, and the clock says %s: renew it, or check the clocks of both machines",
			cert.NotAfter.UTC().Format(f), now.UTC().Format(f))
	}
	return nil
}

// clientTLS authenticates the server as the given service of our trust domain.
func clientTLS(src identity.Source, service string, anonymous bool, now func() time.Time) *tls.Config {
	cfg := baseClientTLS(func(certs []*x509.Certificate) error {
		id, err := verify(certs, src, now())
		if err != nil {
			return err
		}
		return wantService(id, service)
	}, now)
	if !anonymous {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			svid, err := src.GetX509SVID()
			if err != nil {
				return nil, err
			}
			return tlsCertificate(svid), nil
		}
	}
	return cfg
}

// firstContactTLS authenticates the server by the root hash in the token, and
// keeps the root for the caller.
func firstContactTLS(token identity.JoinToken, seen *atomic.Pointer[x509bundle.Bundle], now func() time.Time) *tls.Config {
	return baseClientTLS(func(certs []*x509.Certificate) error {
		if len(certs) > maxPeerChain {
			return fmt.Errorf("chain of more than %d certificates", maxPeerChain)
		}
		root := certs[len(certs)-1]
		if sha256.Sum256(root.Raw) != token.RootHash {
			return errors.New("this is not the control plane the join token was made for: the root's hash differs")
		}
		bundle := x509bundle.FromX509Authorities(token.TrustDomain, []*x509.Certificate{root})
		id, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now()))
		if err != nil {
			return err
		}
		if err := wantService(id, string(identity.RoleDeployer)); err != nil {
			return err
		}
		seen.Store(bundle)
		return nil
	}, now)
}

func baseClientTLS(check func([]*x509.Certificate) error, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// A SPIFFE ID is no DNS name: VerifyConnection does the whole verification.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("server gave no certificate")
			}
			err := check(state.PeerCertificates)
			if err == nil {
				return nil
			}
			if late := validity(state.PeerCertificates[0], now()); late != nil {
				return fmt.Errorf("server certificate: %w", late)
			}
			return fmt.Errorf("server certificate: %w", err)
		},
	}
}

func wantService(id spiffeid.ID, service string) error {
	want, err := identity.ServiceID(id.TrustDomain(), service)
	if err != nil {
		return err
	}
	if id != want {
		return fmt.Errorf("the server is %q, not %q", id, want)
	}
	return nil
}
