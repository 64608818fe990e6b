//go:build linux

package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/agenttest"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/heldport"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// A connection that breaks after the server has acted burns nothing.
func TestEnrolmentMayBreak(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	tok := w.Token("t1")
	w.Fail("Enroll answer", func() error { return fault.New(fault.Transient, "LOST", "the answer is lost") })
	for range 2 {
		w.make()
		if _, _, err := w.agent.Enroll(t.Context(), tok, false); err == nil {
			t.Fatal("enrolled without an answer")
		}
	}
	w.Fail("Enroll answer", nil)
	w.make()
	id, fresh, err := w.agent.Enroll(t.Context(), tok, false)
	if err != nil || !fresh || id.ID != "spiffe://test.example/agent/web1" || id.Host != "web1" {
		t.Fatalf("%+v, %v, %v", id, fresh, err)
	}
	// Once more is harmless, with whatever token.
	calls := w.Calls("Enroll")
	if same, fresh, err := w.agent.Enroll(t.Context(), w.Token("t2"), false); err != nil || fresh || same.ID != id.ID || w.Calls("Enroll") != calls {
		t.Errorf("%+v, %v, %v", same, fresh, err)
	}
	// Unless it is asked for.
	if _, fresh, err := w.agent.Enroll(t.Context(), w.Token("t3"), true); err != nil || !fresh {
		t.Errorf("%v, %v", fresh, err)
	}
	entries, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "identity"))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestEnrolmentRefused(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	other := agenttest.Start(t, agenttest.Config{})
	used := w.Token("used")
	unknown, err := identity.NewJoinToken(w.Authority.TrustDomain(), "unknown", w.Authority.RootHash())
	if err != nil {
		t.Fatal(err)
	}
	foreign := other.Token("foreign")
	for _, c := range []struct {
		name, want string
		before     func()
		token      identity.JoinToken
		calls      int
	}{
		{"unknown token", "not known here", nil, unknown, 1},
		{"used token", "used already", func() {
			w.cfg.StateDir = filepath.Join(t.TempDir(), "first")
			w.make()
			if _, _, err := w.agent.Enroll(t.Context(), used, false); err != nil {
				t.Fatal(err)
			}
		}, used, 1},
		{"wrong server", "not the control plane the join token was made for", nil, foreign, 0},
		{"nobody there", "refused", func() { w.Down() }, used, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.before != nil {
				c.before()
			}
			calls := w.Calls("Enroll")
			w.cfg.StateDir = filepath.Join(t.TempDir(), "state")
			w.make()
			_, _, err := w.agent.Enroll(t.Context(), c.token, false)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), c.token.String()) || strings.Contains(err.Error(), base64.RawURLEncoding.EncodeToString(c.token.Secret)) {
				t.Error("the error holds the token")
			}
			if n := w.Calls("Enroll") - calls; n != c.calls {
				t.Errorf("the server was asked %d times", n)
			}
		})
	}
}

func TestRenewsItsIdentity(t *testing.T) {
	w := newWorld(t, agenttest.Config{RenewAfter: 2 * time.Second, Heartbeat: time.Second})
	w.enrol()
	first := w.Key("web1")
	w.run()
	w.Await("two renewals", func() bool { return w.Calls("RenewIdentity") >= 2 && w.Key("web1") != first })
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
	w.halt()
	entries, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "identity"))
	if err != nil || len(entries) > 2 {
		t.Errorf("%v, %v", entries, err)
	}
}

// The answer to the first use of the new identity is lost: the server knows only
// the new key from then on, and the agent must not go back.
func TestRenewalMayBreak(t *testing.T) {
	w := newWorld(t, agenttest.Config{RenewAfter: 2 * time.Second, Heartbeat: time.Hour})
	w.enrol()
	first := w.Key("web1")
	var lost atomic.Int32
	w.Fail("ReportObservation", func() error {
		if w.keyNow() != first && lost.Add(1) <= 2 {
			return fault.New(fault.Transient, "LOST", "the answer is lost")
		}
		return nil
	})
	w.run()
	w.Await("the lost answers", func() bool { return lost.Load() > 2 })
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
}

