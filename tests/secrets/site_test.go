package secrets

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/pebbletest"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// ground is a file system in memory, of the jail alone.
const ground = "/mnt"

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "4") // they wait for agents
	os.Exit(lab.Jail("mount -t tmpfs -o mode=755 tmpfs "+ground, m.Run))
}

// patience is how long anything may take before it counts as never.
const patience = 90 * time.Second

// config makes the loops quick, and lets the programs say all they have to say. It is by service; that of "" is for all.
var config = map[string]string{
	"":         "log: {level: debug}\n",
	"deployer": "agents: {heartbeat_interval: 1s, away_after: 1m, scan_interval: 1s}\nrollout: {retry_after: [500ms], ask_issuer_every: 1s, check_every: 5s}\n",
	"issuer": "identity_max_age: 100ms\n" +
		"orders: {poll: 100ms, poll_max: 500ms, network: 200ms, network_max: 1s, validation: [300ms, 600ms, 1s], claim: 6s, pass: 1s, host_patience: 5s}\n" +
		"renewal_info: {every: 1s, least: 500ms, most: 2s, retry: 500ms}\n",
	"audit": "checkpoint_interval: 100ms\n",
}

// Keys that accounts are bound to CAs with (RFC 8555 section 7.3.4). The second is not written as it must be.
const (
	mac      = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	crookMAC = "this+is/no=base64url and it must not be quoted by any error either"
)

// site is a control plane, the agents that reach it through a relay, and all secrets there are.
type site struct {
	*lab.Lab
	*hoard
	plane    *lab.Plane
	deployer deployerv1.DeployerServiceClient
	daemons  *lab.Daemons // nil: the control plane is serve
	dsn      string       // of the daemons' database
	grpc     *relay       // between agents and the control plane
	relays   []*relay     // all there are
	contexts string       // the operator's, with relays as servers
	hosts    []*host
	planted  map[string]leak
	allowed  []place // besides those that are always allowed

	challenges string // where the CA fetches what a host answers
}

// host has a server, an agent and one deployment, all of one name.
type host struct {
	*lab.Host
	server *lab.Site
}

// newSite starts serve.
func newSite(t *testing.T) *site {
	t.Helper()
	s := newLab(t)
	s.allowed = allowedInServe
	text := config[""]
	for _, service := range []string{"deployer", "issuer", "audit"} {
		text += service + ":\n  " + strings.ReplaceAll(strings.TrimSpace(config[service]), "\n", "\n  ") + "\n"
	}
	s.plane = ok(s.Serve(t.Context(), "control", lab.ServeOptions{Config: text}))(t)
	services := map[string]*tls.Certificate{}
	for _, name := range lab.Services {
		out := filepath.Join(s.Dir, "relay-"+name)
		ok(s.plane.Do(t.Context(), "trust", "issue", "service/"+name, "--data", s.plane.Data, "--out", out))(t)
		services[name] = s.serviceIn(t, name, out)
	}
	s.grpc = s.relay(t, &relay{medium: inCall, upstream: s.plane.Address, server: passFor(services)})
	s.contexts = filepath.Join(s.Dir, "contexts.yaml")
	must(t, os.WriteFile(s.contexts, fmt.Appendf(nil, "current_context: relay\ncontexts: [{name: relay, server: %q, identity: %q}]\n",
		s.grpc.address(), s.plane.Operator()), 0o600))
	return s.begin(t)
}

// newDaemons starts the four daemons, with a relay before each of them, before the broker and before the database.
func newDaemons(t *testing.T) *site {
	t.Helper()
	s := newLab(t)
	s.allowed = allowedInDaemons
	own := map[string]string{"issuer": fmt.Sprintf("secrets_dir: %q\n", filepath.Join(s.Dir, "control/secrets"))}
	for service, text := range config {
		own[service] += text
	}
	// The database's own files are another machine's: what is in there is what its tables have, and what was said to it.
	s.dsn = ok(s.Postgres(t.Context(), "postgres"))(t)
	socket := filepath.Join(strings.TrimPrefix(strings.Fields(s.dsn)[0], "host="), ".s.PGSQL.5432")
	statements := s.relay(t, &relay{medium: inStatement, upstream: socket})
	address, port, _ := strings.Cut(statements.address(), ":")
	s.daemons = ok(s.NewDaemons(t.Context(), "control", lab.DaemonsOptions{Config: own,
		DSN: fmt.Sprintf("host=%s port=%s user=postgres sslmode=disable dbname=postgres", address, port)}))(t)
	s.plane = s.daemons.Plane
	must(t, os.Mkdir(filepath.Join(s.plane.Data, "secrets"), 0o700))
	for _, name := range append([]string{"nats"}, lab.Services...) {
		r := &relay{medium: inCall, peers: inPeerCall, upstream: s.plane.At[name]}
		pair := s.serviceIn(t, name, s.daemons.Folder(name))
		r.server = passFor(map[string]*tls.Certificate{name: pair})
		if name == "nats" {
			r.medium, r.peers, r.greets = inBroker, "", true
			r.server = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{*pair}, SessionTicketsDisabled: true}
		}
		s.plane.At[name] = s.relay(t, r).address()
		if name == "deployer" {
			s.grpc = r
		}
	}
	s.from("operator key", "admin", filepath.Join(s.plane.Operator(), identity.FileKey))
	must(t, s.daemons.Start(t.Context()))
	s.contexts = filepath.Join(s.plane.Operator(), "config.yaml")
	return s.begin(t)
}

