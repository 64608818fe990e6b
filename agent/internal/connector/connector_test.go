//go:build linux

package connector_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

func TestNewPair(t *testing.T) {
	ca, other := connectortest.NewCA(t), connectortest.NewCA(t)
	key := connectortest.Key(t, pki.ECDSAP256)
	now := time.Now()
	chain := ca.Sign(t, key.Public(), nil, "x.test")
	late := ca.Sign(t, key.Public(), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }, "x.test")
	early := ca.Sign(t, key.Public(), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour) }, "x.test")
	for _, c := range []struct {
		name   string
		chain  []*x509.Certificate
		reason string
	}{
		{"whole", chain, ""},
		{"with its root", append(chain[:2:2], ca.Root), ""},
		{"leaf alone", chain[:1], ""},
		{"in another order", []*x509.Certificate{chain[1], chain[0]}, ""},
		{"empty", nil, connector.ReasonChainInvalid},
		{"with a stranger", append(chain[:2:2], other.Root), connector.ReasonChainInvalid},
		{"of another key", ca.Sign(t, connectortest.Key(t, pki.ECDSAP256).Public(), nil, "x.test"), connector.ReasonChainMismatch},
		{"expired", late, connector.ReasonExpired},
		{"not valid yet", early, connector.ReasonNotYetValid},
	} {
		pair, err := connector.NewPair(c.chain, key, now)
		if c.reason == "" {
			if err != nil || !pair.Valid() || !pair.Leaf().Equal(chain[0]) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err == nil || fault.Of(err).Reason != c.reason || pair.Valid() {
			t.Errorf("%s: %v, want %s", c.name, err, c.reason)
		}
	}
	if (connector.Pair{}).Valid() {
		t.Error("the zero pair is valid")
	}
}

// What is allowed may itself be reached over a link; so may a file in it.
func TestSpotFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"real/sub", "second"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "second/f.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"allowed": "real", "real/up.pem": "sub/down.pem", "real/over.pem": "../second/f.pem"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "real/sub/down.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	allow := connector.Allow{filepath.Join(dir, "allowed"), filepath.Join(dir, "second")}
	for path, want := range map[string]string{
		"allowed/x.pem": "real/x.pem", "allowed/sub/x.pem": "real/sub/x.pem", "allowed/up.pem": "real/sub/down.pem", "allowed/over.pem": "second/f.pem",
	} {
		spot, err := allow.Spot(filepath.Join(dir, path))
		if err != nil || spot.Path() != filepath.Join(dir, want) {
			t.Errorf("%s: %s, %v, want %s", path, spot.Path(), err, want)
		}
	}
	if _, err := allow.Spot(filepath.Join(dir, "real/x.pem")); err == nil {
		t.Error("a folder that is allowed under another name only")
	}
	if _, err := connector.Allow(nil).Spot(filepath.Join(dir, "real/x.pem")); err == nil {
		t.Error("allowed by nothing")
	}
}

func FuzzSpot(f *testing.F) {
	dir := f.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "allowed/sub"), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "allowed/out")); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"x.pem", "sub/x", "../x", "out/x", "./x", "a\x00b", "sub/../../x", "out/allowed/x"} {
		f.Add(seed)
	}
	real, err := filepath.EvalSymlinks(filepath.Join(dir, "allowed"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		spot, err := connector.Allow{filepath.Join(dir, "allowed")}.Spot(filepath.Join(dir, "allowed") + "/" + name)
		if err == nil && (spot.Folder != real || !filepath.IsLocal(spot.Name)) {
			t.Errorf("%q leads to %+v", name, spot)
		}
	})
}

func TestSettings(t *testing.T) {
	s := connector.ReadSettings(map[string]string{"a": "1", "b": "2", "c": ""})
	if s.Need("a") != "1" || s.Take("b") != "2" || s.Take("none") != "" || s.Take("c") != "" || s.Done("a") != nil {
		t.Error(s.Done())
	}
	s = connector.ReadSettings(map[string]string{"a": "1"})
	s.Need("b")
	if err := s.Done("a", "b"); fault.Of(err).Reason != connector.ReasonSettingsRefused {
		t.Error(err)
	}
}

// While old and new workers answer by turns, a certificate that was seen once is not called served.
func TestSeenOfAllWorkers(t *testing.T) {
	ca := connectortest.NewCA(t)
	old, fresh := ca.Pair(t, "x.test"), ca.Pair(t, "x.test")
	certificate := func(p connector.Pair) *tls.Certificate {
		c := &tls.Certificate{PrivateKey: p.Key()}
		for _, one := range p.Chain() {
			c.Certificate = append(c.Certificate, one.Raw)
		}
		return c
	}
	workers := []*tls.Certificate{certificate(fresh), certificate(old)}
	var asked, alone atomic.Int64
	lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if alone.Load() > 0 {
			alone.Add(1)
			return workers[0], nil
		}
		return workers[(asked.Add(1)-1)%2], nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer lis.Close()
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(conn) })
		}
	})
	s := connector.ReadSettings(map[string]string{"verify": lis.Addr().String()})
	l, err := connector.ReadListener(s)
	if err != nil {
		t.Fatal(err)
	}
	for wait := time.Second; asked.Load() < 3 && !t.Failed(); wait *= 2 {
		if sight := l.Verify(t.Context(), fresh.Leaf(), wait, false); sight.View != connector.Wrong {
			t.Errorf("%v, while every second connection meets an old worker", sight)
		}
		if wait > time.Minute {
			t.Errorf("it has looked %d times", asked.Load())
		}
	}
	if sight := l.Verify(t.Context(), fresh.Leaf(), 100*time.Millisecond, true); sight.View != connector.Wrong {
		t.Errorf("%v, while every second connection meets an old worker that is said to be gone", sight)
	}
	alone.Store(1)
	if sight := l.Verify(t.Context(), fresh.Leaf(), 10*time.Second, true); sight.View != connector.Right || alone.Load() != 3 {
		t.Errorf("%v, seen %d times", sight, alone.Load()-1)
	}
	alone.Store(0)
	gone := time.AfterFunc(100*time.Millisecond, func() { alone.Store(1) })
	defer gone.Stop()
	if sight := l.Verify(t.Context(), fresh.Leaf(), time.Minute, false); sight.View != connector.Right || alone.Load() == 0 {
		t.Errorf("%v, though the old worker is gone", sight)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	_, _ = conn.Read(make([]byte, 1)) // until the client hangs up
}
