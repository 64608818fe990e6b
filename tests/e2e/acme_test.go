package e2e

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// acme is a CA of its own, with an authority and a profile named after it.
type acme struct {
	*pebbletest.Pebble
	name       string
	challenges string // where the host must answer
}

// acme starts a CA. Challenges are fetched from a port of their own, so that each host can have its own CA.
func (w *world) acme(t *testing.T, name string, o pebbletest.Options) *acme {
	t.Helper()
	o.HTTPPort = ok(lab.FreePort())(t)
	if o.AdviceEvery == 0 {
		o.AdviceEvery = time.Second
	}
	ca := &acme{Pebble: ok(pebbletest.Start(o))(t), name: name, challenges: fmt.Sprintf("127.0.0.1:%d", o.HTTPPort)}
	w.OnClose(ca.Close)
	w.applyACME(t, ca, ca.Directory())
	return ca
}

func (w *world) applyACME(t *testing.T, ca *acme, directory string) {
	t.Helper()
	bundle := strings.ReplaceAll(strings.TrimSpace(ca.CABundlePEM()), "\n", "\n    ")
	w.apply(t, fmt.Sprintf("kind: Authority\nname: %s\nacme:\n  directory: %s\n  contacts: [\"mailto:pki@example.com\"]\n  terms_agreed: true\n  ca_bundle_pem: |\n    %s\n", ca.name, directory, bundle),
		profile(ca.name, ca.name, "acme_profile: default"))
}

// answers is the agent's configuration to answer the CA's challenges.
func (ca *acme) answers() string { return fmt.Sprintf("http01: {listen: %q}\n", ca.challenges) }

func (ca *acme) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	return ok(ca.Roots(t.Context()))(t)
}

// issued wants so many certificates issued by the CA, each with its record.
func (ca *acme) issued(t *testing.T, w *world, want int) {
	t.Helper()
	if got := ca.Issued(); got != want {
		t.Errorf("%s has issued %d certificates, want %d", ca.name, got, want)
	}
	ca.recorded(t, w, want)
}

// recorded waits for the records of what was issued.
func (ca *acme) recorded(t *testing.T, w *world, want int) {
	t.Helper()
	w.await(t, "the records of what was issued", func() error {
		all, err := w.records(t.Context(), "issuer.request.issued", ca.name)
		if err == nil && len(all) != want {
			err = fmt.Errorf("there are %d, want %d", len(all), want)
		}
		return err
	})
}

// TestHTTP01 is the main job with a public-like CA: the agent answers the challenge itself, and listens for just as long.
func TestHTTP01(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	ca := w.acme(t, "public", pebbletest.Options{})
	h := w.nginx(t, "shop", ca.answers())
	h.listensOnNothing(t)

	// The CA cannot be asked to look until it is let, so that the listener can be seen.
	ca.Inject(pebbletest.Fault{Path: pebbletest.Challenge, Times: -1, Status: 503, Type: "serverInternal"})
	h.deploy(t, "public")
	w.await(t, "the agent to listen for the CA", func() error {
		at, err := h.listeners()
		if err == nil && (len(at) != 1 || at[0] != ca.challenges) {
			err = fmt.Errorf("it listens on %v", at)
		}
		return err
	})
	for _, path := range []string{"/", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/xyz", "/../../etc/passwd"} {
		resp, err := http.Get("http://" + ca.challenges + path)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("the agent answers %s with %s", path, resp.Status)
		}
	}
	ca.Heal()
	first := h.healthy(t, 1)
	h.trusted(t, ca.roots(t))
	ca.issued(t, w, 1)
	h.listensOnNothing(t)

	key := h.keepKey(t)
	h.renew(t)
	second := h.healthy(t, 2)
	h.trusted(t, ca.roots(t))
	if second.Equal(first) || h.keepKey(t) == key {
		t.Error("certificate or key are the old ones")
	}
	if !ca.Replaced(first) || ca.Replaced(second) {
		t.Errorf("the CA was told that the first is replaced: %v, that the second is: %v", ca.Replaced(first), ca.Replaced(second))
	}
	ca.issued(t, w, 2)
	h.listensOnNothing(t)
	h.noPendingKeys(t)
	for _, kind := range []string{"issuer.challenge.presented", "issuer.challenge.withdrawn"} {
		w.awaitRecord(t, kind, h.Name, "")
	}
}

