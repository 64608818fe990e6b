package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// host is a machine with a web server, an agent, and one deployment. Host, identity and deployment have the same name.
type host struct {
	*lab.Host
	w    *world
	site *lab.Site
	dns  string
}

// watching makes agents look often whether all is as it was.
const watching = "verify: {interval: 500ms, wait: 8s}\nscan: {listeners: \"off\"}\n"

// nginx makes a host with nginx. agent is YAML added to the agent's configuration.
func (w *world) nginx(t *testing.T, name, agent string) *host {
	t.Helper()
	return w.enrol(t, name, ok(w.Nginx(t.Context(), name+"-nginx", name+".example.com"))(t), agent)
}

// haproxy makes a host with haproxy.
func (w *world) haproxy(t *testing.T, name, agent string) *host {
	t.Helper()
	return w.enrol(t, name, ok(w.HAProxy(t.Context(), name+"-haproxy", name+".example.com"))(t), agent)
}

func (w *world) enrol(t *testing.T, name string, site *lab.Site, agent string) *host {
	t.Helper()
	return w.enrolWith(t, name, site, watching+"connectors:\n"+site.Connector()+agent)
}

// enrolWith gives the agent's whole configuration, but for what every agent needs.
func (w *world) enrolWith(t *testing.T, name string, site *lab.Site, agent string) *host {
	t.Helper()
	token := ok(w.plane.Token(t.Context(), name))(t)
	h := &host{w: w, site: site, dns: name + ".example.com"}
	h.Host = ok(w.Lab.Host(t.Context(), name, token, lab.HostOptions{Server: w.plane.Address, Extra: agent}))(t)
	t.Cleanup(func() { w.show(t, h.Process, site.Process) })
	w.mu.Lock()
	w.hosts = append(w.hosts, h)
	w.mu.Unlock()
	return h
}

// configure changes the agent's configuration and starts it again.
func (h *host) configure(t *testing.T, change func(string) string) {
	t.Helper()
	old := ok(os.ReadFile(h.Config))(t)
	changed := change(string(old))
	if changed == string(old) {
		t.Fatal("the configuration has not changed")
	}
	must(t, os.WriteFile(h.Config, []byte(changed), 0o600))
	must(t, h.Stop())
	must(t, h.Start())
}

// deploy applies identity and deployment of the host's site.
func (h *host) deploy(t *testing.T, profile string) {
	h.deployWith(t, profile, h.site.Kind, h.site.Settings(), "")
}

func (h *host) deployWith(t *testing.T, profile, connector string, settings map[string]string, extra string) {
	t.Helper()
	h.w.apply(t, identity(h.Name, h.dns), deployment(h.Name, profile, h.Name, connector, settings, extra))
}

func (h *host) renew(t *testing.T) { h.w.do(t, "renew", "deployment", h.Name, "--reason", "e2e") }

// status is that of the host's one target.
func (h *host) status(t *testing.T) (*deployerv1.DeploymentStatus, *deployerv1.AssignmentStatus, error) {
	d, err := h.w.deployer.GetDeployment(t.Context(), &deployerv1.GetDeploymentRequest{Name: h.Name})
	if err != nil {
		return nil, nil, err
	}
	st := d.GetDeployment().GetStatus()
	if len(st.GetAssignments()) != 1 {
		return st, nil, fmt.Errorf("%d assignments: %s", len(st.GetAssignments()), st.GetMessage())
	}
	return st, st.GetAssignments()[0], nil
}

