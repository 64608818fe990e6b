package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	inventoryv1 "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1"
	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
)

func parse(t *testing.T, text string) []manifest.Object {
	t.Helper()
	objects, err := manifest.Parse("site.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestExampleIsWhatItSays(t *testing.T) {
	objects := parse(t, manifest.Example)
	if err := manifest.Order(objects); err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, o := range objects {
		refs = append(refs, o.String())
	}
	if diff := cmp.Diff([]string{"authority/corp", "profile/web", "identity/shop", "deployment/shop"}, refs); diff != "" {
		t.Fatal(diff)
	}
	d := objects[3].Message.(*deployerv1.Deployment)
	if got := d.GetRenewal().GetBeforeExpiry().AsDuration().Hours(); got != 20*24 {
		t.Errorf("before_expiry is %v hours", got)
	}
	if got := d.GetTargets()[0].GetSettings()["verify"]; got != "127.0.0.1:443" {
		t.Errorf("verify is %q", got)
	}
}

// full has every field of every kind.
var full = []proto.Message{
	&issuerv1.Authority{Name: "corp", Kind: &issuerv1.Authority_Internal{Internal: &issuerv1.InternalAuthority{}}},
	&issuerv1.Authority{Name: "public", Kind: &issuerv1.Authority_Acme{Acme: &issuerv1.AcmeAuthority{
		Directory: "https://ca.example/dir", Contacts: []string{"mailto:a@example.com"}, EabKeyId: "kid", EabKeySecret: "eab",
		CaBundlePem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", TermsAgreed: true,
	}}},
}

func TestMarshalGolden(t *testing.T) {
	objects := parse(t, manifest.Example)
	ms := full
	for _, o := range objects {
		ms = append(ms, o.Message)
	}
	got, err := manifest.Marshal(ms...)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "documents.yaml")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	for i, o := range parse(t, string(got)) {
		if diff := cmp.Diff(ms[i], o.Message, protocmp.Transform()); diff != "" {
			t.Errorf("%s is not what was written: %s", o, diff)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no kind":            {"name: a\n", "site.yaml:1: kind: each document needs one"},
		"no name":            {"kind: Profile\n", "site.yaml:1: name: each document needs one"},
		"unknown kind":       {"kind: Widget\nname: a\n", `site.yaml:1: kind: unknown kind "Widget": want one of Authority, Profile, Identity, Deployment`},
		"kind in lower case": {"kind: profile\nname: a\n", `site.yaml:1: kind: unknown kind "profile": want one of Authority, Profile, Identity, Deployment`},
		"unknown field":      {"kind: Identity\nname: a\nowner: x\nnames: {dnsx: [a]}\n", `site.yaml:4: names.dnsx: unknown field: did you mean "dns"?`},
		"camel case":         {"kind: Profile\nname: a\nauthority: c\nkeyTypes: [rsa-2048]\n", `site.yaml:4: keyTypes: unknown field: did you mean "key_types"?`},
		"key type":           {"kind: Profile\nname: a\nauthority: c\nkey_types:\n  - ecdsa-p256\n  - des\n", `site.yaml:6: key_types[1]: "des" is none: want one of ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096`},
		"usage":              {"kind: Profile\nname: a\nauthority: c\nkey_types: [rsa-2048]\nusages: [serverAuth]\n", `site.yaml:5: usages[0]: "serverAuth" is none: want one of client_auth, server_auth`},
		"no usages":          {"kind: Profile\nname: a\nauthority: c\nkey_types: [rsa-2048]\n", `site.yaml:1: usages: missing: say what the certificates are good for, such as [server_auth]`},
		"duration":           {"kind: Profile\nname: a\nlifetime: 90 days\n", `site.yaml:3: lifetime: "90 days" is no duration: write it like 90d, 36h, 10m or 30s`},
		"negative duration":  {"kind: Profile\nname: a\nlifetime: -3h\n", `site.yaml:3: lifetime: "-3h" is no duration: write it like 90d, 36h, 10m or 30s`},
		"number as text":     {"kind: Identity\nname: a\nowner: 7\n", `site.yaml:3: owner: want text, found "7": put it in quotes`},
		"neither":            {"kind: Authority\nname: a\n", `site.yaml:1: want one of internal and acme; for an internal authority with nothing but defaults write: internal: {}`},
		"both":               {"kind: Authority\nname: a\ninternal: {}\nacme: {directory: https://x}\n", `site.yaml:4: acme: an authority is either internal or acme`},
		"no directory":       {"kind: Authority\nname: a\nacme:\n  contacts: []\n", `site.yaml:4: acme.directory: missing: the directory URL of the CA`},
		"no owner":           {"kind: Identity\nname: a\nnames: {dns: [a]}\n", `site.yaml:1: owner: missing: who answers for it`},
		"no names":           {"kind: Identity\nname: a\nowner: o\npurpose: p\nnames: {}\n", `site.yaml:5: names: missing: at least one name under dns or ip`},
		"no host":            {"kind: Deployment\nname: a\nidentity: i\nprofile: p\ntargets:\n  - connector: nginx\n  - host: b\n", `site.yaml:6: targets[0].host: missing: the host's name`},
		"no targets":         {"kind: Deployment\nname: a\nidentity: i\nprofile: p\n", `site.yaml:1: targets: missing: at least one`},
		"given twice":        {"kind: Identity\nname: a\nowner: o\nowner: p\n", `site.yaml:4: owner: given twice, first on line 3`},
		"anchor":             {"kind: Identity\nname: a\nowner: &o x\n", `site.yaml:3: owner: anchors and aliases (& and *) are not supported: write it out`},
		"syntax":             {"kind: Identity\n  name: a\n", "site.yaml:2: mapping values are not allowed in this context"},
		"not a mapping":      {"- a\n", "site.yaml:1: want a mapping with the fields kind and name, found a list"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Parse("site.yaml", []byte(c.text))
			if err == nil {
				t.Fatal("accepted")
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAllDocumentsAtFaultAreNamed(t *testing.T) {
	_, err := manifest.Parse("f", []byte("kind: Identity\nname: a\n---\nkind: X\nname: b\n---\n"+manifest.Example+"---\nkind: Profile\nname: c\n"))
	if err == nil {
		t.Fatal("accepted")
	}
	want := []string{"f:1: owner", "f:4: kind", "f:40: authority"}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d errors: %q", len(lines), lines)
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("error %d is %q, want %q...", i, lines[i], want[i])
		}
	}
}

func TestOrderRefusesTwice(t *testing.T) {
	objects := parse(t, "kind: Identity\nname: a\nowner: o\npurpose: p\nnames: {dns: [a]}\n---\nkind: Identity\nname: a\nowner: o\npurpose: p\nnames: {dns: [a]}\n")
	err := manifest.Order(objects)
	if err == nil || err.Error() != "site.yaml:8: name: identity/a is given twice, first in site.yaml:1" {
		t.Errorf("got %v", err)
	}
}

// TestEveryAPIFieldHasAPlace fails when the API gains a field that documents lack.
func TestEveryAPIFieldHasAPlace(t *testing.T) {
	for kind, m := range map[manifest.Kind]proto.Message{
		manifest.KindAuthority: &issuerv1.Authority{}, manifest.KindProfile: &issuerv1.Profile{},
		manifest.KindIdentity: &inventoryv1.Identity{}, manifest.KindDeployment: &deployerv1.Deployment{},
	} {
		_, fields, ok := manifest.Reference(kind)
		if !ok {
			t.Fatalf("no reference for %s", kind)
		}
		compare(t, string(kind), m.ProtoReflect().Descriptor(), fields)
	}
}

// outputOnly are fields that services set and documents leave out.
var outputOnly = map[string]bool{"chain_pem": true, "created": true, "problem": true, "status": true}

func compare(t *testing.T, path string, d protoreflect.MessageDescriptor, fields []manifest.Field) {
	t.Helper()
	have := map[string]manifest.Field{}
	for _, f := range fields {
		if f.Doc == "" {
			t.Errorf("%s.%s has no description", path, f.Name)
		}
		if f.Name != "kind" {
			have[f.Name] = f
		}
	}
	for i := range d.Fields().Len() {
		pf := d.Fields().Get(i)
		name := string(pf.Name())
		f, ok := have[name]
		delete(have, name)
		switch {
		case outputOnly[name]:
			if ok {
				t.Errorf("%s.%s is output only", path, name)
			}
		case !ok:
			t.Errorf("%s.%s has no place in documents", path, name)
		case len(f.Fields) > 0:
			compare(t, path+"."+name, pf.Message(), f.Fields)
		}
	}
	for name := range have {
		t.Errorf("%s.%s is no field of the API", path, name)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(manifest.Example))
	f.Add([]byte("kind: Authority\nname: a\ninternal: {}\n"))
	f.Add([]byte(`{"kind":"Identity","name":"a","owner":"o","names":{"ip":["::1"]},"labels":{"a":"b"}}`))
	f.Add([]byte("kind: Deployment\nname: \"\\x1b\"\nidentity: |\n  a\nprofile: p\ntargets: [{host: h, connector: c, settings: {a: ''}}]\nrenewal: {disabled: true}\n"))
	f.Add([]byte("kind: &a Profile\nname: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := manifest.Parse("f", data)
		if err != nil {
			return
		}
		var ms []proto.Message
		for _, o := range objects {
			clear(o.Message)
			ms = append(ms, o.Message)
		}
		text, err := manifest.Marshal(ms...)
		if err != nil {
			t.Fatalf("accepted but not written: %v", err)
		}
		again, err := manifest.Parse("f", text)
		if err != nil {
			t.Fatalf("not read back: %v\n%s", err, text)
		}
		if len(again) != len(objects) {
			t.Fatalf("%d documents became %d:\n%s", len(objects), len(again), text)
		}
		for i := range again {
			if diff := cmp.Diff(ms[i], again[i].Message, protocmp.Transform(), protocmp.IgnoreEmptyMessages()); diff != "" {
				t.Fatalf("changed: %s\n%s", diff, text)
			}
		}
	})
}

// clear takes the etag out: a guard is for one apply and is never written.
func clear(m proto.Message) {
	r := m.ProtoReflect()
	r.Clear(r.Descriptor().Fields().ByName("etag"))
}
