package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestCAFaults: whatever goes wrong at the CA, in the end one certificate is in use, no more were issued than could not be
// helped, and the log says what the matter was.
func TestCAFaults(t *testing.T) {
	t.Parallel()
	const html = "<html><body>Bad Gateway</body></html>"
	cases := []struct {
		name   string
		nonces int // percent refused
		faults []pebbletest.Fault
		issued int
		reason string // recorded with the request; empty when it went through as if nothing were the matter
		event  string
	}{
		{name: "503 on new order", faults: []pebbletest.Fault{{Path: pebbletest.NewOrder, Times: 3, Status: 503, Type: "serverInternal", Detail: "maintenance"}},
			issued: 1, event: "issuer.request.delayed", reason: "CA_UNAVAILABLE"},
		{name: "bad nonces", nonces: 30, issued: 1,
			faults: []pebbletest.Fault{{Path: pebbletest.NewOrder, Times: 4, Status: 400, Type: "badNonce", Detail: "no"}, {Path: pebbletest.Finalize, Times: 4, Status: 400, Type: "badNonce", Detail: "no"}}},
		{name: "HTML 502", faults: []pebbletest.Fault{{Path: pebbletest.Authorization, Times: 3, Status: 502, Body: html}, {Path: pebbletest.Order, Times: 2, Status: 502, Body: html}},
			issued: 1, event: "issuer.request.delayed", reason: "CA_UNAVAILABLE"},
		{name: "lost answer to finalize", faults: []pebbletest.Fault{{Path: pebbletest.Finalize, Times: 1, After: true, Status: 504, Body: html}},
			issued: 1, event: "issuer.request.delayed", reason: "CA_UNAVAILABLE"},
		{name: "lost answer to new order", faults: []pebbletest.Fault{{Path: pebbletest.NewOrder, Times: 1, After: true, Status: 504, Body: html}},
			issued: 1, event: "issuer.request.delayed", reason: "CA_UNAVAILABLE"},
		{name: "lost certificate", faults: []pebbletest.Fault{{Path: pebbletest.Certificate, Times: 2, Status: 500, Body: html}},
			issued: 1, event: "issuer.request.delayed", reason: "CA_UNAVAILABLE"},
		{name: "certificate for another key", faults: []pebbletest.Fault{{Path: pebbletest.Certificate, Times: 1, Rewrite: strangersLeaf}},
			issued: 2, event: "issuer.request.refused", reason: "CHAIN_REFUSED"},
		{name: "chain of another CA", faults: []pebbletest.Fault{{Path: pebbletest.Certificate, Times: 1, Rewrite: strangersChain}},
			issued: 2, event: "issuer.request.refused", reason: "CHAIN_REFUSED"},
		{name: "nonsense for an order", faults: []pebbletest.Fault{{Path: pebbletest.Order, Times: 2, Status: 200, Body: html}},
			issued: 1, event: "issuer.request.delayed"},
	}
	w := newWorld(t, "")
	t.Run("hosts", func(t *testing.T) {
		for _, c := range cases {
			name := strings.ReplaceAll(strings.ToLower(c.name), " ", "-")
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				ca := w.acme(t, "ca-"+name, pebbletest.Options{BadNonces: c.nonces})
				h := w.nginx(t, name, ca.answers())
				before := h.served(t)
				for _, f := range c.faults {
					ca.Inject(f)
				}
				h.deploy(t, ca.name)
				leaf := h.healthy(t, 1)
				h.trusted(t, ca.roots(t))
				if leaf.Equal(before) {
					t.Error("the placeholder is still served")
				}
				if got := ca.Issued(); got != c.issued {
					t.Errorf("the CA has issued %d certificates, want %d", got, c.issued)
				}
				ca.recorded(t, w, 1)
				if c.event != "" {
					w.awaitRecord(t, c.event, h.Name, c.reason)
				}
				w.awaitRecord(t, "deployer.assignment.served", h.Name, "")
			})
		}
		t.Run("rate limit", func(t *testing.T) { t.Parallel(); rateLimit(t, w) })
		t.Run("away altogether", func(t *testing.T) { t.Parallel(); away(t, w) })
		t.Run("refused for good", func(t *testing.T) { t.Parallel(); refusedForGood(t, w) })
	})
}

