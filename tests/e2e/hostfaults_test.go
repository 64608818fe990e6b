package e2e

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestHostFaults: whatever is wrong on the host, the old certificate goes on being served, the deployment says why, and once
// that is repaired it becomes healthy by itself.
func TestHostFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "")
	t.Run("hosts", func(t *testing.T) {
		for name, scenario := range map[string]func(*testing.T, *world){
			"server stopped": serverStopped, "foreign configuration error": foreignError, "server does not reload": noReload,
			"disk full": diskFull, "folder read-only": readOnly, "path not allowed": notAllowed,
			"hook unknown": hookUnknown, "hook fails": hookFails, "connector not enabled": notEnabled,
			"pending key replaced": pendingKeyReplaced, "pending key lost": pendingKeyLost, "files mismatched by somebody": mismatched,
			"haproxy refuses its configuration": haproxyRefuses, "server goes dark": goesDark, "agent's state full": stateFull,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				scenario(t, w)
			})
		}
	})
}

// trouble renews h, waits for the reason, and makes sure that nothing has changed for clients and on disk; repair makes it
// healthy.
func (h *host) trouble(t *testing.T, reason string, repair func()) {
	t.Helper()
	old, key := h.served(t), h.keepKey(t)
	h.renew(t)
	h.failed(t, reason)
	h.stillServed(t, old)
	if h.keepKey(t) != key {
		t.Error("the key on disk is another, though its certificate is not served")
	}
	h.w.awaitRecord(t, "deployer.assignment.failed", h.Name, reason)
	repair()
	h.healed(t, old)
}

