// Package docs runs what the documentation tells people to type, as it stands there, in a namespace of its own: with the paths of
// a real machine, the units of deploy/systemd, and nginx.
package docs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sallyport-pki/sallyport/tests/lab"
)

// machine makes the folders that the commands write into copies, or empty, for the namespace alone.
const machine = `
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/work /mnt/lib /mnt/home
cp -a /etc /mnt/etc
mount --bind /mnt/etc /etc
[ ! -d /var/lib/nginx ] || cp -a /var/lib/nginx /mnt/lib/
mount --bind /mnt/lib /var/lib
for folder in bin sbin; do cp -a /usr/local/$folder /mnt/$folder; mount --bind /mnt/$folder /usr/local/$folder; done
for folder in /run /var/log; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir /var/log/nginx
rm -f /etc/nginx/sites-enabled/*
echo 127.0.0.1 localhost sallyport.example.com shop.example.com >/etc/hosts
`

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(lab.Jail(machine, m.Run))
}

// command is one fenced block that stands below the line "<!-- run -->".
type command struct {
	file string
	line int
	text string
}

var fenced = regexp.MustCompile("(?m)^<!-- run -->\n```sh\n((?s:.*?))^```$")

func commands(t *testing.T, file string) []command {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root(t), file))
	must(t, err)
	var found []command
	for _, at := range fenced.FindAllSubmatchIndex(data, -1) {
		found = append(found, command{file: file, line: 2 + strings.Count(string(data[:at[0]]), "\n"), text: string(data[at[2]:at[3]])})
	}
	if marks := strings.Count(string(data), "<!-- run -->"); len(found) != marks {
		t.Fatalf("%s has %d marks and %d blocks below them", file, marks, len(found))
	}
	return found
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
	}
	t.Fatal("the repository's root is not above the test")
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shell runs blocks one after the other in one shell, as somebody would who reads the page, and gives what each has printed.
func shell(t *testing.T, blocks []command) []string {
	t.Helper()
	const mark = "@@@@ "
	var script strings.Builder
	script.WriteString("set -euo pipefail\n")
	for i, b := range blocks {
		fmt.Fprintf(&script, "echo; echo '%s%d'\n%s", mark, i, b.text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	goTool, err := exec.LookPath("go")
	must(t, err)
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "HOME=/mnt/home", "LANG=C.UTF-8", "NO_COLOR=1", "SALLYPORT_CONFIG=/var/lib/sallyport/operator/config.yaml",
		"PATH="+strings.Join([]string{"/usr/local/sbin", "/usr/local/bin", filepath.Dir(goTool), filepath.Join(root(t), ".tools/bin"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":"))
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY", "GOFLAGS", "GONOSUMDB", "GOSUMDB"} { // HOME is another one
		value, err := exec.CommandContext(ctx, goTool, "env", name).Output()
		must(t, err)
		cmd.Env = append(cmd.Env, name+"="+strings.TrimSpace(string(value)))
	}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	parts := strings.Split(string(out), "\n"+mark)[1:]
	for i := range parts {
		_, parts[i], _ = strings.Cut(parts[i], "\n")
	}
	if err != nil {
		last := blocks[max(0, len(parts)-1)]
		t.Fatalf("%s:%d: %v\n%s\n--- printed:\n%s%s", last.file, last.line, err, last.text, tail(parts[len(parts)-1]), logs())
	}
	return parts
}

func logs() string {
	var all strings.Builder
	found, _ := filepath.Glob("/var/log/*.log")
	for _, path := range found {
		data, _ := os.ReadFile(path)
		fmt.Fprintf(&all, "\n--- %s\n%s", path, tail(string(data)))
	}
	return all.String()
}

func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// work is where the commands are typed. It has bin/, deploy/ and docs/ of the project.
const work = "/mnt/work"

func prepare(t *testing.T) {
	t.Helper()
	top := root(t)
	for _, program := range []string{"bin/sallyport", "bin/sallyport-agent"} {
		if _, err := os.Stat(filepath.Join(top, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	if _, err := os.Stat(filepath.Join(top, ".tools/bin/grpcurl")); err != nil {
		t.Fatalf("%v: run make tools", err)
	}
	entries, err := os.ReadDir(top)
	must(t, err)
	for _, e := range entries {
		must(t, os.Symlink(filepath.Join(top, e.Name()), filepath.Join(work, e.Name())))
	}
	standIn, err := os.ReadFile("testdata/systemctl")
	must(t, err)
	must(t, os.WriteFile("/usr/local/sbin/systemctl", standIn, 0o755))
}

// TestDocs follows the first hour, then uses the API of what stands there.
func TestDocs(t *testing.T) {
	prepare(t)
	t.Run("first-hour", firstHour)
	if t.Failed() {
		return
	}
	t.Run("api", api)
	t.Run("units", units)
}

// firstHour types the whole page, and looks with its own eyes at what came of it.
func firstHour(t *testing.T) {
	const page = "docs/first-hour.md"
	blocks := commands(t, page)
	if len(blocks) < 15 {
		t.Fatalf("only %d blocks found in %s", len(blocks), page)
	}
	blocks = aroundRestore(t, blocks)
	printed := shell(t, blocks)

	ca, err := os.ReadFile(filepath.Join(work, "corp-ca.pem"))
	must(t, err)
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(ca) {
		t.Fatal("corp-ca.pem holds no certificate")
	}
	conn, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: &tls.Config{RootCAs: trusted, ServerName: "shop.example.com"}}).
		DialContext(t.Context(), "tcp", "127.0.0.1:443")
	must(t, err)
	conn.Close()

	for _, want := range []struct{ command, output string }{
		{"-verify_return_error", "Verification: OK"},
		{"deployer.sallyport.internal", "CONNECTION ESTABLISHED"},
		{"deployer.sallyport.internal", "TLSv1.3"},
		{"sallyport watch", "served"},
		{"sallyport describe deployment", "healthy"},
		{"sallyport get certificates", "shop.example.com"},
	} {
		seen := false
		for i, b := range blocks {
			seen = seen || strings.Contains(b.text, want.command) && strings.Contains(printed[i], want.output)
		}
		if !seen {
			t.Errorf("%q has not printed %q", want.command, want.output)
		}
	}
	for path, mode := range map[string]os.FileMode{
		"/var/lib/sallyport": 0o700, "/var/lib/sallyport-agent": 0o700, "/etc/nginx/tls/shop.key": 0o600, filepath.Join(work, "alice/svid-key.pem"): 0o600,
	} {
		info, err := os.Stat(path)
		must(t, err)
		if got := info.Mode().Perm(); got != mode {
			t.Errorf("%s has mode %04o, want %04o", path, got, mode)
		}
	}
}

// aroundRestore lets something happen between backup and restore, of which the restored site knows nothing: it must go on all the
// same, and an auditor must see that the log was set back.
func aroundRestore(t *testing.T, blocks []command) []command {
	t.Helper()
	at := slices.IndexFunc(blocks, func(b command) bool { return strings.Contains(b.text, "sallyport.broken") })
	if at < 0 {
		t.Fatal("the page has no restore any more")
	}
	before := command{file: "docs_test.go", text: `
sallyport renew deployment shop --reason "after the backup"
sallyport watch deployment shop --timeout 1m
sallyport audit checkpoint -o newer.checkpoint
`}
	after := command{file: "docs_test.go", text: `
sallyport renew deployment shop --reason "after the restore"
sallyport watch deployment shop --timeout 1m
code=0; sallyport audit checkpoint --older newer.checkpoint || code=$?
[ "$code" = 8 ]
served=$(openssl s_client -connect shop.example.com:443 -servername shop.example.com </dev/null 2>/dev/null | openssl x509 -noout -fingerprint -sha256 | cut -d= -f2 | tr -d : | tr A-F a-f)
sallyport get assignments -o json | grep "\"fingerprint\": \"$served\""
sallyport audit export -o restored.jsonl
sallyport audit verify --key audit.key restored.jsonl
`}
	return slices.Concat(blocks[:at], []command{before, blocks[at], after}, blocks[at+1:])
}

// api types docs/api.md: a Go client, grpcurl, reflection and health.
func api(t *testing.T) {
	shell(t, []command{{file: "docs_test.go", text: soon}})
	blocks := commands(t, "docs/api.md")
	printed := shell(t, blocks)
	output := func(of string) string {
		t.Helper()
		for i, b := range blocks {
			if strings.Contains(b.text, of) {
				return printed[i]
			}
		}
		t.Fatalf("docs/api.md has no command with %q any more", of)
		return ""
	}
	for of, wants := range map[string][]string{
		"go run":           {"soon.example.com", "soon-team@example.com"},
		"ListCertificates": {`"soon.example.com"`, `"soon-team@example.com"`},
		" list":            {"sallyport.inventory.v1.InventoryService", "sallyport.issuer.v1.IssuerService", "sallyport.deployer.v1.DeployerService", "sallyport.audit.v1.AuditService", "sallyport.agent.v1.AgentService", "grpc.health.v1.Health"},
		"describe":         {"message Request {", "string id"},
	} {
		for _, want := range wants {
			if got := output(of); !strings.Contains(got, want) {
				t.Errorf("%q has not printed %q:\n%s", of, want, got)
			}
		}
	}
	if got := output("ListCertificates"); strings.Contains(got, "shop.example.com") {
		t.Errorf("what lives for 90 days expires within 30:\n%s", got)
	}
	var health struct{ Status string }
	if err := json.Unmarshal([]byte(output("Health/Check")), &health); err != nil || health.Status != "SERVING" {
		t.Errorf("health is %+v, %v", health, err)
	}
	anonymousHealth(t)
}

// anonymousHealth asks for the health as a load balancer does, without a certificate, and for more in vain.
func anonymousHealth(t *testing.T) {
	t.Helper()
	bundle, err := os.ReadFile(filepath.Join(work, "reporting/bundle.pem"))
	must(t, err)
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(bundle) {
		t.Fatal("the bundle holds no certificate")
	}
	conn, err := grpc.NewClient("127.0.0.1:8443", grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: trusted, ServerName: "issuer.sallyport.internal"})))
	must(t, err)
	defer conn.Close()
	client := healthpb.NewHealthClient(conn)
	for _, service := range []string{"", "sallyport.issuer.v1.IssuerService"} {
		r, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q is %s, %v", service, r.GetStatus(), err)
		}
	}
	if _, err := client.List(t.Context(), &healthpb.HealthListRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("who shows no certificate may list what there is: %v", err)
	}
}

// soon makes a certificate that expires within 30 days.
const soon = `
cat >soon.yaml <<'END'
kind: Profile
name: short
authority: corp
key_types: [ecdsa-p256]
usages: [server_auth]
allowed_domains: [example.com]
lifetime: 20d
---
kind: Identity
name: soon
owner: soon-team@example.com
purpose: a test
names: {dns: [soon.example.com]}
---
kind: Deployment
name: soon
identity: soon
profile: short
targets:
  - host: web-1
    connector: nginx
    settings: {certificate: /etc/nginx/tls/soon.pem, key: /etc/nginx/tls/soon.key}
END
sallyport apply -f soon.yaml
sallyport watch deployment soon --timeout 1m || [ $? = 9 ]
until sallyport get certificates | grep soon.example.com; do sleep 0.2; done
`

// units wants systemd itself to understand the units.
func units(t *testing.T) {
	for _, unit := range []string{"sallyport.service", "sallyport-agent.service"} {
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", filepath.Join(root(t), "deploy/systemd", unit)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}