func newLab(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp(ground, "")
	must(t, err)
	s := &site{Lab: lab.New(dir, bin(t)), hoard: newHoard(), planted: leaks()}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, path := range logs {
				text, _ := os.ReadFile(path)
				lines := strings.Split(strings.TrimSpace(string(text)), "\n")
				t.Logf("--- %s\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-30):], "\n"))
			}
		}
		s.Close()
	})
	s.watch()
	s.OnClose(s.hoard.stop)
	return s
}

// begin has a control plane that runs, and gives it its CAs.
func (s *site) begin(t *testing.T) *site {
	t.Helper()
	s.from("operator key", "admin", filepath.Join(s.plane.Operator(), identity.FileKey))
	s.deployer = deployerv1.NewDeployerServiceClient(ok(s.plane.Dial("deployer"))(t))
	s.relayACME(t)
	return s
}

// stop ends the control plane in good order.
func (s *site) stop() error {
	if s.daemons != nil {
		return s.daemons.Stop()
	}
	return s.plane.Stop()
}

// relay puts a relay before a server.
func (s *site) relay(t *testing.T, r *relay) *relay {
	t.Helper()
	r.client = s.pair
	r.listen(t)
	s.OnClose(r.stop)
	s.relays = append(s.relays, r)
	return r
}

// serviceIn is what a service shows that has its identity in the folder. One can pass for it only with what the trust domain's root
// has signed.
func (s *site) serviceIn(t *testing.T, name, dir string) *tls.Certificate {
	t.Helper()
	pair := ok(tls.LoadX509KeyPair(filepath.Join(dir, identity.FileSVID), filepath.Join(dir, identity.FileKey)))(t)
	root, _ := pem.Decode(ok(os.ReadFile(filepath.Join(dir, identity.FileBundle)))(t))
	pair.Certificate = append(pair.Certificate, root.Bytes) // as the control plane does, for the first contact
	s.from("service key", name, filepath.Join(dir, identity.FileKey))
	return &pair
}

// passFor is the TLS of a server with these services.
func passFor(services map[string]*tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name, _ := strings.CutSuffix(hello.ServerName, rpc.ServerNameSuffix)
			if services[name] == nil {
				return nil, fmt.Errorf("%q is no service", hello.ServerName)
			}
			return services[name], nil
		},
	}
}

