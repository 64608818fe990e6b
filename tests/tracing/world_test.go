package tracing

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

const patience = 90 * time.Second

// tuning makes the control plane quick enough to be waited for, and says all.
const tuning = `
log: {level: debug}
deployer:
  agents: {heartbeat_interval: 1s, away_after: 1m}
  rollout: {retry_after: [500ms, 1s], ask_issuer_every: 1s}
issuer:
  orders: {poll: 100ms, poll_max: 500ms, network: 200ms, network_max: 1s, pass: 1s}
audit: {checkpoint_interval: 100ms}
`

const corp = `kind: Authority
name: corp
internal: {common_name: Example Corp CA}
---
kind: Profile
name: corp
authority: corp
key_types: [ecdsa-p256]
usages: [server_auth]
allowed_domains: [example.com]
lifetime: 90d
`

// acme is a CA that wants names proved.
func acme(ca *pebbletest.Pebble) string {
	bundle := strings.ReplaceAll(strings.TrimSpace(ca.CABundlePEM()), "\n", "\n    ")
	return fmt.Sprintf(`kind: Authority
name: public
acme:
  directory: %s
  contacts: ["mailto:pki@example.com"]
  terms_agreed: true
  ca_bundle_pem: |
    %s
---
kind: Profile
name: public
authority: public
key_types: [ecdsa-p256]
usages: [server_auth]
allowed_domains: [example.com]
acme_profile: default
`, ca.Directory(), bundle)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func free(t *testing.T) int {
	t.Helper()
	port, err := lab.FreePort()
	must(t, err)
	return port
}

// world is a control plane and its hosts.
type world struct {
	*lab.Lab
	t        *testing.T
	plane    *lab.Plane
	deployer deployerv1.DeployerServiceClient
	audit    auditv1.AuditServiceClient
}

func newWorld(t *testing.T, config string, env ...string) *world {
	t.Helper()
	root, err := filepath.Abs("../..")
	must(t, err)
	for _, program := range []string{"sallyport", "sallyport-agent"} {
		if _, err := os.Stat(filepath.Join(root, "bin", program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	w := &world{Lab: lab.New(t.TempDir(), filepath.Join(root, "bin")), t: t}
	t.Cleanup(func() {
		w.Close()
		if t.Failed() && w.plane != nil && w.plane.Process != nil {
			lines := strings.Split(strings.TrimSpace(w.plane.Output()), "\n")
			t.Logf("--- control\n%s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	})
	w.plane, err = w.NewPlane("control", lab.ServeOptions{Config: tuning + config})
	must(t, err)
	must(t, w.plane.Launch(env...))
	must(t, lab.Await(t.Context(), patience, "the control plane", func() error {
		_, err := w.plane.Do(t.Context(), "get", "hosts")
		return err
	}, w.plane.Process))
	conn, err := w.plane.Dial("deployer")
	must(t, err)
	w.deployer = deployerv1.NewDeployerServiceClient(conn)
	conn, err = w.plane.Dial("audit")
	must(t, err)
	w.audit = auditv1.NewAuditServiceClient(conn)
	return w
}

func (w *world) apply(documents ...string) {
	w.t.Helper()
	_, err := w.plane.Apply(w.t.Context(), strings.Join(documents, "---\n"))
	must(w.t, err)
}

// host is a machine with nginx and an agent.
type host struct {
	*lab.Host
	site *lab.Site
}

func (w *world) host(name, agent string) *host {
	w.t.Helper()
	site, err := w.Nginx(w.t.Context(), name+"-nginx", name+".example.com")
	must(w.t, err)
	token, err := w.plane.Token(w.t.Context(), name)
	must(w.t, err)
	h, err := w.Host(w.t.Context(), name, token, lab.HostOptions{Server: w.plane.Address, Extra: "scan: {listeners: \"off\"}\nconnectors:\n" + site.Connector() + agent})
	must(w.t, err)
	return &host{h, site}
}

// deploy gives a host its certificate by the command line, which says the trace id.
func (w *world) deploy(h *host, profile string) string {
	w.t.Helper()
	s := h.site.Settings()
	file := filepath.Join(w.Dir, h.Name+"-deployment.yaml")
	must(w.t, os.WriteFile(file, fmt.Appendf(nil, `kind: Identity
name: %[1]s
owner: team@example.com
purpose: test
names: {dns: [%[1]s.example.com]}
---
kind: Deployment
name: %[1]s
identity: %[1]s
profile: %[2]s
targets:
  - name: web
    host: %[1]s
    connector: nginx
    settings: {certificate: %[3]q, key: %[4]q, verify: %[5]q}
`, h.Name, profile, s["certificate"], s["key"], s["verify"]), 0o600))
	r, err := w.plane.CLI(w.t.Context(), "apply", "-f", file, "--verbose")
	must(w.t, err)
	id, ok := strings.CutPrefix(strings.TrimSpace(r.Stderr), "trace id ")
	if r.Code != 0 || !ok {
		w.t.Fatalf("apply: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	return id
}

// served waits until a deployment is healthy.
func (w *world) served(name string) {
	w.t.Helper()
	must(w.t, lab.Await(w.t.Context(), patience, name+" to be served", func() error {
		d, err := w.deployer.GetDeployment(w.t.Context(), &deployerv1.GetDeploymentRequest{Name: name})
		if err != nil {
			return err
		}
		if st := d.GetDeployment().GetStatus(); st.GetState() != deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY {
			return fmt.Errorf("%s: %s", st.GetState(), st.GetMessage())
		}
		return nil
	}))
}