// TestRenewalByTheCAsAdvice: a window in the past makes a renewal happen with nobody doing anything. An outage, or nonsense,
// does not.
func TestRenewalByTheCAsAdvice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")

	t.Run("hosts", func(t *testing.T) {
		t.Run("window in the past", func(t *testing.T) {
			t.Parallel()
			ca := w.acme(t, "asap", pebbletest.Options{})
			h := w.nginx(t, "past", ca.answers())
			h.deploy(t, ca.name)
			first := h.healthy(t, 1)
			must(t, ca.SetRenewalWindow(t.Context(), first, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)))
			second := h.healthy(t, 2)
			if second.Equal(first) {
				t.Error("the old certificate is still served")
			}
			if !ca.Replaced(first) {
				t.Error("the CA was not told what is replaced")
			}
			w.awaitRecord(t, "issuer.certificate.renewal_window_changed", lab.Fingerprint(first), "")
			// The new one has a window of its own: it is not renewed again.
			steady(t, w, ca, h, 2)
			ca.issued(t, w, 2)
		})
		t.Run("outage", func(t *testing.T) {
			t.Parallel()
			ca := w.acme(t, "dark", pebbletest.Options{})
			h := w.nginx(t, "out", ca.answers())
			h.deploy(t, ca.name)
			h.healthy(t, 1)
			ca.Inject(pebbletest.Fault{Path: pebbletest.RenewalInfo, Times: -1, Status: 503, Body: "<html>busy</html>"})
			steady(t, w, ca, h, 1)
			ca.issued(t, w, 1)
		})
		t.Run("nonsense", func(t *testing.T) {
			t.Parallel()
			ca := w.acme(t, "mad", pebbletest.Options{})
			h := w.nginx(t, "odd", ca.answers())
			h.deploy(t, ca.name)
			first := h.healthy(t, 1)
			now := time.Now().UTC().Format(time.RFC3339)
			for _, answer := range []string{
				fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}}`, now, "1999-01-01T00:00:00Z"), // ends before it begins
				`{"suggestedWindow":{"start":"0001-01-01T00:00:00Z","end":"0001-01-02T00:00:00Z"}}`,
				`{"suggestedWindow":{}}`,
				`not JSON`,
			} {
				must(t, ca.SetRenewalAnswer(t.Context(), first, answer))
				steady(t, w, ca, h, 1)
			}
			ca.issued(t, w, 1)
		})
	})
}

// steady makes sure that nothing is renewed while the CA is asked for its advice some times.
func steady(t *testing.T, w *world, ca *acme, h *host, generation int64) {
	t.Helper()
	from := ca.Hits(pebbletest.RenewalInfo)
	w.holds(t, h.Name+" is left as it is", func() error {
		_, a, err := h.status(t)
		if err == nil && a.GetGeneration() != generation {
			err = fmt.Errorf("generation %d has begun: %s", a.GetGeneration(), a.GetRenewReason())
		}
		return err
	}, func() error {
		if n := ca.Hits(pebbletest.RenewalInfo); n < from+3 {
			return fmt.Errorf("the CA was asked %d times", n-from)
		}
		return nil
	})
}

// TestExternalAccountBinding: the MAC key lies in the control plane's secrets folder, and nowhere else.
func TestExternalAccountBinding(t *testing.T) {
	t.Parallel()
	const mac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	w := newWorld(t, "")
	ca := &acme{name: "bound"}
	port := ok(lab.FreePort())(t)
	ca.challenges = fmt.Sprintf("127.0.0.1:%d", port)
	ca.Pebble = ok(pebbletest.Start(pebbletest.Options{HTTPPort: port, EABKeys: map[string]string{"kid-1": mac}}))(t)
	w.OnClose(ca.Close)
	secrets := w.plane.Data + "/secrets"
	must(t, os.MkdirAll(secrets, 0o700))
	must(t, os.WriteFile(secrets+"/bound-mac", []byte(mac), 0o600))
	bundle := strings.ReplaceAll(strings.TrimSpace(ca.CABundlePEM()), "\n", "\n    ")
	w.apply(t, fmt.Sprintf("kind: Authority\nname: bound\nacme:\n  directory: %s\n  eab_key_id: kid-1\n  eab_key_secret: bound-mac\n  terms_agreed: true\n  ca_bundle_pem: |\n    %s\n", ca.Directory(), bundle),
		profile("bound", "bound", "acme_profile: default"))
	h := w.nginx(t, "shop", ca.answers())
	h.deploy(t, "bound")
	h.healthy(t, 1)
	ca.issued(t, w, 1)
	for _, path := range files(t, w.plane.Data) {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), mac) && path != secrets+"/bound-mac" {
			t.Errorf("the MAC key is in %s", path)
		}
	}
	if text := w.plane.Output(); strings.Contains(text, mac) {
		t.Error("the MAC key is in the log")
	}
}