// A disk that does not take the new identity cuts no agent off: the server knows only the new key from its first use on.
func TestNewIdentityCannotBeKept(t *testing.T) {
	w := newWorld(t, agenttest.Config{RenewAfter: 2 * time.Second, Heartbeat: time.Hour})
	w.enrol()
	first := w.Key("web1")
	current := filepath.Join(w.cfg.StateDir, "identity", "current")
	var kept []byte
	w.Fail("first use", func() error {
		var err error
		if kept, err = os.ReadFile(current); err == nil {
			err = errors.Join(os.Remove(current), os.MkdirAll(filepath.Join(current, "in the way"), 0o700))
		}
		return err
	})
	w.run()
	w.Await("the complaint", func() bool { return strings.Contains(w.log.String(), "cannot be kept") })
	w.Fail("first use", nil)
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
	if w.Key("web1") == first {
		t.Error("with the old identity")
	}
	if err := errors.Join(os.RemoveAll(current), os.WriteFile(current, kept, 0o600)); err != nil {
		t.Fatal(err)
	}
	w.Await("it to be kept", func() bool { now, err := os.ReadFile(current); return err == nil && !bytes.Equal(now, kept) })
}

// keyNow is Key for use inside the server.
func (w *world) keyNow() string { return w.KeyLocked("web1") }

func TestComesBack(t *testing.T) {
	w := newWorld(t, agenttest.Config{TTL: 2 * time.Second, RenewAfter: time.Second})
	w.enrol()
	w.Assign(w.assignment())
	w.Down()
	time.Sleep(2500 * time.Millisecond) // until the identity has expired
	w.Up()
	w.run()
	w.want(w.Report(1), served, "")
	if w.Calls("Return") == 0 || !strings.Contains(w.log.String(), "the identity has expired") {
		t.Errorf("%d calls to Return", w.Calls("Return"))
	}
}

func TestMayNotComeBack(t *testing.T) {
	w := newWorld(t, agenttest.Config{TTL: time.Second, RenewAfter: 500 * time.Millisecond})
	w.enrol()
	w.Fail("Return", func() error {
		return fault.New(fault.Denied, "RETURN_TOO_LATE", "the agent's identity ran out 100 days ago: enrol again with a join token")
	})
	time.Sleep(1500 * time.Millisecond)
	w.run()
	w.Await("the refusal, by the name it has in the docs", func() bool { return strings.Contains(w.log.String(), " reason=RETURN_TOO_LATE ") })
	time.Sleep(time.Second)
	if n := w.Calls("Return"); n > 2 {
		t.Errorf("asked %d times within a second", n)
	}
}

// proxy is an HTTP proxy that knows CONNECT, a user and a password.
type proxy struct {
	address string
	mu      sync.Mutex
	seen    []string
}

func startProxy(t *testing.T, user string) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: lis.Addr().String()}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.seen = append(p.seen, r.Method+" "+r.Host)
		p.mu.Unlock()
		if user != "" && r.Header.Get("Proxy-Authorization") != want {
			rw.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		defer to.Close()
		conn, buf, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(to, buf); to.Close() }()
		_, _ = io.Copy(conn, to)
		conn.Close()
		<-done
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(lis) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return p
}

