package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Services are those that a control plane is made of, in the order of their start; any order works.
var Services = []string{"inventory", "issuer", "deployer", "audit"}

// Daemons is a control plane of four daemons with a broker of its own.
type Daemons struct {
	// Plane is the deployer's. At has where the others and the broker, "nats", are reached; until Start it may be changed to
	// what stands before them.
	*Plane
	// Runs are the daemons, by service.
	Runs map[string]*Process
	// Broker is what events go through.
	Broker *Broker

	domain, dsn string
	config      map[string]string
	listen      map[string]string // as At was made
}

// DaemonsOptions of four daemons; the zero value works.
type DaemonsOptions struct {
	// TrustDomain is "sallyport.local" when empty.
	TrustDomain string
	// DSN is that of a PostgreSQL database; when empty each service has SQLite in its folder.
	DSN string
	// Config is YAML added to the configuration of a service; that of "" to all.
	Config map[string]string
}

// NewDaemons makes trust domain, identities and addresses in the folder id, and starts nothing.
func (l *Lab) NewDaemons(ctx context.Context, id string, o DaemonsOptions) (*Daemons, error) {
	d := &Daemons{Runs: map[string]*Process{}, domain: o.TrustDomain, dsn: o.DSN, config: o.Config, listen: map[string]string{}}
	if d.domain == "" {
		d.domain = "sallyport.local"
	}
	at := map[string]string{}
	for _, name := range append([]string{"nats"}, Services...) {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		at[name] = fmt.Sprintf("127.0.0.1:%d", port)
		d.listen[name] = at[name]
	}
	var err error
	if d.Plane, err = l.NewPlane(id, ServeOptions{Address: at["deployer"]}); err != nil {
		return nil, err
	}
	d.At = at
	if err := os.Mkdir(d.Data, 0o700); err != nil {
		return nil, err
	}
	if _, err := d.Do(ctx, "trust", "init", "--dir", d.Trust(), "--trust-domain", d.domain); err != nil {
		return nil, err
	}
	for name, out := range map[string]string{"operator/admin": d.Operator(), "service/nats": d.Folder("nats"), "service/inventory": d.Folder("inventory"),
		"service/issuer": d.Folder("issuer"), "service/deployer": d.Folder("deployer"), "service/audit": d.Folder("audit")} {
		if _, err := d.Do(ctx, "trust", "issue", "--dir", d.Trust(), name, "--out", out); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Trust is the folder of the trust domain's root.
func (d *Daemons) Trust() string { return filepath.Join(d.Data, "trust") }

// Folder is that of a service, or of the broker, with its identity and what it keeps.
func (d *Daemons) Folder(name string) string { return filepath.Join(d.Data, name) }

// Start starts broker and daemons and waits until all answer.
func (d *Daemons) Start(ctx context.Context) error {
	d.Address = d.At["deployer"]
	contexts := fmt.Sprintf("current_context: site\ncontexts:\n  - name: site\n    identity: %s\n    servers:\n", d.Operator())
	for _, service := range Services {
		contexts += fmt.Sprintf("      %s: %s\n", service, d.At[service])
	}
	if err := os.WriteFile(filepath.Join(d.Operator(), "config.yaml"), []byte(contexts), 0o600); err != nil {
		return err
	}
	if err := d.startBroker(); err != nil {
		return fmt.Errorf("starting the broker: %w", err)
	}
	for _, service := range Services {
		if err := d.StartOne(service); err != nil {
			return err
		}
	}
	return d.Await(ctx)
}

func (d *Daemons) startBroker() error {
	users := ""
	for _, service := range Services {
		users += fmt.Sprintf("{user: \"spiffe://%s/service/%s\"}\n", d.domain, service)
	}
	dir := d.Folder("nats")
	file := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf(`server_name: nats-1
listen: %s
jetstream { store_dir: %q, sync_interval: always }
tls { cert_file: %q, key_file: %q, ca_file: %q, verify_and_map: true, min_version: "1.3" }
authorization { users = [
%s] }
`, d.listen["nats"], filepath.Join(dir, "store"), filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid-key.pem"), filepath.Join(dir, "bundle.pem"), users)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	var err error
	d.Broker, err = d.lab.NATS(file)
	return err
}

// StartOne starts the daemon of a service, after it was stopped or killed too, and waits for nothing.
func (d *Daemons) StartOne(service string) error {
	dir := d.Folder(service)
	database := fmt.Sprintf("{driver: postgres, dsn: %q}", d.dsn)
	if d.dsn == "" {
		database = fmt.Sprintf("{driver: sqlite, dsn: %q}", filepath.Join(dir, "data.db"))
	}
	text := fmt.Sprintf("listen: %s\nidentity: {dir: %q}\nnats: {url: \"tls://%s\"}\ndatabase: %s\n", d.listen[service], dir, d.At["nats"], database)
	switch service {
	case "deployer":
		text += fmt.Sprintf("svid_authority: {certificate: %q, key: %q}\npeers: {issuer: %q, inventory: %q}\n",
			filepath.Join(d.Trust(), "root.pem"), filepath.Join(d.Trust(), "root-key.pem"), d.At["issuer"], d.At["inventory"])
	case "issuer":
		text += fmt.Sprintf("key_encryption_key: %q\npeers: {inventory: %q}\n", filepath.Join(dir, "kek"), d.At["inventory"])
	case "audit":
		text += fmt.Sprintf("directory: %q\n", dir)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(text+d.config[""]+d.config[service]), 0o600); err != nil {
		return err
	}
	proc, err := d.lab.Start(Command{Name: service, Path: filepath.Join(d.lab.Bin, "sallyport-"+service), Args: []string{"--config", file}})
	if err != nil {
		return err
	}
	d.Runs[service] = proc
	if service == "deployer" {
		d.Process = proc
	}
	return nil
}

// Await waits until all daemons answer the operator.
func (d *Daemons) Await(ctx context.Context) error {
	procs := make([]*Process, 0, len(Services))
	for _, service := range Services {
		procs = append(procs, d.Runs[service])
	}
	return Await(ctx, time.Minute, "the four daemons", func() error {
		for _, question := range []string{"get hosts", "get authorities", "get agents", "audit key"} {
			r, err := d.CLI(ctx, strings.Fields(question)...)
			if err != nil {
				return err
			}
			if r.Code != 0 {
				return errors.New(strings.TrimSpace(r.Stderr))
			}
		}
		return nil
	}, procs...)
}

// Stop stops the daemons, and the broker after them.
func (d *Daemons) Stop() error {
	var all []error
	for _, service := range Services {
		all = append(all, d.Runs[service].Stop())
	}
	d.Broker.Stop()
	return errors.Join(all...)
}
