package arch

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/inventory"
	"github.com/sallyport-pki/sallyport/services/issuer"
)

// TestNoPrivateKeyInProtos walks every field of every message of ours.
func TestNoPrivateKeyInProtos(t *testing.T) {
	secret := regexp.MustCompile(`(?i)private|password|passphrase|secret|hmac|mac_key|pkcs(8|12)`)
	// Reviewed one by one: a one-time token on its way to the server that made it, and the name of a file.
	allowed := []protoreflect.FullName{
		"sallyport.agent.v1.EnrollRequest.token_secret",
		"sallyport.issuer.v1.AcmeAuthority.eab_key_secret",
	}
	fields := 0
	var walk func(protoreflect.MessageDescriptors)
	walk = func(messages protoreflect.MessageDescriptors) {
		for i := range messages.Len() {
			m := messages.Get(i)
			for j := range m.Fields().Len() {
				f := m.Fields().Get(j)
				fields++
				if secret.MatchString(string(f.Name())) && !slices.Contains(allowed, f.FullName()) {
					t.Errorf("%s could carry a secret", f.FullName())
				}
			}
			walk(m.Messages())
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(f.Package()), "sallyport.") {
			walk(f.Messages())
		}
		return true
	})
	if fields < 200 {
		t.Fatalf("only %d fields seen: the walk is broken", fields)
	}
}

// TestCallersAreAsDocumented compares each method's "Callers:" comment with the table that is enforced.
func TestCallersAreAsDocumented(t *testing.T) {
	enforced := map[string][]identity.Role{}
	for _, table := range []map[string][]identity.Role{audit.Methods(), deployer.Methods(), inventory.Methods(), issuer.Methods()} {
		maps.Copy(enforced, table)
	}
	documented := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root(t), "proto/sallyport/*/v1/*.proto"))
	if err != nil || len(files) < 7 {
		t.Fatalf("protos not found: %v %v", files, err)
	}
	pkg := regexp.MustCompile(`(?m)^package ([\w.]+);`)
	service := regexp.MustCompile(`(?m)^service (\w+) \{`)
	method := regexp.MustCompile(`((?:  //[^\n]*\n)+)  rpc (\w+)\(`)
	callers := regexp.MustCompile(`Callers: ([a-z, ]+)`)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s := service.FindSubmatch(data)
		if s == nil {
			continue
		}
		prefix := "/" + string(pkg.FindSubmatch(data)[1]) + "." + string(s[1]) + "/"
		for _, m := range method.FindAllSubmatch(data, -1) {
			name := prefix + string(m[2])
			documented[name] = true
			c := callers.FindSubmatch(m[1])
			if c == nil {
				t.Errorf("%s does not say who may call it", name)
				continue
			}
			var want []string
			for word := range strings.SplitSeq(string(c[1]), ",") {
				word = strings.TrimSpace(word)
				if first, _, found := strings.Cut(word, " "); found {
					word = first
				}
				if slices.Contains([]string{"anonymous", "agent", "operator", "inventory", "issuer", "deployer", "audit"}, word) {
					want = append(want, word)
				}
			}
			var got []string
			for _, r := range enforced[name] {
				got = append(got, string(r))
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(want, got) {
				t.Errorf("%s: the comment says %v, the server enforces %v", name, want, got)
			}
		}
	}
	for name := range enforced {
		if !documented[name] {
			t.Errorf("%s is in the method table but in no proto", name)
		}
	}
	if len(documented) < 40 {
		t.Fatalf("only %d methods seen: the parser is broken", len(documented))
	}
}