func TestThroughProxy(t *testing.T) {
	w := newWorld(t, agenttest.Config{RenewAfter: 2 * time.Second})
	p := startProxy(t, "web1:s3cret")
	w.cfg.Proxy = "http://" + p.address
	w.make()
	if _, _, err := w.agent.Enroll(t.Context(), w.Token("t0"), false); err == nil || !strings.Contains(err.Error(), "407") {
		t.Fatalf("without a password: %v", err)
	}
	w.cfg.ProxyCredentialsFile = filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(w.cfg.ProxyCredentialsFile, []byte("web1:s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.enrol()
	w.run()
	w.Assign(w.assignment())
	w.want(w.Report(1), served, "")
	w.Await("a renewal", func() bool { return w.Calls("RenewIdentity") > 0 })
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		if s != "CONNECT "+w.Server.Address {
			t.Errorf("the proxy saw %q", s)
		}
	}
	if strings.Contains(w.log.String(), "s3cret") {
		t.Error("the log holds the password")
	}
}

func TestProxyRefuses(t *testing.T) {
	w := newWorld(t, agenttest.Config{})
	p := startProxy(t, "")
	w.cfg.Proxy, w.cfg.Server = "http://"+p.address, "127.0.0.1:1"
	w.make()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := w.agent.Enroll(ctx, w.Token("t1"), false); err == nil || !strings.Contains(err.Error(), "502") || !strings.Contains(err.Error(), p.address) {
		t.Errorf("%v", err)
	}
}

func TestChallenges(t *testing.T) {
	challenge := &agentv1.Challenge{
		Id: "c1", Domain: name, Token: "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0",
		KeyAuthorization: "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI",
	}
	t.Run("listen", func(t *testing.T) {
		w := newWorld(t, agenttest.Config{})
		w.cfg.HTTP01.Listen = heldport.Address(t)
		lis, err := net.Listen("tcp", w.cfg.HTTP01.Listen)
		if err != nil {
			t.Fatal(err)
		}
		w.enrol()
		w.run()
		w.Present(challenge)
		w.Await("a word on the port in use", func() bool { return w.Ready("c1") != nil })
		if r := w.Ready("c1"); r.GetReady() || !strings.Contains(r.GetMessage(), "in use") {
			t.Errorf("%v", r)
		}
		lis.Close()
		w.Withdraw("c1")
		second := &agentv1.Challenge{Id: "c2", Domain: name, Token: challenge.GetToken(), KeyAuthorization: challenge.GetKeyAuthorization()}
		w.Present(second)
		w.Await("the challenge to be answered", func() bool { return w.Ready("c2").GetReady() })
		url := "http://" + w.cfg.HTTP01.Listen + "/.well-known/acme-challenge/" + second.GetToken()
		if code, body := get(t, url); code != http.StatusOK || body != second.GetKeyAuthorization() {
			t.Errorf("%d %q", code, body)
		}
		// Through a restart of the agent and a server that is gone.
		w.halt()
		w.Down()
		w.run()
		w.Await("the answer again", func() bool { code, err := try(url); return err == nil && code == http.StatusOK })
		w.Up()
		w.Withdraw("c2")
		w.Await("the listener to close", func() bool { _, err := try(url); return err != nil })
	})
	t.Run("nowhere", func(t *testing.T) {
		w := newWorld(t, agenttest.Config{})
		w.enrol()
		w.run()
		w.Present(challenge)
		w.Await("a word", func() bool { return w.Ready("c1") != nil })
		if r := w.Ready("c1"); r.GetReady() || !strings.Contains(r.GetMessage(), "http01.listen") {
			t.Errorf("%v", r)
		}
	})
}

func try(url string) (int, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestScansAreReported(t *testing.T) {
	w := newWorld(t, agenttest.Config{Scan: time.Second})
	w.cfg.Scan.Listeners = "loopback"
	w.enrol()
	w.Assign(w.assignment())
	w.run()
	first := w.Report(1)
	w.Await("a scan that sees the certificate", func() bool {
		scans := w.Scans()
		return len(scans) > 0 && seen(scans[len(scans)-1], w.nginx.Files["certificate"], first.GetServed()) &&
			seen(scans[len(scans)-1], w.nginx.Address, first.GetServed())
	})
}

// By a clock that is ahead of the server's by more than half an SVID's life every new one is to be renewed at once: it is not
// renewed time and again.
func TestRenewsInPeaceByAnotherClock(t *testing.T) {
	w := newWorld(t, agenttest.Config{RenewAfter: -time.Hour, Heartbeat: time.Second})
	w.enrol()
	w.run()
	w.Await("the renewal", func() bool { return w.Calls("RenewIdentity") > 0 })
	beats := w.Calls("ReportObservation")
	w.Await("heartbeats", func() bool { return w.Calls("ReportObservation") >= beats+3 })
	if n := w.Calls("RenewIdentity"); n != 1 {
		t.Errorf("%d renewals", n)
	}
}