// relayACME starts a CA that wants its accounts bound, with a relay before it, and the authority "public".
func (s *site) relayACME(t *testing.T) {
	t.Helper()
	port := ok(lab.FreePort())(t)
	ca := ok(pebbletest.Start(pebbletest.Options{HTTPPort: port, EABKeys: map[string]string{s.planted["key id"].text: mac}, AdviceEvery: time.Second}))(t)
	s.OnClose(ca.Close)
	own, key := filepath.Join(s.Dir, "relay-acme.pem"), filepath.Join(s.Dir, "relay-acme.key")
	must(t, lab.SelfSigned("localhost", own, key))
	pair := ok(tls.LoadX509KeyPair(own, key))(t)
	directory := strings.TrimPrefix(ca.Directory(), "https://")
	address, path, _ := strings.Cut(directory, "/")
	acme := s.relay(t, &relay{medium: inACME, upstream: address,
		server: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}})
	_, relayPort, _ := strings.Cut(acme.address(), ":")

	secrets := filepath.Join(s.plane.Data, "secrets")
	must(t, os.MkdirAll(secrets, 0o700))
	for name, text := range map[string]string{"public-mac": mac, "crooked-mac": crookMAC} {
		must(t, os.WriteFile(filepath.Join(secrets, name), []byte(text), 0o600))
	}
	s.add(secret{"MAC key", "bound", string(ok(base64.RawURLEncoding.DecodeString(mac))(t))}, secret{"MAC key", "bound, as it is written", mac},
		secret{"MAC key", "crooked", crookMAC})
	bundle := strings.ReplaceAll(strings.TrimSpace(string(ok(os.ReadFile(own))(t))), "\n", "\n    ")
	authority := func(name, mac, contact string) string {
		return fmt.Sprintf("kind: Authority\nname: %s\nacme:\n  directory: https://localhost:%s/%s\n  contacts: [%q]\n  eab_key_id: %q\n  eab_key_secret: %s\n  terms_agreed: true\n  ca_bundle_pem: |\n    %s\n",
			name, relayPort, path, contact, s.planted["key id"].text, mac, bundle)
	}
	s.apply(t, "kind: Authority\nname: corp\ninternal: {common_name: Example Corp CA}\n", profile("corp", "corp", "ecdsa-p256", "lifetime: 90d"),
		profile("old", "corp", "rsa-2048", "lifetime: 90d"), authority("public", "public-mac", "mailto:"+s.planted["contact"].text+"@example.com"),
		profile("public", "public", "ecdsa-p256", "acme_profile: default"))
	// One that cannot work says why, without the key.
	r := s.cli(t, "apply", "-f", s.write(t, "crooked.yaml", authority("crooked", "crooked-mac", "mailto:pki@example.com")))
	s.write(t, "crooked.answer", r.Stdout+r.Stderr)
	s.challenges = fmt.Sprintf("127.0.0.1:%d", port)
}

func profile(name, authority, keyType, extra string) string {
	return fmt.Sprintf("kind: Profile\nname: %s\nauthority: %s\nkey_types: [%s]\nusages: [server_auth]\nallowed_domains: [example.com]\n%s\n", name, authority, keyType, extra)
}

