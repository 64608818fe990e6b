package e2e

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestWhatIsWantedChanges: names, key type, profile, targets; what cannot be seen; and the end of a deployment.
func TestWhatIsWantedChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	t.Run("hosts", func(t *testing.T) {
		for name, scenario := range map[string]func(*testing.T, *world){
			"names and keys": namesAndKeys, "deleted": deleted, "cannot see": cannotSee, "rollout stops": rolloutStops, "renewal in time": renewalInTime,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				scenario(t, w)
			})
		}
	})
}

// namesAndKeys: a deployment follows its identity and its profile by itself.
func namesAndKeys(t *testing.T, w *world) {
	w.apply(t, strings.Replace(profile("either", "corp", "lifetime: 30d"), "[ecdsa-p256]", "[ecdsa-p256, ecdsa-p384]", 1))
	h := w.nginx(t, "names", "")
	h.deploy(t, "either")
	first := h.healthy(t, 1)

	more := strings.Replace(identity(h.Name, h.dns), "["+h.dns, "["+h.dns+", extra.example.com", 1)
	w.apply(t, more)
	second := h.healthy(t, 2)
	if want := []string{"extra.example.com", h.dns}; !slices.Equal(slices.Sorted(slices.Values(second.DNSNames)), want) {
		t.Errorf("served for %v, wanted %v", second.DNSNames, want)
	}
	w.apply(t, more, deployment(h.Name, "either", h.Name, "nginx", h.site.Settings(), "key_type: ecdsa-p384"))
	third := h.healthy(t, 3)
	if key, is := third.PublicKey.(*ecdsa.PublicKey); !is || key.Curve.Params().BitSize != 384 {
		t.Errorf("the key is %T", third.PublicKey)
	}
	w.apply(t, more, deployment(h.Name, "corp", h.Name, "nginx", h.site.Settings(), ""))
	fourth := h.healthy(t, 4)
	if left := time.Until(fourth.NotAfter); left < 80*24*time.Hour {
		t.Errorf("it ends in %s, the profile says 90 days", left)
	}
	if first.Equal(second) || second.Equal(third) || third.Equal(fourth) {
		t.Error("some certificate was not replaced")
	}

	// A name that the identity loses and the deployment still asks for: nothing is issued for it any more, and the deployment says so.
	w.apply(t, deployment(h.Name, "corp", h.Name, "nginx", h.site.Settings(), "names: {dns: [extra.example.com]}"))
	h.healthy(t, 5)
	w.apply(t, identity(h.Name, h.dns))
	w.await(t, "the deployment to say that it does not fit its identity", func() error {
		st, _, err := h.status(t)
		if err == nil && !strings.Contains(st.GetMessage(), "extra.example.com") {
			err = fmt.Errorf("it says %q", st.GetMessage())
		}
		return err
	})
	if r := ok(w.plane.CLI(t.Context(), "renew", "deployment", h.Name))(t); r.Code == 0 {
		_, a, err := h.status(t)
		must(t, err)
		if a.GetGeneration() > 5 && a.GetState() == deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			t.Error("a name that the identity lost was issued for")
		}
	}
	h.deploy(t, "corp")
	h.healthy(t, 6)
}

