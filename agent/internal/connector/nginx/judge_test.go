//go:build linux

package nginx_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/connectortest"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/nginx"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// judged is a running nginx that serves old, a place with fresh staged, and a check of our own instead of "nginx -t": it waits for the
// file it is given, which says whether the configuration is right.
func judged(t *testing.T) (s *connectortest.Server, place connector.Place, old, fresh connector.Pair, verdict func(right bool)) {
	t.Helper()
	dir := t.TempDir()
	s = connectortest.Nginx(t, dir, "")
	ca := connectortest.NewCA(t)
	old, fresh = ca.Pair(t, "x.test"), ca.Pair(t, "x.test")
	s.Put(old)
	s.Start()
	says := filepath.Join(dir, "verdict")
	binary := filepath.Join(t.TempDir(), "nginx")
	script := fmt.Sprintf("#!/bin/sh\nwhile [ ! -e %[1]s ]; do sleep 0.02; done\n[ \"$(cat %[1]s)\" = true ]\n", says)
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := nginx.Config{Config: pemfile.Config{Allow: []string{s.TLS}}, Binary: binary, Main: s.Config, PIDFile: s.PIDFile}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	c, err := nginx.New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	place, err = c.At(map[string]string{"certificate": s.Files["certificate"], "key": s.Files["key"], "verify": s.Address})
	if err != nil {
		t.Fatal(err)
	}
	return s, place, old, fresh, func(right bool) {
		if err := os.WriteFile(says+"+", fmt.Append(nil, right), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(says+"+", says); err != nil {
			t.Fatal(err)
		}
	}
}

// activate stages the pair and begins to activate it.
func activate(t *testing.T, place connector.Place, pair connector.Pair) (connector.Staged, <-chan error) {
	t.Helper()
	staged, err := place.Stage(t.Context(), pair)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- place.Activate(t.Context(), staged) }()
	return staged, done
}

// TestToldAtOnce: nginx, which checks for itself what it loads, does not wait for our check.
func TestToldAtOnce(t *testing.T) {
	s, place, _, fresh, verdict := judged(t)
	_, done := activate(t, place, fresh)
	s.MustShow(fresh)
	select {
	case err := <-done:
		t.Errorf("activated before the check was at its end: %v", err)
	default:
	}
	verdict(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if sight := place.Verify(t.Context(), fresh.Leaf(), time.Minute); sight.View != connector.Right {
		t.Error(sight)
	}
}

// TestCheckRefusesWhatNginxTakes: where our check fails and nginx has loaded the new pair all the same, as on a host that lets
// the agent's check read less than nginx, nginx comes back to the old pair.
func TestCheckRefusesWhatNginxTakes(t *testing.T) {
	s, place, old, fresh, verdict := judged(t)
	staged, done := activate(t, place, fresh)
	s.MustShow(fresh)
	verdict(false)
	if err := <-done; fault.Of(err).Reason != connector.ReasonConfigRefused {
		t.Fatal(err)
	}
	for range 2 { // a crash may make it twice
		if err := place.Restore(t.Context(), staged); fault.Of(err).Reason != connector.ReasonServerConfigBroken {
			t.Fatal(err)
		}
	}
	if sight := place.Verify(t.Context(), old.Leaf(), time.Minute); sight.View != connector.Right {
		t.Error(sight)
	}
	if found, err := place.Inspect(t.Context()); err != nil || !found.Has(old.Leaf()) {
		t.Errorf("%v, %v", found.Problem, err)
	}
}