// healthy waits until the deployment is, in this generation or a later one, and gives what is really served then.
func (h *host) healthy(t *testing.T, generation int64) *x509.Certificate {
	t.Helper()
	var leaf *x509.Certificate
	h.w.await(t, fmt.Sprintf("%s to be healthy in generation %d", h.Name, generation), func() error {
		st, a, err := h.status(t)
		if err != nil {
			return err
		}
		if st.GetState() != deployerv1.DeploymentState_DEPLOYMENT_STATE_HEALTHY || a.GetGeneration() < generation {
			return fmt.Errorf("generation %d, attempt %d: %s", a.GetGeneration(), a.GetAttempt(), st.GetMessage())
		}
		leaf = h.served(t)
		if got := lab.Fingerprint(leaf); got != a.GetFingerprint() || got != a.GetServed() {
			return fmt.Errorf("healthy, but %s is served, %s assigned, %s reported", got, a.GetFingerprint(), a.GetServed())
		}
		return nil
	})
	h.keepKey(t)
	return leaf
}

// failed waits until the deployment is, for the reason.
func (h *host) failed(t *testing.T, reason string) {
	t.Helper()
	h.w.await(t, fmt.Sprintf("%s to fail by %s", h.Name, reason), func() error {
		st, a, err := h.status(t)
		if err != nil {
			return err
		}
		if a.GetReason() != reason {
			return fmt.Errorf("%s (%s)", st.GetMessage(), a.GetReason())
		}
		return nil
	})
}

// served is the certificate that a client sees now.
func (h *host) served(t *testing.T) *x509.Certificate {
	t.Helper()
	return ok(lab.Served(t.Context(), h.site.Address, h.dns))(t)[0]
}

// stillServed wants the same certificate as before.
func (h *host) stillServed(t *testing.T, want *x509.Certificate) {
	t.Helper()
	if got := h.served(t); !got.Equal(want) {
		t.Fatalf("%s is served, not the old certificate %s", lab.Fingerprint(got), lab.Fingerprint(want))
	}
}

// trusted wants a client that trusts roots alone to accept the site.
func (h *host) trusted(t *testing.T, roots *x509.CertPool) {
	t.Helper()
	conn, err := tls.Dial("tcp", h.site.Address, &tls.Config{ServerName: h.dns, RootCAs: roots, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatalf("a client that trusts the CA refuses %s: %v", h.Name, err)
	}
	must(t, conn.Close())
}

// root is the root of an authority of our own.
func (w *world) root(t *testing.T, authority string) *x509.CertPool {
	t.Helper()
	got := ok(w.issuer.GetAuthority(t.Context(), &issuerv1.GetAuthorityRequest{Name: authority}))(t)
	chain := ok(pki.ParseChainPEM([]byte(got.GetAuthority().GetChainPem())))(t)
	pool := x509.NewCertPool()
	pool.AddCert(chain[len(chain)-1])
	return pool
}

// keyFile is where the site's key lies.
func (h *host) keyFile() string {
	if h.site.Key != "" {
		return h.site.Key
	}
	return h.site.Certificate
}

// keepKey remembers the key in use, so that it can be looked for where it must not be.
func (h *host) keepKey(t *testing.T) string {
	t.Helper()
	info := ok(os.Stat(h.keyFile()))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v", h.keyFile(), info.Mode())
	}
	return h.w.keys.add(t, h.Name, ok(os.ReadFile(h.keyFile()))(t))
}

// noPendingKeys wants no key in the agent's state but that of its own identity.
func (h *host) noPendingKeys(t *testing.T) {
	t.Helper()
	h.w.await(t, "the agent to erase keys it no longer needs", func() error {
		files, err := os.ReadDir(filepath.Join(h.State, "keys"))
		if err == nil && len(files) > 0 {
			err = fmt.Errorf("there is %s", files[0].Name())
		}
		return err
	})
	h.w.keys.absent(t, h.State)
}

// leftovers are files of an installation under way.
func (h *host) leftovers(t *testing.T) []string {
	t.Helper()
	return ok(filepath.Glob(filepath.Join(h.site.TLSDir, ".*")))(t)
}

// files lists all files below dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			all = append(all, path)
		}
		return err
	}))
	return all
}

// soon bounds what must happen within seconds.
const soon = 12 * time.Second
