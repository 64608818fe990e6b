package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/pebbletest"
)

// TestControlPlaneStopsMeanwhile: the control plane is stopped while a CA works on an order, and while an agent has a
// certificate to install; started again it goes on, and nothing is issued twice.
func TestControlPlaneStopsMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	ca := w.acme(t, "public", pebbletest.Options{})
	h := w.nginx(t, "shop", ca.answers())

	ca.Inject(pebbletest.Fault{Path: pebbletest.Challenge, Times: -1, Status: 503, Type: "serverInternal"})
	h.deploy(t, ca.name)
	w.await(t, "the CA to be told that the challenge is answered", func() error {
		if ca.Hits(pebbletest.Challenge) == 0 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	must(t, w.plane.Stop())
	ca.Heal()
	must(t, w.plane.Start(t.Context()))
	first := h.healthy(t, 1)
	ca.issued(t, w, 1)

	// The agent finishes an installation while it is cut off, and tells later. The hook waits to be let go.
	begun, free := filepath.Join(w.Dir, "begun"), filepath.Join(w.Dir, "free")
	slow := w.hooked(t, "slow", "[/bin/true]")
	slow.configure(t, func(c string) string {
		wait := fmt.Sprintf("echo >%s; while [ ! -e %s ]; do sleep 0.02; done; exec /usr/sbin/nginx -c %s -s reload", begun, free, slow.site.Config)
		return strings.Replace(c, "[/bin/true]", fmt.Sprintf("[/bin/sh, -c, %q]", wait), 1)
	})
	settings := slow.site.Settings()
	settings["reload"] = "reload-web"
	slow.deployWith(t, "corp", "files", settings, "")
	w.await(t, "the hook to be run", func() error { _, err := os.Stat(begun); return err })
	placeholder := slow.served(t)
	must(t, w.plane.Stop())
	must(t, os.WriteFile(free, nil, 0o600))
	w.await(t, "the new certificate to be served", func() error {
		if slow.served(t).Equal(placeholder) {
			return errors.New("the placeholder is")
		}
		return nil
	})
	must(t, w.plane.Start(t.Context()))
	slow.healthy(t, 1)
	h.renew(t)
	if second := h.healthy(t, 2); second.Equal(first) {
		t.Error("the old certificate is still served")
	}
	ca.issued(t, w, 2)
	h.listensOnNothing(t)
}

// settled waits until no renewal is under way.
func (h *host) settled(t *testing.T) {
	t.Helper()
	h.w.await(t, h.Name+" to settle", func() error {
		_, a, err := h.status(t)
		if err == nil && a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			err = fmt.Errorf("it is %s", a.GetState())
		}
		return err
	})
}
