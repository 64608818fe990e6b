// Package pebbletest is a public-like ACME CA inside the calling process, for tests and the demonstration: Pebble with its own
// DNS, its own TLS endpoint, and faults on demand.
//
// It guarantees that Pebble cannot dead-lock (requests are served one at a time, see serialised), that nothing outlives Close,
// and that validation is real: challenges are fetched over HTTP from the host the name resolves to.
// It is never a CA for anything else: its keys are new at each start and nothing is stored.
package pebbletest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/letsencrypt/challtestsrv"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/core"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Options of a Pebble; the zero value works.
type Options struct {
	// Address to listen on without port; 127.0.0.1 when empty.
	Address string
	// HTTPPort is where HTTP-01 challenges are fetched; 80 when 0.
	HTTPPort int
	// Profiles by name with their validity. Without any there is "default", 90 days. An order that names none gets a
	// random one, as Pebble does it.
	Profiles map[string]time.Duration
	// EABKeys by key id, base64url; with any of them an account needs one.
	EABKeys map[string]string
	// BlockedDomains are refused with rejectedIdentifier.
	BlockedDomains []string
	// BadNonces is the percentage of good nonces that are refused.
	BadNonces int
	// AuthorizationReuse is the percentage of orders that get valid authorizations again.
	AuthorizationReuse int
	// OrdersPerPage is how many orders a page of an account's list has; Pebble's own 3 when 0.
	OrdersPerPage int
	// ReuseOrders answers an account that orders the same again with its unfinished order, as Let's Encrypt does.
	ReuseOrders bool
	// Unlisted keeps no list of an account's orders, as Let's Encrypt does.
	Unlisted bool
	// AdviceEvery is the Retry-After on renewal advice (RFC 9773 section 4.3), at least a second; Pebble's own 6 hours when 0.
	AdviceEvery time.Duration
	// Log takes Pebble's own log; discarded when nil.
	Log io.Writer
}

// Pebble is a running CA.
type Pebble struct {
	api, management *httptest.Server
	one             sync.Mutex // request at a time
	dns             *challtestsrv.ChallSrv
	store           *db.MemoryStore
	tls             *x509.Certificate
	client          *http.Client
	issued          atomic.Int64
	counted         sync.Map // by the certificate's id in Pebble's store
	orders          sync.Map // by URL
	faults          faults
}

// environment guards the variables that Pebble reads while it starts.
var environment sync.Mutex

