// Package secrets looks for every private key and token of a run in all that the run has left and said: files, databases,
// events, logs, audit records, process arguments and environments, and what went over the wire. Where a secret may be is one
// short list. So that nothing is overlooked, secrets are leaked on purpose too, in different forms and places; a medium in
// which one of them is not found fails the test.
package secrets

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// The media that are searched.
const (
	inFile     = "file" // all below the folder of the run: data, event store, tiles of the audit log, hosts
	inLog      = "log"
	inDatabase = "database"
	inEvent    = "event"
	inRecord   = "audit record"
	inProcess  = "process"
	inCall     = "call"      // between agents or operators and the control plane
	inACME     = "ACME call" // between the issuer and its CA
	// Of four daemons.
	inPeerCall  = "call between daemons"
	inStatement = "database connection" // what daemons and PostgreSQL say to each other
	inBroker    = "broker connection"
)

// place is where a kind of secret may be, and why.
type place struct{ kind, medium, place, why string }

// allowed is all such places, but those of one kind of control plane. Each is needed.
var allowed = []place{
	{"host key", inFile, "shop-nginx/tls/site.key", "the server reads it"},
	{"host key", inFile, "desk-nginx/tls/site.key", "the server reads it"},
	{"host key", inFile, "till-haproxy/tls/site.pem", "haproxy wants key and certificate in one file"},
	{"agent key", inFile, "*/state/identity/current", "the agent's own"},
	{"operator key", inFile, "control/operator/svid-key.pem", "the operator's own"},
	{"MAC key", inFile, "control/secrets/*-mac", "where the operator puts it"},
	{"checkpoint key", inFile, "control/audit/checkpoint.key", "signs the log"},
	{"join token", inFile, "*.token", "where the operator has put it for the agent"},
	{"join token", inCall, "sallyport.deployer.v1.DeployerService/CreateJoinToken response", "shown this once"},
	{"join token", inCall, "sallyport.agent.v1.AgentService/Enroll request", "proves that the agent is let in"},
}

// allowedInServe is for serve alone.
var allowedInServe = []place{
	{"service key", inFile, "relay-*/svid-key.pem", "made for this test, by which the relay passes for the control plane"},
	{"key-encryption key", inFile, "control/kek", "all else is sealed with it"},
}

// allowedInDaemons is for the four daemons alone.
var allowedInDaemons = []place{
	{"service key", inFile, "control/*/svid-key.pem", "the daemon's own, or the broker's"},
	{"key-encryption key", inFile, "control/issuer/kek", "all else is sealed with it"},
	{"trust root", inFile, "control/trust/root-key.pem", "signs the identities of agents"},
}

// wanted is how many secrets of a kind a run has at least.
var wanted = map[string]int{
	"host key":  3 + 3 + 1 + 2*3, // before, first and second generation; of an RSA key, exponent and primes
	"agent key": 3 + 1, "operator key": 1, "service key": 4, "MAC key": 3, "key-encryption key": 1, "checkpoint key": 1,
	"join token": 5, "trust root": 1, "CA key": 2, "account key": 1,
}

// leak is a secret that is leaked on purpose.
type leak struct {
	secret secret
	text   string
	media  []string
}

// leaks are those of a run, each in another form.
func leaks() map[string]leak {
	return map[string]leak{
		"contact":     plant(hex.EncodeToString, inFile, inDatabase, inCall, inACME, inStatement),                                 // of an account at a CA
		"key id":      plant(hex.EncodeToString, inFile, inDatabase, inCall, inACME, inStatement),                                 // of the same: said in a signed text within a signed text
		"report":      plant(pkcs8PEM, inFile, inDatabase, inEvent, inRecord, inCall, inStatement, inBroker),                      // why an assignment has failed
		"sighting":    plant(func(b []byte) string { return string(b) }, inFile, inEvent, inCall, inStatement, inBroker),          // what a scan has seen
		"host name":   plant(func(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }, inLog, inCall),              // refused, and logged
		"purpose":     plant(base64.RawURLEncoding.EncodeToString, inFile, inDatabase, inCall, inPeerCall, inStatement, inBroker), // of an identity, about which daemons ask each other
		"argument":    plant(base64.StdEncoding.EncodeToString, inProcess),
		"environment": plant(base64.RawURLEncoding.EncodeToString, inProcess),
	}
}

func plant(write func([]byte) string, media ...string) leak {
	key := make([]byte, 32)
	rand.Read(key)
	key[0] = 1 // a number of 32 bytes, below the order of P-256
	return leak{secret{"leak", "nobody", string(key)}, write(key), media}
}