// deleted: nothing more is asked of the agent, and what is installed stays.
func deleted(t *testing.T, w *world) {
	h := w.nginx(t, "deleted", "")
	h.deploy(t, "corp")
	leaf := h.healthy(t, 1)
	w.do(t, "delete", "deployment", h.Name, "--yes", "--reason", "e2e")
	w.awaitRecord(t, "deployer.assignment.withdrawn", h.Name, "")
	w.await(t, "the agent to forget it", func() error {
		left, err := os.ReadDir(filepath.Join(h.State, "progress"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("there is %s", left[0].Name())
		}
		return err
	})
	must(t, h.site.Restart(t.Context()))
	h.stillServed(t, leaf)
	h.noPendingKeys(t)
	if r := ok(w.plane.CLI(t.Context(), "get", "deployment", h.Name))(t); r.Code != 3 {
		t.Errorf("get of a deleted deployment: exit code %d", r.Code)
	}
	h.deploy(t, "corp") // and back again
	if again := h.healthy(t, 1); again.Equal(leaf) {
		t.Error("the old certificate is still served")
	}
}

// cannotSee: installed is not served.
func cannotSee(t *testing.T, w *world) {
	h := w.nginx(t, "blind", "")
	settings := h.site.Settings()
	delete(settings, "verify")
	h.deployWith(t, "corp", "nginx", settings, "")
	r := ok(w.plane.CLI(t.Context(), "watch", "deployment", h.Name, "--timeout", "90s"))(t)
	if r.Code != 9 {
		t.Errorf("watch of what cannot be seen: exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	st, a, err := h.status(t)
	must(t, err)
	if st.GetState() != deployerv1.DeploymentState_DEPLOYMENT_STATE_UNVERIFIED || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_INSTALLED {
		t.Errorf("it is %s, %s", st.GetState(), a.GetState())
	}
	w.await(t, "what is installed to be served", func() error { // nobody has waited for the server to reload
		if got := lab.Fingerprint(h.served(t)); got != a.GetFingerprint() {
			return fmt.Errorf("served is %s, assigned %s", got, a.GetFingerprint())
		}
		return nil
	})
	h.deploy(t, "corp")
	h.healthy(t, 2)
}

// rolloutStops: one target after the other, and none more once one has failed.
func rolloutStops(t *testing.T, w *world) {
	hosts := map[string]*host{}
	var targets []string
	for _, name := range []string{"wave-1", "wave-2", "wave-3"} {
		h := w.nginx(t, name, "")
		hosts[name] = h
		edit(t, h.site.Config, "server_name "+name+".example.com", "server_name wave.example.com")
		edit(t, h.site.Config, "http {", "http {\n  no_such_directive on;")
		targets = append(targets, fmt.Sprintf("  - {host: %s, connector: nginx, settings: {certificate: %s, key: %s, verify: %q}}", name, h.site.Certificate, h.site.Key, h.site.Address))
	}
	w.apply(t, identity("wave", "wave.example.com"),
		"kind: Deployment\nname: wave\nidentity: wave\nprofile: corp\nrollout: {max_parallel: 1, max_failures: 1}\ntargets:\n"+strings.Join(targets, "\n")+"\n")
	states := func() (map[deployerv1.AssignmentState][]string, string, error) {
		d, err := w.deployer.GetDeployment(t.Context(), &deployerv1.GetDeploymentRequest{Name: "wave"})
		found := map[deployerv1.AssignmentState][]string{}
		for _, a := range d.GetDeployment().GetStatus().GetAssignments() {
			found[a.GetState()] = append(found[a.GetState()], a.GetTarget().GetHost())
		}
		return found, d.GetDeployment().GetStatus().GetMessage(), err
	}
	var first string
	w.await(t, "the first target to fail", func() error {
		found, message, err := states()
		if failed := found[deployerv1.AssignmentState_ASSIGNMENT_STATE_FAILED]; err == nil && len(failed) == 1 {
			first = failed[0]
			return nil
		}
		return fmt.Errorf("%v: %s: %w", found, message, err)
	})
	attempts := len(ok(w.records(t.Context(), "deployer.assignment.failed", "wave"))(t))
	w.holds(t, "the others are not begun", func() error {
		found, _, err := states()
		if n := len(found[deployerv1.AssignmentState_ASSIGNMENT_STATE_PLANNED]); err == nil && n != 2 {
			err = fmt.Errorf("%v", found)
		}
		return err
	}, func() error {
		if n := len(ok(w.records(t.Context(), "deployer.assignment.failed", "wave"))(t)); n < attempts+2 {
			return fmt.Errorf("%d attempts", n)
		}
		return nil
	})
	if r := ok(w.plane.CLI(t.Context(), "watch", "deployment", "wave", "--timeout", "1m"))(t); r.Code != 6 {
		t.Errorf("watch of a failed deployment: exit code %d: %s", r.Code, r.Stderr)
	}
	for name, h := range hosts {
		if name != first {
			edit(t, h.site.Config, "\n  no_such_directive on;", "")
		}
	}
	edit(t, hosts[first].site.Config, "\n  no_such_directive on;", "")
	w.await(t, "all targets to be served", func() error {
		found, message, err := states()
		if err == nil && len(found[deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED]) != 3 {
			err = errors.New(message)
		}
		return err
	})
	w.do(t, "watch", "deployment", "wave", "--timeout", "1m")
	seen := map[string]bool{}
	for _, h := range hosts {
		chain := ok(lab.Served(t.Context(), h.site.Address, "wave.example.com"))(t)
		seen[lab.Fingerprint(chain[0])] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d certificates on 3 hosts: a key has left its host", len(seen))
	}
}

// renewalInTime: with nobody doing anything, a certificate that lives for two minutes is replaced before it ends, again and again.
func renewalInTime(t *testing.T, w *world) {
	w.apply(t, profile("brief", "corp", "lifetime: 2m"))
	h := w.nginx(t, "brief", "")
	h.deployWith(t, "brief", "nginx", h.site.Settings(), "renewal: {before_expiry: 110s}")
	leaf := h.healthy(t, 1)
	for generation := int64(2); generation <= 3; generation++ {
		next := h.healthy(t, generation)
		if time.Now().After(leaf.NotAfter) {
			t.Error("it had ended before it was replaced")
		}
		leaf = next
	}
	w.awaitRecord(t, "deployer.assignment.planned", h.Name, "")
	h.deploy(t, "corp")
}