// Start starts a CA.
func Start(o Options) (*Pebble, error) {
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	if o.HTTPPort == 0 {
		o.HTTPPort = 80
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	profiles := map[string]ca.Profile{}
	for name, life := range o.Profiles {
		profiles[name] = ca.Profile{Description: name, ValidityPeriod: uint64(life / time.Second)}
	}
	if len(profiles) == 0 {
		profiles["default"] = ca.Profile{Description: "90 days", ValidityPeriod: 90 * 24 * 3600}
	}
	endpoint, root, err := endpointCertificate(o.Address)
	if err != nil {
		return nil, fmt.Errorf("making the endpoint's certificate: %w", err)
	}
	p := &Pebble{store: db.NewMemoryStore(), tls: root}
	resolver, err := p.startDNS()
	if err != nil {
		return nil, err
	}
	for _, d := range o.BlockedDomains {
		if err := p.store.AddBlockedDomain(d); err != nil {
			p.Close()
			return nil, err
		}
	}
	for id, key := range o.EABKeys {
		if err := p.store.AddExternalAccountKeyByID(id, key); err != nil {
			p.Close()
			return nil, err
		}
	}
	logger := log.New(o.Log, "pebble ", log.LstdFlags|log.Lmicroseconds)
	front := p.newFrontEnd(o, logger, resolver, profiles)
	if p.api, err = serve(o.Address, endpoint, p.faults.before(adviseEvery(o.AdviceEvery, p.serialised(p.reusing(o, front.Handler()))))); err != nil {
		p.Close()
		return nil, err
	}
	if p.management, err = serve(o.Address, endpoint, p.serialised(front.ManagementHandler())); err != nil {
		p.Close()
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	p.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	return p, nil
}

// newFrontEnd sets the variables that Pebble reads, for as long as it reads them.
func (p *Pebble) newFrontEnd(o Options, logger *log.Logger, resolver string, profiles map[string]ca.Profile) wfe.WebFrontEndImpl {
	environment.Lock()
	defer environment.Unlock()
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_WFE_NONCEREJECT": fmt.Sprint(o.BadNonces),
		"PEBBLE_AUTHZREUSE":      fmt.Sprint(o.AuthorizationReuse),

		"PEBBLE_WFE_ORDERS_PER_PAGE": fmt.Sprint(o.OrdersPerPage),
	} {
		defer restoreEnv(name)()
		if err := os.Setenv(name, value); err != nil {
			panic(err) // only a name with a "=" or a NUL byte gives one
		}
	}
	authority := ca.New(logger, p.store, "", "ecdsa", 0, 1, profiles)
	validation := va.New(logger, o.HTTPPort, 443, true, resolver, p.store)
	return wfe.New(logger, p.store, validation, authority, []string{"pebble.example"}, true, len(o.EABKeys) > 0, 0, 0)
}

// restoreEnv gives a function that puts the variable back to what it is now.
func restoreEnv(name string) func() {
	old, had := os.LookupEnv(name)
	return func() {
		if had {
			_ = os.Setenv(name, old)
		} else {
			_ = os.Unsetenv(name)
		}
	}
}

// startDNS starts a DNS server that resolves every name to 127.0.0.1. Pebble asks over TCP. The server says nothing when it
// cannot have its port, so it is asked.
func (p *Pebble) startDNS() (string, error) {
	var last error
	for range 20 {
		// Below the range from which the system gives clients theirs, so that none can come in between.
		address := fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000))
		if last = unused(address); last != nil {
			continue
		}
		p.dns, last = challtestsrv.New(challtestsrv.Config{DNSAddrs: []string{address}, Log: log.New(io.Discard, "", 0)})
		if last != nil {
			continue
		}
		p.dns.SetDefaultDNSIPv4("127.0.0.1")
		p.dns.SetDefaultDNSIPv6("")
		go p.dns.Run()
		if last = awaitDNS(address); last == nil {
			return address, nil
		}
		p.dns.Shutdown()
	}
	return "", fmt.Errorf("starting a DNS server: %w", last)
}

func unused(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	packet, err := net.ListenPacket("udp", address)
	if err == nil {
		err = packet.Close()
	}
	return errors.Join(err, l.Close())
}

func awaitDNS(address string) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		var found []string
		if found, err = resolver.LookupHost(ctx, "ready.example."); err == nil && slices.Equal(found, []string{"127.0.0.1"}) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("it does not answer: %w", err)
}

func serve(address string, cert tls.Certificate, h http.Handler) (*httptest.Server, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return nil, err
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	return s, nil
}

// Close stops the CA.
func (p *Pebble) Close() {
	for _, s := range []*httptest.Server{p.api, p.management} {
		if s != nil {
			s.CloseClientConnections()
			s.Close()
		}
	}
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
	p.dns.Shutdown()
}

// Directory is the URL of the ACME directory.
func (p *Pebble) Directory() string { return p.api.URL + "/dir" }

// CABundlePEM is what a client must trust to speak to the directory. It is not the root of what is issued.
func (p *Pebble) CABundlePEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.tls.Raw}))
}

// Resolve makes name, and only it, resolve to ip.
func (p *Pebble) Resolve(name, ip string) { p.dns.AddDNSARecord(name, []string{ip}) }

// Issued counts the certificates issued.
func (p *Pebble) Issued() int { return int(p.issued.Load()) }

// Orders are all that were made, by URL; true for one that a certificate was issued for.
func (p *Pebble) Orders() map[string]bool {
	all := map[string]bool{}
	p.orders.Range(func(url, _ any) bool {
		order := p.store.GetOrderByID(path.Base(url.(string)))
		order.RLock()
		all[url.(string)] = order.CertificateObject != nil
		order.RUnlock()
		return true
	})
	return all
}

// Replaced reports whether a later order has said that it replaces the certificate (RFC 9773 section 5) and was fulfilled.
func (p *Pebble) Replaced(cert *x509.Certificate) bool {
	order, err := p.store.GetOrderByIssuedSerial(hex.EncodeToString(cert.SerialNumber.Bytes()))
	if err != nil {
		return false
	}
	order.RLock()
	defer order.RUnlock()
	return order.IsReplaced
}

// RootPEM is the root of what is issued.
func (p *Pebble) RootPEM(ctx context.Context) ([]byte, error) {
	return p.manage(ctx, http.MethodGet, "/roots/0", nil)
}