// rateLimit: no order is asked for before the CA allows it again.
func rateLimit(t *testing.T, w *world) {
	const pause = 4 * time.Second
	ca := w.acme(t, "ca-busy", pebbletest.Options{})
	h := w.nginx(t, "busy", ca.answers())
	ca.Inject(pebbletest.Fault{Path: pebbletest.NewOrder, Times: 1, Status: 429, Type: "rateLimited", Detail: "too many new orders", RetryAfter: fmt.Sprint(int(pause.Seconds()))})
	h.deploy(t, ca.name)
	w.awaitRecord(t, "issuer.request.delayed", h.Name, "CA_RATE_LIMITED")
	h.healthy(t, 1)
	asked := ca.Asked(pebbletest.NewOrder)
	if waited := asked[1].Sub(asked[0]); waited < pause {
		t.Errorf("the CA asked for %s, the next order came after %s", pause, waited)
	}
	ca.issued(t, w, 1)
}

// away: nobody listens at the CA's address, in the middle of an order.
func away(t *testing.T, w *world) {
	ca := w.acme(t, "ca-away", pebbletest.Options{})
	way := relay(t, strings.TrimSuffix(strings.TrimPrefix(ca.Directory(), "https://"), "/dir"))
	ca.name = "ca-far"
	w.applyACME(t, ca, "https://"+way.address+"/dir")
	h := w.nginx(t, "far", ca.answers())
	h.deploy(t, ca.name)
	first := h.healthy(t, 1)

	way.close()
	h.renew(t)
	w.awaitRecord(t, "issuer.request.delayed", h.Name, "CA_UNREACHABLE")
	h.stillServed(t, first)
	w.awaitRecord(t, "issuer.authority.troubled", ca.name, "")
	way.open(t)
	second := h.healthy(t, 2)
	if second.Equal(first) {
		t.Error("the old certificate is still served")
	}
	w.awaitRecord(t, "issuer.authority.recovered", ca.name, "")
	ca.issued(t, w, 2)
}

// refusedForGood: what the CA will never issue ends with its reason, and what was served before stays.
func refusedForGood(t *testing.T, w *world) {
	ca := w.acme(t, "ca-no", pebbletest.Options{BlockedDomains: []string{"blocked.example.com"}})
	h := w.nginx(t, "blocked", ca.answers())
	before := h.served(t)
	h.deploy(t, ca.name)
	w.awaitRecord(t, "issuer.request.refused", h.Name, "")
	w.awaitRecord(t, "deployer.assignment.failed", h.Name, "")
	h.stillServed(t, before)
	if st, _, err := h.status(t); err != nil || !strings.Contains(st.GetMessage(), "blocked.example.com") && !strings.Contains(st.GetMessage(), "policy") {
		t.Errorf("the deployment does not say why: %q, %v", st.GetMessage(), err)
	}
	ca.issued(t, w, 0)
}

// strangersLeaf replaces the leaf by one for the same name and another key.
func strangersLeaf(body []byte) []byte {
	_, rest := pem.Decode(body)
	leaf, _, err := stranger(body)
	if err != nil {
		panic(err)
	}
	return append(leaf, rest...)
}

// strangersChain keeps the leaf and puts another CA above it.
func strangersChain(body []byte) []byte {
	leaf, _ := pem.Decode(body)
	_, issuer, err := stranger(body)
	if err != nil {
		panic(err)
	}
	return append(pem.EncodeToMemory(leaf), issuer...)
}

// stranger imitates the chain in body with keys of its own.
func stranger(body []byte) (leaf, issuer []byte, err error) {
	var real []*x509.Certificate
	for rest := bytes.TrimSpace(body); len(rest) > 0; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		real = append(real, cert)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: real[1].Subject, NotBefore: real[1].NotBefore, NotAfter: real[1].NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(8), Subject: pkix.Name{}, DNSNames: real[0].DNSNames, NotBefore: real[0].NotBefore, NotAfter: real[0].NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}

// wire is a way to another address that can be cut.
type wire struct {
	address, to string

	mu    sync.Mutex
	lis   net.Listener
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func relay(t *testing.T, to string) *wire {
	t.Helper()
	r := &wire{to: to, address: fmt.Sprintf("127.0.0.1:%d", ok(lab.FreePort())(t)), conns: map[net.Conn]bool{}}
	r.open(t)
	t.Cleanup(func() {
		r.close()
		r.wg.Wait()
	})
	return r
}

func (r *wire) open(t *testing.T) {
	t.Helper()
	lis := ok(net.Listen("tcp", r.address))(t)
	r.mu.Lock()
	r.lis = lis
	r.mu.Unlock()
	r.wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(conn) })
		}
	})
}

// close refuses new connections and breaks those there are.
func (r *wire) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lis.Close()
	for conn := range r.conns {
		conn.Close()
	}
	clear(r.conns)
}

func (r *wire) pass(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer far.Close()
	r.mu.Lock()
	r.conns[near], r.conns[far] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, near)
		delete(r.conns, far)
	}()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(far, near)
		far.Close()
		close(done)
	}()
	_, _ = io.Copy(near, far)
	near.Close()
	<-done
}