// bin is the folder that `make build` fills.
func bin(t *testing.T) string {
	t.Helper()
	dir := ok(filepath.Abs("../../bin"))(t)
	for _, program := range []string{"sallyport", "sallyport-agent"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	return dir
}

// ok takes the result of a call that must succeed.
func ok[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func (s *site) await(t *testing.T, what string, check func() error) {
	t.Helper()
	must(t, lab.Await(t.Context(), patience, what, check, s.plane.Process))
}

// cli runs the operator's command line through the relay.
func (s *site) cli(t *testing.T, args ...string) lab.Result {
	t.Helper()
	return ok(s.Run(t.Context(), lab.Command{Path: filepath.Join(s.Bin, "sallyport"), Args: args, Env: []string{"SALLYPORT_CONFIG=" + s.contexts}}))(t)
}

// do is cli for what must succeed.
func (s *site) do(t *testing.T, args ...string) string {
	t.Helper()
	r := s.cli(t, args...)
	if r.Code != 0 {
		t.Fatalf("sallyport %s: %s", strings.Join(args, " "), r.Stderr)
	}
	return r.Stdout
}

func (s *site) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.Dir, name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func (s *site) apply(t *testing.T, documents ...string) {
	t.Helper()
	s.do(t, "apply", "-f", s.write(t, "apply.yaml", strings.Join(documents, "---\n")))
}

// enrol makes a host. extra is its agent's configuration.
func (s *site) enrol(t *testing.T, name string, server *lab.Site, extra string) *host {
	t.Helper()
	h := &host{server: server}
	key := server.Key
	if key == "" {
		key = server.Certificate
	}
	s.from("host key", name, key)
	for _, record := range []string{"pending", "current", "next"} {
		s.from("agent key", name, filepath.Join(s.Dir, name, "state/identity", record))
	}
	token := s.write(t, name+".token", s.token(t, name))
	extra = "log: {level: debug}\nverify: {interval: 500ms, wait: 8s}\nscan: {listeners: \"off\"}\n" + extra
	h.Host = ok(s.Lab.Host(t.Context(), name, token, lab.HostOptions{Server: s.grpc.address(), Extra: extra}))(t)
	s.hosts = append(s.hosts, h)
	return h
}

// token makes a join token.
func (s *site) token(t *testing.T, host string) string {
	t.Helper()
	text := s.do(t, "token", "create", "--host", host, "--quiet")
	s.add(secret{"join token", host, string(ok(identity.ParseJoinToken(text))(t).Secret)})
	return text
}

// deploy gives the host a certificate of the profile.
func (s *site) deploy(t *testing.T, h *host, profile, connector string, settings map[string]string) {
	t.Helper()
	s.apply(t, fmt.Sprintf("kind: Identity\nname: %[1]s\nowner: team@example.com\npurpose: for %[2]s\nnames: {dns: [%[1]s.example.com]}\n", h.Name, s.planted["purpose"].text),
		fmt.Sprintf("kind: Deployment\nname: %[1]s\nidentity: %[1]s\nprofile: %[2]s\ntargets: [{host: %[1]s, connector: %[3]s, settings: %[4]s}]\n",
			h.Name, profile, connector, ok(json.Marshal(settings))(t)))
}

func (s *site) assignment(t *testing.T, h *host) *deployerv1.AssignmentStatus {
	t.Helper()
	d := ok(s.deployer.GetDeployment(t.Context(), &deployerv1.GetDeploymentRequest{Name: h.Name}))(t)
	if all := d.GetDeployment().GetStatus().GetAssignments(); len(all) == 1 {
		return all[0]
	}
	return &deployerv1.AssignmentStatus{}
}

// healthy waits until the host serves what it was assigned in this generation, and has its key alone.
func (s *site) healthy(t *testing.T, h *host, generation int64) {
	t.Helper()
	s.await(t, fmt.Sprintf("%s in generation %d", h.Name, generation), func() error {
		a := s.assignment(t, h)
		if a.GetGeneration() != generation || a.GetState() != deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED {
			return fmt.Errorf("generation %d is %s: %s", a.GetGeneration(), a.GetState(), a.GetMessage())
		}
		pending, err := os.ReadDir(filepath.Join(h.State, "keys"))
		if err == nil && len(pending) > 0 {
			err = fmt.Errorf("keys wait: %v", pending)
		}
		return err
	})
	served := ok(lab.Served(t.Context(), h.server.Address, h.Name+".example.com"))(t)
	if key, err := s.pair(served[0].Raw); err != nil || key == nil {
		t.Errorf("the key of what %s serves is not known: %v", h.Name, err)
	}
}

// renewIdentity makes the agent think that it is time.
func (s *site) renewIdentity(t *testing.T, h *host) {
	t.Helper()
	must(t, h.Stop())
	file := filepath.Join(h.State, "identity/current")
	_, payload, _ := strings.Cut(string(ok(os.ReadFile(file))(t)), "\n")
	var record map[string]any
	must(t, json.Unmarshal([]byte(payload), &record))
	record["renew_at"] = "2020-01-01T00:00:00Z"
	changed := ok(json.Marshal(record))(t)
	sum := sha256.Sum256(changed)
	must(t, os.WriteFile(file, append([]byte("sallyport 1 "+hex.EncodeToString(sum[:])+"\n"), changed...), 0o600))
	must(t, h.Start())
	s.await(t, "the agent to renew its identity", func() error {
		_, now, _ := strings.Cut(string(ok(os.ReadFile(file))(t)), "\n")
		var next map[string]any
		if err := json.Unmarshal([]byte(now), &next); err != nil {
			return err
		}
		if next["key"] == record["key"] {
			return errors.New("it has the old key")
		}
		return nil
	})
}

// files gives every file of the run, logs by themselves.
func (s *site) files(medium string, each func(part) error) error {
	return filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() { // gone meanwhile, or no file
			return nil
		}
		if err != nil || strings.HasSuffix(path, ".log") != (medium == "log") {
			return err
		}
		place, err := filepath.Rel(s.Dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return each(part{place, data})
	})
}

// commands gives what every process was started with.
func (s *site) commands(each func(part) error) error {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.hoard.started))
	s.mu.Unlock()
	for _, text := range all {
		name, _, _ := strings.Cut(text, "\x00")
		if err := each(part{name, []byte(text)}); err != nil {
			return err
		}
	}
	return nil
}

// records gives every record of the audit log, as an export has it.
func (s *site) records(t *testing.T, each func(part) error) error {
	t.Helper()
	export := filepath.Join(s.Dir, "records.jsonl")
	s.do(t, "audit", "export", "-o", export)
	text, err := os.ReadFile(export)
	if err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if err := each(part{"export", []byte(line)}); err != nil {
			return err
		}
		n++
	}
	if n < 20 {
		return fmt.Errorf("there are only %d records", n)
	}
	return nil
}