// Roots is the pool of the root of what is issued.
func (p *Pebble) Roots(ctx context.Context) (*x509.CertPool, error) {
	data, err := p.RootPEM(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("no certificate in Pebble's answer")
	}
	return pool, nil
}

// SetRenewalWindow makes the CA advise to renew the certificate between start and end (RFC 9773).
func (p *Pebble) SetRenewalWindow(ctx context.Context, cert *x509.Certificate, start, end time.Time) error {
	advice, err := json.Marshal(map[string]any{"suggestedWindow": map[string]any{"start": start.UTC(), "end": end.UTC()}})
	if err != nil {
		return err
	}
	return p.SetRenewalAnswer(ctx, cert, string(advice))
}

// SetRenewalAnswer makes the CA give this text, valid or not, as its advice for the certificate.
func (p *Pebble) SetRenewalAnswer(ctx context.Context, cert *x509.Certificate, answer string) error {
	body, err := json.Marshal(map[string]string{
		"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})),
		"ARIResponse": answer,
	})
	if err != nil {
		return err
	}
	_, err = p.manage(ctx, http.MethodPost, "/set-renewal-info/", body)
	return err
}

func (p *Pebble) manage(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.management.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, data)
	}
	return data, nil
}

// adviseEvery replaces the Retry-After of renewal advice.
func adviseEvery(every time.Duration, h http.Handler) http.Handler {
	if every == 0 {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, RenewalInfo) {
			h.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		maps.Copy(w.Header(), rec.Header())
		w.Header().Set("Retry-After", strconv.Itoa(int(max(every, time.Second)/time.Second)))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// serialised lets one request through at a time, of clients and of tests, and finalize answers only when the certificate it began is in
// the store: Pebble 2.10.1 takes its locks in different orders and stops for good under concurrent use (letsencrypt/pebble#554), and
// reads renewal advice without one.
func (p *Pebble) serialised(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.one.Lock()
		defer p.one.Unlock()
		h.ServeHTTP(w, r)
		if url := w.Header().Get("Location"); r.URL.Path == NewOrder && url != "" {
			p.orders.Store(url, true)
		}
		if id, ok := strings.CutPrefix(r.URL.Path, "/finalize-order/"); ok {
			p.awaitIssuance(id)
		}
	})
}

func (p *Pebble) awaitIssuance(orderID string) {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		order := p.store.GetOrderByID(orderID)
		if order == nil {
			return
		}
		order.RLock()
		began, cert, replaces := order.BeganProcessing, order.CertificateObject, order.Replaces
		order.RUnlock()
		if !began {
			return // refused
		}
		if cert != nil {
			if _, err := p.store.GetOrderByIssuedSerial(cert.ID); err == nil && p.replaced(replaces) {
				if _, seen := p.counted.LoadOrStore(cert.ID, true); !seen {
					p.issued.Add(1)
					p.alias(order, cert)
				}
				return
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// alias makes the order known by its serial as it stands in the certificate, too: where that begins with a zero byte, once in
// some hundred certificates, Pebble 2.10.1 does not find the order that "replaces" names, and answers 500 for ever.
func (p *Pebble) alias(order *core.Order, cert *core.Certificate) {
	if raw := cert.Cert.SerialNumber.Bytes(); len(raw) == 0 || raw[0] < 0x80 {
		return
	}
	order.RLock()
	twin := &core.Order{ID: order.ID, AccountID: order.AccountID, Order: order.Order, CertificateObject: &core.Certificate{ID: "00" + cert.ID, Cert: cert.Cert}}
	order.RUnlock()
	_ = p.store.AddOrderByIssuedSerial(twin) // fails without a certificate only
}

// replaced reports that the certificate with this ARI identifier is marked as replaced, the last that finalizing does. Without
// waiting for it the next order reads the mark while it is written.
func (p *Pebble) replaced(id string) bool {
	_, serial, _ := strings.Cut(id, ".")
	raw, err := base64.RawURLEncoding.DecodeString(serial)
	if err != nil || len(raw) == 0 {
		return true
	}
	order, err := p.store.GetOrderByIssuedSerial(hex.EncodeToString(raw))
	if err != nil {
		return true
	}
	order.RLock()
	defer order.RUnlock()
	return order.IsReplaced
}