func (h *host) healed(t *testing.T, old *x509.Certificate) {
	t.Helper()
	if leaf := h.healthy(t, 2); leaf.Equal(old) {
		t.Error("the old certificate is still served")
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	h.noPendingKeys(t)
}

func (w *world) deployed(t *testing.T, name string) *host {
	t.Helper()
	h := w.nginx(t, name, "")
	h.deploy(t, "corp")
	h.healthy(t, 1)
	return h
}

// edit replaces text in a file.
func edit(t *testing.T, path, from, to string) {
	t.Helper()
	text := string(ok(os.ReadFile(path))(t))
	if !strings.Contains(text, from) {
		t.Fatalf("%q is not in %s", from, path)
	}
	must(t, os.WriteFile(path, []byte(strings.Replace(text, from, to, 1)), 0o644))
}

func serverStopped(t *testing.T, w *world) {
	h := w.deployed(t, "stopped")
	old, key := h.served(t), h.keepKey(t)
	must(t, h.site.Stop())
	h.renew(t)
	h.failed(t, "SERVER_NOT_RUNNING")
	if h.keepKey(t) != key {
		t.Error("the key on disk is another")
	}
	must(t, h.site.Restart(t.Context()))
	h.healed(t, old)
}

func foreignError(t *testing.T, w *world) {
	h := w.deployed(t, "foreign")
	edit(t, h.site.Config, "http {", "http {\n  no_such_directive on;")
	h.trouble(t, "SERVER_CONFIG_BROKEN", func() { edit(t, h.site.Config, "\n  no_such_directive on;", "") })
}

func haproxyRefuses(t *testing.T, w *world) {
	h := w.haproxy(t, "refuses", "")
	h.deploy(t, "corp")
	h.healthy(t, 1)
	edit(t, h.site.Config, "defaults\n", "defaults\n  no_such_keyword 1\n")
	h.trouble(t, "SERVER_CONFIG_BROKEN", func() { edit(t, h.site.Config, "  no_such_keyword 1\n", "") })
}

// noReload: the hook says that all went well, and the server goes on with the old certificate.
func noReload(t *testing.T, w *world) {
	h := w.hooked(t, "deaf", "[/bin/true]")
	h.troubleFrom(t, "NOT_SERVED")
	h.configure(t, func(c string) string { return strings.Replace(c, "[/bin/true]", h.reloads(), 1) })
	h.healthy(t, 1)
}

func hookFails(t *testing.T, w *world) {
	h := w.hooked(t, "failing", `[/bin/sh, -c, "echo no licence >&2; exit 3"]`)
	h.troubleFrom(t, "HOOK_FAILED")
	if st, _, err := h.status(t); err != nil || !strings.Contains(st.GetMessage(), "no licence") {
		t.Errorf("the deployment does not say what the hook has said: %q, %v", st.GetMessage(), err)
	}
	h.configure(t, func(c string) string {
		return strings.Replace(c, `[/bin/sh, -c, "echo no licence >&2; exit 3"]`, h.reloads(), 1)
	})
	h.healthy(t, 1)
}

func hookUnknown(t *testing.T, w *world) {
	h := w.hooked(t, "unknown", "[/bin/true]")
	h.configure(t, func(c string) string { return strings.Replace(c, "  reload-web:", "  other:", 1) })
	h.troubleFrom(t, "HOOK_UNKNOWN")
	h.configure(t, func(c string) string {
		return strings.Replace(c, "  other: {command: [/bin/true]}", "  reload-web: {command: "+h.reloads()+"}", 1)
	})
	h.healthy(t, 1)
}

// hooked is a host that reloads its server by a hook.
func (w *world) hooked(t *testing.T, name, command string) *host {
	t.Helper()
	site := ok(w.Nginx(t.Context(), name+"-nginx", name+".example.com"))(t)
	return w.enrolWith(t, name, site, watching+enableFiles(site)+"hooks:\n  reload-web: {command: "+command+"}\n")
}

func (h *host) reloads() string { return "[/usr/sbin/nginx, -c, " + h.site.Config + ", -s, reload]" }

// troubleFrom deploys for the first time: the placeholder goes on being served.
func (h *host) troubleFrom(t *testing.T, reason string) {
	t.Helper()
	old, key := h.served(t), h.keepKey(t)
	settings := h.site.Settings()
	settings["reload"] = "reload-web"
	h.deployWith(t, "corp", "files", settings, "")
	h.failed(t, reason)
	h.stillServed(t, old)
	h.w.await(t, "the old key to be back", func() error {
		if got := h.keepKey(t); got != key {
			return fmt.Errorf("the key on disk is another")
		}
		return nil
	})
	h.w.awaitRecord(t, "deployer.assignment.failed", h.Name, reason)
}

func diskFull(t *testing.T, w *world) {
	h := w.deployed(t, "full")
	small(t, h.site.TLSDir)
	filler := filepath.Join(h.site.TLSDir, "filler")
	fill(t, filler)
	h.trouble(t, "DISK_FULL", func() { must(t, os.Remove(filler)) })
}

// fill takes all room there is, to the last byte.
func fill(t *testing.T, filler string) {
	t.Helper()
	f := ok(os.Create(filler))(t)
	for {
		if _, err := f.Write(make([]byte, 512)); err != nil {
			break
		}
	}
	must(t, f.Close())
}

// small puts the folder, as it is, on a tiny file system of its own.
func small(t *testing.T, dir string) {
	t.Helper()
	content := map[string][]byte{}
	modes := map[string]os.FileMode{}
	for _, path := range files(t, dir) {
		content[path] = ok(os.ReadFile(path))(t)
		modes[path] = ok(os.Stat(path))(t).Mode()
	}
	mount(t, dir, "-t", "tmpfs", "-o", "size=64k", "tmpfs", dir)
	for path, data := range content {
		must(t, os.WriteFile(path, data, modes[path]))
	}
}

// mount mounts in the jail's own mount namespace until the test ends.
func mount(t *testing.T, dir string, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
}

func readOnly(t *testing.T, w *world) {
	h := w.deployed(t, "readonly")
	dir := h.site.TLSDir
	mount(t, dir, "--bind", dir, dir)
	remount(t, dir, "ro")
	h.trouble(t, "NOT_WRITABLE", func() { remount(t, dir, "rw") })
}

// notAllowed: the assignment names a file that the host's own configuration does not allow, and it is not touched.
func notAllowed(t *testing.T, w *world) {
	h := w.deployed(t, "outside")
	old := h.served(t)
	elsewhere := filepath.Join(w.Dir, "outside-elsewhere")
	must(t, os.Mkdir(elsewhere, 0o755))
	for _, path := range []string{filepath.Join(elsewhere, "site.pem"), h.site.TLSDir + "/../../outside-elsewhere/site.pem", "/etc/passwd"} {
		settings := h.site.Settings()
		settings["certificate"] = path
		h.deployWith(t, "corp", "nginx", settings, "")
		h.failed(t, map[bool]string{false: "PATH_NOT_ALLOWED", true: "SETTINGS_REFUSED"}[strings.Contains(path, "..")])
	}
	if all := files(t, elsewhere); len(all) > 0 {
		t.Errorf("written outside: %v", all)
	}
	h.stillServed(t, old)
	h.deploy(t, "corp") // an operator takes it back
	h.healed(t, old)
}

func notEnabled(t *testing.T, w *world) {
	site := ok(w.Nginx(t.Context(), "bare-nginx", "bare.example.com"))(t)
	h := w.enrolWith(t, "bare", site, watching)
	old := h.served(t)
	h.deploy(t, "corp")
	h.failed(t, "CONNECTOR_NOT_ENABLED")
	h.stillServed(t, old)
	h.configure(t, func(c string) string { return c + "connectors:\n" + site.Connector() })
	h.healthy(t, 1)
}

// pendingKeyReplaced: between CSR and certificate somebody puts another key in the pending one's place. The certificate is
// for a key that is gone, so it is never installed, and another is asked for.
func pendingKeyReplaced(t *testing.T, w *world) {
	ca := w.acme(t, "ca-swap", pebbletest.Options{})
	h := w.nginx(t, "swap", ca.answers())
	h.deploy(t, ca.name)
	old := h.healthy(t, 1)
	pending := h.holdFinalize(t, ca)
	other := ok(os.ReadFile(pending))(t)
	must(t, os.Remove(pending))
	ca.Heal()
	w.awaitRecord(t, "deployer.assignment.failed", h.Name, "KEY_LOST")
	h.healed(t, old)

	// Now with the key of another generation instead of none: whole and readable, but not the one.
	now := h.served(t)
	pending = h.holdFinalize(t, ca)
	must(t, os.WriteFile(pending, other, 0o600))
	ca.Heal()
	leaf := h.healthy(t, 3)
	if leaf.Equal(now) {
		t.Error("the old certificate is still served")
	}
	if pair := h.pair(t); pair != nil {
		t.Error(pair)
	}
}

// pendingKeyLost: the agent is down while it happens.
func pendingKeyLost(t *testing.T, w *world) {
	ca := w.acme(t, "ca-gone", pebbletest.Options{})
	h := w.nginx(t, "gone", ca.answers())
	h.deploy(t, ca.name)
	old := h.healthy(t, 1)
	pending := h.holdFinalize(t, ca)
	must(t, h.Stop())
	data := ok(os.ReadFile(pending))(t)
	must(t, os.WriteFile(pending, data[:len(data)/2], 0o600))
	ca.Heal()
	w.await(t, "the certificate that nobody has a key for", func() error {
		_, a, err := h.status(t)
		if err == nil && a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_ISSUED {
			err = fmt.Errorf("the assignment is %s", a.GetState())
		}
		return err
	})
	must(t, h.Host.Start())
	// The agent may make another key before it hears that a certificate for the first is there.
	reason := w.awaitRecord(t, "deployer.assignment.failed", h.Name, "").Facts["reason"]
	if reason != "KEY_LOST" && reason != "CHAIN_MISMATCH" {
		t.Errorf("it failed by %s", reason)
	}
	if leaf := h.healthy(t, 2); leaf.Equal(old) {
		t.Error("the old certificate is still served")
	}
}

// holdFinalize renews and stops the CA before it issues; it gives the file of the pending key.
func (h *host) holdFinalize(t *testing.T, ca *acme) string {
	t.Helper()
	before := ca.Hits(pebbletest.Finalize)
	ca.Inject(pebbletest.Fault{Path: pebbletest.Finalize, Times: -1, Status: 503, Type: "serverInternal"})
	h.renew(t)
	h.w.await(t, "the CA to be asked for the certificate", func() error {
		if ca.Hits(pebbletest.Finalize) == before {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	keys := ok(filepath.Glob(filepath.Join(h.State, "keys", "*-*")))(t)
	if len(keys) != 1 {
		t.Fatalf("pending keys: %v", keys)
	}
	return keys[0]
}

// pair says what is wrong with the pair on disk.
func (h *host) pair(t *testing.T) error {
	t.Helper()
	chain, err := pki.ParseChainPEM(ok(os.ReadFile(h.site.Certificate))(t))
	if err != nil {
		return err
	}
	key, err := pki.ParseKeyPEM(ok(os.ReadFile(h.site.Key))(t))
	if err != nil {
		return err
	}
	return pki.CheckPair(chain, key)
}

// mismatched: somebody writes another key over the one in use. The server still serves what it has in memory, but its next
// start would fail: the agent sees that and makes it whole again.
func mismatched(t *testing.T, w *world) {
	h := w.deployed(t, "vandal")
	old := h.served(t)
	dir := t.TempDir()
	must(t, lab.SelfSigned(h.dns, filepath.Join(dir, "cert"), filepath.Join(dir, "key")))
	strangers := ok(os.ReadFile(filepath.Join(dir, "key")))(t)
	must(t, os.WriteFile(h.site.Key, strangers, 0o600))
	if h.pair(t) == nil {
		t.Fatal("the pair on disk still matches")
	}
	w.awaitRecord(t, "deployer.assignment.failed", h.Name, "SERVED_IS_NOT_ASSIGNED")
	w.await(t, "the pair on disk to be whole again", func() error {
		if bytes.Equal(ok(os.ReadFile(h.site.Key))(t), strangers) {
			return fmt.Errorf("the stranger's key is still there")
		}
		return h.pair(t)
	})
	leaf := h.healthy(t, 1)
	must(t, h.site.Restart(t.Context())) // what is on disk is good for a start
	h.stillServed(t, leaf)
	if leaf.Equal(old) {
		t.Error("the old certificate is served, though its key is gone")
	}
}

// goesDark: what should reload the server stops it. The old pair is put back, and a person is called; when the server runs
// again, the rest happens by itself.
func goesDark(t *testing.T, w *world) {
	h := w.hooked(t, "dark", "[/bin/true]")
	stop := "[/usr/sbin/nginx, -c, " + h.site.Config + ", -s, stop]"
	h.configure(t, func(c string) string { return strings.Replace(c, "[/bin/true]", stop, 1) })
	key := h.keepKey(t)
	settings := h.site.Settings()
	settings["reload"] = "reload-web"
	h.deployWith(t, "corp", "files", settings, "")
	h.w.awaitRecord(t, "deployer.assignment.failed", h.Name, "RESTORE_FAILED")
	must(t, h.Stop())
	if h.keepKey(t) != key {
		t.Error("the old pair was not put back")
	}
	must(t, h.site.Restart(t.Context()))
	h.configure(t, func(c string) string { return strings.Replace(c, stop, h.reloads(), 1) })
	h.healthy(t, 1)
}

// stateFull: there is no room left where the agent keeps its own state. It does not begin what it could not finish.
func stateFull(t *testing.T, w *world) {
	h := w.deployed(t, "cramped")
	must(t, h.Stop())
	small(t, filepath.Join(h.State, "keys"))
	must(t, os.Chmod(filepath.Join(h.State, "keys"), 0o700))
	must(t, h.Start())
	filler := filepath.Join(h.State, "keys", "filler")
	fill(t, filler)
	h.trouble(t, "STATE_NOT_WRITABLE", func() { must(t, os.Remove(filler)) })
}
