package challenge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/heldport"
)

const (
	tok  = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"
	auth = tok + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
)

// rig is a responder with a server to report to.
type rig struct {
	*testing.T
	*Responder
	stop func()

	mu         sync.Mutex
	challenges []*agentv1.Challenge
	reports    []*agentv1.ReportChallengeRequest
	refuse     error
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	r := &rig{T: t}
	state, err := disk.OpenFolder(filepath.Join(t.TempDir(), "challenges"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.State == nil {
		cfg.State = state
	}
	cfg.Log, cfg.Now = slog.New(slog.DiscardHandler), time.Now
	cfg.Challenges = func() []*agentv1.Challenge {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.challenges
	}
	cfg.Report = func(_ context.Context, q *agentv1.ReportChallengeRequest) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.refuse != nil {
			return r.refuse
		}
		r.reports = append(r.reports, q)
		return nil
	}
	r.Responder, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Responder.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *rig) set(challenges ...*agentv1.Challenge) {
	r.mu.Lock()
	r.challenges = challenges
	r.mu.Unlock()
	r.Wake()
}

func (r *rig) report(n int) *agentv1.ReportChallengeRequest {
	r.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		r.mu.Lock()
		have := r.reports
		r.mu.Unlock()
		if len(have) >= n {
			return have[n-1]
		}
	}
	r.Fatalf("no report %d", n)
	return nil
}

func listens(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestListensOnlyWhenAsked(t *testing.T) {
	address := heldport.Address(t)
	r := newRig(t, Config{Listen: address})
	r.set()
	for round := range 2 {
		if listens(address) {
			t.Fatal("listens without a challenge")
		}
		r.set(&agentv1.Challenge{Id: fmt.Sprint("c", round), Token: tok, KeyAuthorization: auth})
		if q := r.report(round + 1); !q.GetReady() || q.GetChallenge() != fmt.Sprint("c", round) {
			t.Fatal(q)
		}
		resp, err := http.Get("http://" + address + path + tok)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != auth || resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %q %v", resp.StatusCode, body, err)
		}
		r.set()
		for end := time.Now().Add(time.Minute); listens(address); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("goes on listening")
			}
		}
	}
	r.set(&agentv1.Challenge{Id: "last", Token: tok, KeyAuthorization: auth})
	r.report(3)
	r.stop()
	if listens(address) {
		t.Error("listens after its end")
	}
}

func TestAnswersTheExactPathOnly(t *testing.T) {
	l := &listener{log: slog.New(slog.DiscardHandler), bodies: map[string]string{tok: auth}}
	for _, c := range []struct {
		method, target string
		code           int
	}{
		{"GET", path + tok, 200},
		{"HEAD", path + tok, 200},
		{"POST", path + tok, 405},
		{"GET", path, 404},
		{"GET", path + tok + "/", 404},
		{"GET", path + tok + "x", 404},
		{"GET", path + "../" + tok, 404},
		{"GET", "/" + path + tok, 404},
		{"GET", "/", 404},
		{"GET", "/etc/passwd", 404},
		{"OPTIONS", "*", 404},
	} {
		r := httptest.NewRequest(c.method, "http://x.test/", nil)
		r.URL.Path = c.target
		w := httptest.NewRecorder()
		l.ServeHTTP(w, r)
		if w.Code != c.code || c.code != 200 && w.Body.Len() > 0 {
			t.Errorf("%s %s: %d %q", c.method, c.target, w.Code, w.Body)
		}
	}
}

func TestHostileClients(t *testing.T) {
	address := heldport.Address(t)
	r := newRig(t, Config{Listen: address})
	r.set(&agentv1.Challenge{Id: "c", Token: tok, KeyAuthorization: auth})
	r.report(1)
	for _, request := range []string{
		"GET " + path + tok + " HTTP/1.1\r\nHost: x\r\nBig: " + strings.Repeat("x", 100_000) + "\r\n\r\n",
		"\x16\x03\x01\x00\x00", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, request) // it may hang up first
		answer, err := io.ReadAll(conn)
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) || bytes.Contains(answer, []byte(auth)) {
			t.Errorf("%.20q: %q, %v", request, answer, err)
		}
	}
}

func TestMalformedChallenges(t *testing.T) {
	root := t.TempDir()
	r := newRig(t, Config{Webroot: root})
	bad := []*agentv1.Challenge{
		{Id: "empty"},
		{Id: "path", Token: "../../../../etc/cron.d/x", KeyAuthorization: "../../../../etc/cron.d/x.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"},
		{Id: "short", Token: "abc", KeyAuthorization: "abc.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"},
		{Id: "content", Token: tok, KeyAuthorization: tok + ".<script>"},
		{Id: "other", Token: tok, KeyAuthorization: strings.Repeat("a", 43) + ".9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"},
	}
	r.set(bad...)
	for n := range bad {
		if q := r.report(n + 1); q.GetReady() || !strings.Contains(q.GetMessage(), "malformed") {
			t.Error(q)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestWebroot(t *testing.T) {
	root := t.TempDir()
	state, err := disk.OpenFolder(filepath.Join(t.TempDir(), "challenges"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, path, tok)
	r := newRig(t, Config{Webroot: root, State: state})
	r.set(&agentv1.Challenge{Id: "c", Token: tok, KeyAuthorization: auth})
	if q := r.report(1); !q.GetReady() {
		t.Fatal(q)
	}
	data, err := os.ReadFile(file)
	fi, serr := os.Stat(file)
	if err != nil || serr != nil || string(data) != auth || fi.Mode().Perm() != 0o644 {
		t.Fatalf("%q, %v, %v", data, err, serr)
	}
	// It is withdrawn while the agent does not run.
	r.stop()
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(filepath.Dir(file), "foreign")
	if err := os.WriteFile(foreign, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	newRig(t, Config{Webroot: root, State: state}).set()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the answer stays")
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error("a file of somebody else's is gone")
	}
	// A webroot that is not there.
	r = newRig(t, Config{Webroot: filepath.Join(root, "none")})
	r.set(&agentv1.Challenge{Id: "c", Token: tok, KeyAuthorization: auth})
	if q := r.report(1); q.GetReady() || !strings.Contains(q.GetMessage(), "none") {
		t.Error(q)
	}
}

// A link in the webroot leads nobody out of it.
func TestWebrootLink(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, ".well-known")); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, Config{Webroot: root})
	r.set(&agentv1.Challenge{Id: "c", Token: tok, KeyAuthorization: auth})
	if q := r.report(1); q.GetReady() {
		t.Error(q)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestReportsUntilTaken(t *testing.T) {
	r := newRig(t, Config{Listen: heldport.Address(t)})
	r.mu.Lock()
	r.refuse = fault.New(fault.Transient, "BUSY", "later")
	r.mu.Unlock()
	r.set(&agentv1.Challenge{Id: "c", Token: tok, KeyAuthorization: auth})
	time.AfterFunc(100*time.Millisecond, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.refuse = nil
	})
	if q := r.report(1); !q.GetReady() {
		t.Error(q)
	}
	r.Wake()
	time.Sleep(50 * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.reports) != 1 {
		t.Errorf("reported %d times", len(r.reports))
	}
}
