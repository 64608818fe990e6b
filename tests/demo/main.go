// Demo shows the main job on this machine, on loopback: a control plane, an agent, a local ACME CA, nginx where it is
// installed, and a small TLS site. It leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

func main() {
	if err := dispatch(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// dispatch also serves as the small TLS site and its reload hook, so that the demo is one program.
func dispatch() error {
	if len(os.Args) > 1 {
		switch args := os.Args[2:]; {
		case os.Args[1] == "site" && len(args) == 4:
			return site(args[0], args[1], args[2], args[3])
		case os.Args[1] == "hangup" && len(args) == 1:
			return hangup(args[0])
		}
	}
	keep := flag.Bool("keep", false, "stay up afterwards and say what to try")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sallyport-demo-")
	if err != nil {
		return err
	}
	d := &demo{Lab: lab.New(dir, filepath.Dir(self)), self: self, started: time.Now()}
	err = d.run(ctx, *keep)
	d.Close()
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		return fmt.Errorf("%w\nlogs are in %s", err, dir)
	}
	fmt.Printf("\nStopped clean after %.1f s.\n", time.Since(d.started).Seconds())
	return os.RemoveAll(dir)
}

type demo struct {
	*lab.Lab
	self    string
	started time.Time
	plane   *lab.Plane
	pebble  *pebbletest.Pebble
	story   *story
}

// place is where a certificate gets served.
type place struct {
	deployment, name, address string
	software                  string
	target                    string // YAML of the target without its host
	allow                     string // YAML of the agent's connector
}

func (d *demo) run(ctx context.Context, keep bool) error {
	challenges, err := lab.FreePort()
	if err != nil {
		return err
	}
	corp, public, err := d.begin(ctx, challenges)
	if err != nil {
		return err
	}
	if err := d.enrol(ctx, challenges, corp, public); err != nil {
		return err
	}
	for _, p := range []place{corp, public} {
		if err := d.deploy(ctx, p); err != nil {
			return err
		}
	}
	if err := d.renew(ctx, public); err != nil {
		return err
	}
	if err := d.verify(ctx); err != nil {
		return err
	}
	if keep {
		d.hint(public)
		<-ctx.Done()
	}
	return nil
}

// begin starts everything but the agent.
func (d *demo) begin(ctx context.Context, challenges int) (corp, public place, err error) {
	fmt.Println("Starting a control plane, a local ACME CA and two TLS sites on loopback …")
	if d.pebble, err = pebbletest.Start(pebbletest.Options{HTTPPort: challenges}); err != nil {
		return corp, public, err
	}
	d.OnClose(d.pebble.Close)
	if d.plane, err = d.Serve(ctx, "control", lab.ServeOptions{}); err != nil {
		return corp, public, err
	}
	conn, err := d.plane.Dial("audit")
	if err != nil {
		return corp, public, err
	}
	d.story = &story{out: os.Stdout, audit: auditv1.NewAuditServiceClient(conn)}
	if public, err = d.smallSite(ctx, "public-shop", "shop.example.com"); err != nil {
		return corp, public, err
	}
	nginx, err := d.Nginx(ctx, "nginx", "intranet.corp.example")
	if errors.Is(err, lab.ErrNotInstalled) {
		fmt.Println("nginx is not installed; a small site of ours stands in for it.")
		corp, err = d.smallSite(ctx, "intranet", "intranet.corp.example")
		return corp, public, err
	}
	if err != nil {
		return corp, public, err
	}
	corp = place{
		deployment: "intranet", name: "intranet.corp.example", address: nginx.Address, software: "nginx",
		target: fmt.Sprintf("connector: nginx\n    settings: {certificate: %s, key: %s, verify: %q, server_name: intranet.corp.example}",
			nginx.Certificate, nginx.Key, nginx.Address),
		allow: fmt.Sprintf("  nginx:\n    allow: [%s]\n    config: %s\n    pid_file: %s\n", nginx.TLSDir, nginx.Config, nginx.PIDFile),
	}
	return corp, public, nil
}

// smallSite starts a TLS site of our own, for the connector "files".
func (d *demo) smallSite(ctx context.Context, id, name string) (place, error) {
	dir := filepath.Join(d.Dir, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return place{}, err
	}
	cert, key, pid := filepath.Join(dir, "site.pem"), filepath.Join(dir, "site.key"), filepath.Join(dir, "pid")
	if err := lab.SelfSigned(name, cert, key); err != nil {
		return place{}, err
	}
	port, err := lab.FreePort()
	if err != nil {
		return place{}, err
	}
	p := place{deployment: id, name: name, address: fmt.Sprintf("127.0.0.1:%d", port), software: "a small TLS site"}
	proc, err := d.Start(lab.Command{Name: id, Path: d.self, Args: []string{"site", p.address, cert, key, pid}})
	if err != nil {
		return place{}, err
	}
	p.target = fmt.Sprintf("connector: files\n    settings: {certificate: %s, key: %s, reload: reload-%s, verify: %q, server_name: %s}", cert, key, id, p.address, name)
	p.allow = fmt.Sprintf("hooks:\n  reload-%s: {command: [%s, hangup, %s]}\n", id, d.self, pid)
	return p, lab.Await(ctx, 30*time.Second, "the small site", func() error { _, err := lab.Served(ctx, p.address, name); return err }, proc)
}

// enrol starts an agent that nobody can connect to.
func (d *demo) enrol(ctx context.Context, challenges int, places ...place) error {
	token, err := d.plane.Token(ctx, "web-1")
	if err != nil {
		return err
	}
	connectors, hooks := fmt.Sprintf("  files:\n    allow: [%s]\n", d.Dir), ""
	for _, p := range places {
		if strings.HasPrefix(p.allow, "hooks:") {
			hooks += strings.TrimPrefix(p.allow, "hooks:\n")
		} else {
			connectors += p.allow
		}
	}
	extra := "connectors:\n" + connectors + "hooks:\n" + hooks + fmt.Sprintf("http01: {listen: \"127.0.0.1:%d\"}\n", challenges)
	if _, err := d.Host(ctx, "web-1", token, lab.HostOptions{Server: d.plane.Address, Extra: extra}); err != nil {
		return err
	}
	fmt.Printf("The agent web-1 has enrolled with a one-time token, and listens on nothing. (%.1f s)\n", time.Since(d.started).Seconds())
	return nil
}

// deploy declares the whole of one deployment and tells what happens.
func (d *demo) deploy(ctx context.Context, p place) error {
	authority, profile, what := "corp", "corp-web", "the company's own CA"
	manifest := "kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA, key_type: ecdsa-p256}\n---\n" +
		"kind: Profile\nname: corp-web\nauthority: corp\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nlifetime: 90d\nallowed_domains: [corp.example]\n---\n"
	if strings.HasPrefix(p.deployment, "public") {
		authority, profile, what = "acme", "acme-web", "the ACME CA, proved over HTTP-01"
		bundle := strings.ReplaceAll(strings.TrimSpace(d.pebble.CABundlePEM()), "\n", "\n    ")
		manifest = fmt.Sprintf("kind: Authority\nname: acme\nacme:\n  directory: %s\n  contacts: [\"mailto:pki@example.com\"]\n  terms_agreed: true\n  ca_bundle_pem: |\n    %s\n---\n", d.pebble.Directory(), bundle) +
			"kind: Profile\nname: acme-web\nauthority: acme\nkey_types: [ecdsa-p256]\nusages: [server_auth]\nallowed_domains: [example.com]\nacme_profile: default\n---\n"
	}
	manifest += fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: team-%[1]s@example.com\npurpose: demonstration\nnames: {dns: [%[2]s]}\n---\n", p.deployment, p.name)
	manifest += fmt.Sprintf("kind: Deployment\nname: %[1]s\nidentity: %[1]s\nprofile: %[2]s\ntargets:\n  - host: web-1\n    %[3]s\n", p.deployment, profile, p.target)

	fmt.Printf("\nDeployment %s: %s for %s, from %s (authority %s)\n", p.deployment, p.name, p.software, what, authority)
	start := time.Now()
	if _, err := d.plane.Apply(ctx, manifest); err != nil {
		return err
	}
	return d.follow(ctx, p, 0, start)
}

// follow tells the story up to its end and shows the certificate that is served.
func (d *demo) follow(ctx context.Context, p place, first int, start time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := d.story.tell(ctx, p.deployment, first, start); err != nil {
		return err
	}
	if _, err := d.plane.Do(ctx, "watch", "deployment", p.deployment, "--timeout", "30s"); err != nil {
		return err
	}
	chain, err := lab.Served(ctx, p.address, p.name)
	if err != nil {
		return err
	}
	leaf := chain[0]
	fingerprint := lab.Fingerprint(leaf)
	err = lab.Await(ctx, 30*time.Second, "the inventory", func() error {
		_, err := d.plane.Do(ctx, "get", "certificate", fingerprint)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("  6. %6.0f ms  the inventory knows it, and every step is in the audit log\n", float64(time.Since(start))/1e6)
	fmt.Printf("     served at %s: %v, issued by %q, until %s, fingerprint %s\n",
		p.address, leaf.DNSNames, leaf.Issuer.CommonName, leaf.NotAfter.Format(time.DateOnly), fingerprint[:12])
	return nil
}

func (d *demo) renew(ctx context.Context, p place) error {
	fmt.Printf("\nRenewal needs nobody; here it is forced: sallyport renew deployment %s\n", p.deployment)
	before, err := lab.Served(ctx, p.address, p.name)
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := d.plane.Do(ctx, "renew", "deployment", p.deployment, "--reason", "demonstration"); err != nil {
		return err
	}
	if err := d.follow(ctx, p, 1, start); err != nil {
		return err
	}
	after, err := lab.Served(ctx, p.address, p.name)
	if err != nil {
		return err
	}
	if before[0].Equal(after[0]) {
		return errors.New("the old certificate is still served")
	}
	fmt.Printf("  7. %6.0f ms  the new certificate has replaced the old one, and its key is new too\n", float64(time.Since(start))/1e6)
	return nil
}

// verify checks the audit log without asking the control plane anything more.
func (d *demo) verify(ctx context.Context) error {
	fmt.Println("\nThe audit log, exported and verified offline: sallyport audit verify audit.jsonl --key verifier")
	export := filepath.Join(d.Dir, "audit.jsonl")
	if _, err := d.plane.Do(ctx, "audit", "export", "--output", export); err != nil {
		return err
	}
	out, err := d.plane.Do(ctx, "audit", "verify", export, "--key", filepath.Join(d.plane.Data, "audit", "verifier"))
	if err != nil {
		return err
	}
	fmt.Printf("  %s\n", strings.ReplaceAll(strings.TrimSpace(out), "\n", "\n  "))
	return nil
}

func (d *demo) hint(p place) {
	fmt.Printf(`
It stays up. In another terminal:
  export SALLYPORT_CONFIG=%s/config.yaml
  %[2]s/sallyport get deployments
  %[2]s/sallyport describe deployment %[3]s
  %[2]s/sallyport get certificates --expires-within 100d -o wide
  %[2]s/sallyport renew deployment %[3]s && %[2]s/sallyport watch deployment %[3]s
  %[2]s/sallyport audit tail -f
Press Ctrl-C to stop.
`, d.plane.Operator(), d.Bin, p.deployment)
}