func pkcs8PEM(scalar []byte) string {
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// TestSecrets: a CA of our own and one by ACME with its account bound, three hosts, renewals of certificates and of an
// identity, and things that go wrong, with `sallyport serve`.
func TestSecrets(t *testing.T) {
	t.Parallel()
	newSite(t).keeps(t, "sallyport serve")
}

// TestSecretsOfDaemons is TestSecrets with four daemons, a broker of their own and PostgreSQL, and with all that they say to each
// other and to those two.
func TestSecretsOfDaemons(t *testing.T) {
	t.Parallel()
	newDaemons(t).keeps(t, "sallyport-inventory", "sallyport-issuer", "sallyport-deployer", "sallyport-audit", "postgres")
}

// keeps lives, and looks whether all secrets are kept. The programs are those of the control plane.
func (s *site) keeps(t *testing.T, programs ...string) {
	t.Helper()
	s.live(t)
	s.leak(t)
	s.open(t)
	for kind, want := range wanted {
		n := 0
		for _, one := range s.all() {
			if one.kind == kind {
				n++
			}
		}
		if n < want {
			t.Errorf("only %d of the kind %s are known, want %d", n, kind, want)
		}
	}
	for _, words := range append(programs, "sallyport-agent run", "nginx", "haproxy") {
		if !s.ran(words) {
			t.Errorf("no process was seen that runs %s", words)
		}
	}
	s.judge(t, s.search(t))
}

// live is a run.
func (s *site) live(t *testing.T) {
	shop := ok(s.Nginx(t.Context(), "shop-nginx", "shop.example.com"))(t)
	desk := ok(s.Nginx(t.Context(), "desk-nginx", "desk.example.com"))(t)
	till := ok(s.HAProxy(t.Context(), "till-haproxy", "till.example.com"))(t)
	// What a hook is given is written down by the hook itself.
	told := filepath.Join(s.Dir, "hook.told")
	hook := fmt.Sprintf("tr '\\0' '\\n' </proc/self/environ >>%s; cat >>%s; exec /usr/sbin/nginx -c %s -s reload", told, told, desk.Config)
	hosts := []*host{
		s.enrol(t, "shop", shop, "connectors:\n"+shop.Connector()+fmt.Sprintf("http01: {listen: %q}\n", s.challenges)),
		s.enrol(t, "desk", desk, fmt.Sprintf("connectors: {files: {allow: [%q]}}\nhooks: {reload-web: {command: [/bin/sh, -c, %q]}}\n", desk.TLSDir, hook)),
		s.enrol(t, "till", till, "connectors:\n"+till.Connector()+till.InMemory()),
	}
	settings := desk.Settings()
	settings["reload"] = "reload-web"
	s.deploy(t, hosts[0], "public", "nginx", shop.Settings())
	s.deploy(t, hosts[1], "corp", "files", settings)
	s.deploy(t, hosts[2], "old", "haproxy", till.Settings())
	for generation := range int64(2) {
		for _, h := range hosts {
			s.healthy(t, h, generation+1)
			if generation == 0 {
				s.do(t, "renew", "deployment", h.Name, "--reason", "secrets")
			}
		}
	}
	s.renewIdentity(t, hosts[1])
	if text := ok(os.ReadFile(told))(t); !bytes.Contains(text, []byte("PATH=")) {
		t.Errorf("what the hook was given was not written down: %q", text)
	}

	// What goes wrong may say too much.
	for name, token := range map[string]string{
		"used":    string(ok(os.ReadFile(filepath.Join(s.Dir, "shop.token")))(t)),
		"garbled": s.token(t, "spare") + "!",
		"other":   s.token(t, "other"),
	} {
		file := s.write(t, name+".token", token)
		config := s.write(t, name+".yaml", fmt.Sprintf("server: %s\nstate_dir: %s\nhost: stranger\n", s.grpc.address(), filepath.Join(s.Dir, name)))
		r := ok(s.Run(t.Context(), lab.Command{Path: filepath.Join(s.Bin, "sallyport-agent"), Args: []string{"enroll", "--config", config, "--token-file", file}}))(t)
		if r.Code == 0 {
			t.Errorf("the token that is %s lets in", name)
		}
		s.write(t, name+".answer", r.Stdout+r.Stderr)
	}
	for _, list := range []string{"hosts", "deployments", "authorities", "profiles", "requests", "tokens"} {
		s.write(t, list+".answer", s.do(t, "get", list, "-o", "yaml"))
	}
}

// leak leaks what was planted.
func (s *site) leak(t *testing.T) {
	t.Helper()
	for _, p := range s.planted {
		s.add(p.secret)
	}
	desk := s.hosts[1]
	_, payload, _ := bytes.Cut(ok(os.ReadFile(filepath.Join(desk.State, "identity/current")))(t), []byte("\n"))
	var record struct {
		Key           []byte
		Chain, Bundle [][]byte
	}
	must(t, json.Unmarshal(payload, &record))
	source := stolen{svid: ok(x509svid.ParseRaw(bytes.Join(record.Chain, nil), record.Key))(t)}
	source.bundle = ok(x509bundle.ParseRaw(source.svid.ID.TrustDomain(), bytes.Join(record.Bundle, nil)))(t)
	conn := ok(rpc.Dial(rpc.ClientConfig{Address: s.grpc.address(), Service: "deployer", Source: source}))(t)
	defer conn.Close()
	agent := agentv1.NewAgentServiceClient(conn)
	a := s.assignment(t, desk)
	must(t, desk.Stop())
	ok(agent.ReportAssignment(t.Context(), &agentv1.ReportAssignmentRequest{
		ReportId: "leak", Assignment: a.GetId(), Generation: a.GetGeneration(), Attempt: a.GetAttempt(),
		Outcome: agentv1.Outcome_OUTCOME_BROKEN, Message: s.planted["report"].text,
	}))(t)
	ok(agent.ReportObservation(t.Context(), &agentv1.ReportObservationRequest{ScanId: "leak", ScanComplete: true, Sightings: []*eventv1.Sighting{
		{Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: "/leak", Chain: [][]byte{[]byte(s.planted["sighting"].text)}},
	}}))(t)
	key := ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	_, err := agent.Enroll(t.Context(), &agentv1.EnrollRequest{TokenId: "leak", TokenSecret: make([]byte, 32), Host: s.planted["host name"].text,
		Csr: ok(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("enrolling under a strange name: %v", err)
	}
	leaky := ok(s.Start(lab.Command{Name: "leaky", Path: "/bin/sh", Args: []string{"-c", "sleep 60", s.planted["argument"].text}, Env: []string{"LEAK=" + s.planted["environment"].text}}))(t)
	s.await(t, "the leaky process to be seen", func() error {
		if !s.ran(s.planted["argument"].text) || !s.ran(s.planted["environment"].text) {
			return errors.New("not yet")
		}
		return nil
	})
	leaky.Kill()
	s.await(t, "the leak to be recorded", func() error {
		text := s.do(t, "audit", "list", "--type", "deployer.assignment.failed", "-o", "json")
		if !strings.Contains(text, desk.Name) {
			return errors.New("not yet")
		}
		return nil
	})
}

// stolen is the identity of an agent.
type stolen struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

func (s stolen) GetX509SVID() (*x509svid.SVID, error) { return s.svid, nil }
func (s stolen) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.bundle.GetX509BundleForTrustDomain(td)
}
func (s stolen) Close() error { return nil }

// finding is a secret that was found.
type finding struct {
	secret              secret
	form, medium, place string
}

// search looks through all media, through files while all runs and again when all has stopped.
func (s *site) search(t *testing.T) []finding {
	t.Helper()
	searcher := newSearcher(s.all())
	found, sizes := map[finding]bool{}, map[string]int{}
	in := func(medium string) func(part) error {
		return func(p part) error {
			sizes[medium] += len(p.data)
			for _, n := range searcher.find(p.data) {
				found[finding{n.secret, n.form, medium, p.place}] = true
			}
			return nil
		}
	}
	must(t, s.files(inFile, in(inFile)))
	must(t, s.records(t, in(inRecord)))
	for _, h := range s.hosts {
		must(t, h.Stop())
	}
	must(t, s.stop())
	must(t, s.files(inFile, in(inFile)))
	must(t, s.files(inLog, in(inLog)))
	must(t, s.databases(t.Context(), in(inDatabase)))
	must(t, s.messages(t.Context(), in(inEvent)))
	must(t, s.commands(in(inProcess)))
	calls := map[string]bool{}
	for _, relay := range s.relays {
		must(t, relay.said(func(medium string) func(part) error {
			return func(p part) error {
				calls[medium+" "+p.place] = true
				return in(medium)(p)
			}
		}))
	}
	for _, method := range []string{"Enroll", "RenewIdentity", "Subscribe", "SubmitCSR", "ReportAssignment", "ReportChallenge", "ReportObservation"} {
		for _, side := range []string{"request", "response"} {
			if place := inCall + " sallyport.agent.v1.AgentService/" + method + " " + side; !calls[place] {
				t.Errorf("no %s was overheard", place)
			}
		}
	}
	t.Logf("%d secrets, bytes searched: %v", len(s.all()), sizes)
	return slices.Collect(maps.Keys(found))
}

// judge wants every leak to be found where it was planted, and every other secret nowhere but where it may be.
func (s *site) judge(t *testing.T, all []finding) {
	t.Helper()
	allowed := slices.Concat(allowed, s.allowed)
	used := make([]bool, len(allowed))
	for _, f := range all {
		if f.secret.kind == "leak" {
			continue
		}
		here := slices.IndexFunc(allowed, func(a place) bool {
			match, err := path.Match(a.place, f.place)
			return a.kind == f.secret.kind && a.medium == f.medium && match && err == nil
		})
		if here < 0 {
			t.Errorf("the %s of %s is in the %s %s, %s", f.secret.kind, f.secret.name, f.medium, f.place, f.form)
			continue
		}
		used[here] = true
	}
	for n, a := range allowed {
		if !used[n] {
			t.Errorf("no %s is in the %s %s: the list allows too much", a.kind, a.medium, a.place)
		}
	}
	for name, leak := range s.planted {
		for _, medium := range leak.media {
			if s.daemons == nil && slices.Contains([]string{inPeerCall, inStatement, inBroker}, medium) {
				continue // it is all one process
			}
			if !slices.ContainsFunc(all, func(f finding) bool { return f.secret == leak.secret && f.medium == medium }) {
				t.Errorf("the leak by %s is not found in any %s", name, medium)
			}
		}
	}
}
