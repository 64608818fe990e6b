package trust

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sallyport-pki/sallyport/internal/identity"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func TestSealedRoot(t *testing.T) {
	dir := t.TempDir()
	box, err := CreateBox(filepath.Join(dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	made, err := Create(filepath.Join(dir, "trust"), td, box, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "trust", FileKey))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := pem.Decode(key)
	if b == nil || b.Type != sealedType {
		t.Fatalf("the key file holds %v", b)
	}
	if _, err := x509.ParsePKCS8PrivateKey(b.Bytes); err == nil {
		t.Fatal("the key lies in the clear")
	}
	box, err = OpenBox(filepath.Join(dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := Open(filepath.Join(dir, "trust"), box, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if made.RootHash() != opened.RootHash() || opened.TrustDomain() != td {
		t.Error("another root came back")
	}
	if _, err := Create(filepath.Join(dir, "trust"), td, box, time.Now); exit.Of(err) != exit.Data {
		t.Errorf("made a second root over the first: %v", err)
	}
	if _, err := CreateBox(filepath.Join(dir, "kek")); exit.Of(err) != exit.Data {
		t.Errorf("made a second key over the first: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		code  exit.Code
		want  string
	}{
		"kek missing":      {remove("kek"), exit.Data, "is missing: restore it from the backup"},
		"kek damaged":      {replace("kek", "{}"), exit.Data, "is damaged"},
		"kek open":         {chmod("kek", 0o640), exit.Data, "can be used by others (mode 0640)"},
		"kek of another":   {otherKEK, exit.Data, "was sealed with another key-encryption key"},
		"kek a directory":  {directory("kek"), exit.Data, "is no key file"},
		"root missing":     {remove("trust/" + FileRoot), exit.Data, "restore"},
		"root damaged":     {replace("trust/"+FileRoot, "x"), exit.Data, "is damaged"},
		"root key missing": {remove("trust/" + FileKey), exit.Data, "is missing: restore it from the backup"},
		"root key damaged": {replace("trust/"+FileKey, "-----BEGIN "+sealedType+"-----\nAAAA\n-----END "+sealedType+"-----\n"), exit.Data, "is damaged"},
		"root key open":    {chmod("trust/"+FileKey, 0o604), exit.Data, "can be used by others (mode 0604)"},
		"root of another":  {otherRoot, exit.Data, "do not belong together"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			box, err := CreateBox(filepath.Join(dir, "kek"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Create(filepath.Join(dir, "trust"), td, box, time.Now); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, dir)
			box, err = OpenBox(filepath.Join(dir, "kek"))
			if err == nil {
				_, err = Open(filepath.Join(dir, "trust"), box, time.Now)
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if exit.Of(err) != c.code || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q with code %d, want %q with code %d", err, exit.Of(err), c.want, c.code)
			}
		})
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, name))) }
}

func replace(name, text string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
}

func chmod(name string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, name), mode)) }
}

func directory(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		remove(name)(t, dir)
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
}

func otherKEK(t *testing.T, dir string) {
	remove("kek")(t, dir)
	_, err := CreateBox(filepath.Join(dir, "kek"))
	must(t, err)
}

func otherRoot(t *testing.T, dir string) {
	_, err := Create(filepath.Join(dir, "other"), td, nil, time.Now)
	must(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "other", FileRoot))
	must(t, err)
	replace("trust/"+FileRoot, string(b))(t, dir)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPlainRootNeedsNoBoxAndSealedDoes(t *testing.T) {
	dir := t.TempDir()
	_, err := Create(filepath.Join(dir, "plain"), td, nil, time.Now)
	must(t, err)
	_, err = Open(filepath.Join(dir, "plain"), nil, time.Now)
	must(t, err)
	box, err := CreateBox(filepath.Join(dir, "kek"))
	must(t, err)
	_, err = Create(filepath.Join(dir, "sealed"), td, box, time.Now)
	must(t, err)
	if _, err = Open(filepath.Join(dir, "sealed"), nil, time.Now); exit.Of(err) != exit.Usage {
		t.Errorf("got %v", err)
	}
}

func TestWrittenIdentityIsUsableAndPrivate(t *testing.T) {
	dir := t.TempDir()
	ca, err := Create(filepath.Join(dir, "trust"), td, nil, time.Now)
	must(t, err)
	id, err := identity.OperatorID(td, "alice")
	must(t, err)
	out := filepath.Join(dir, "alice")
	for range 2 { // the second time it is replaced
		cert, err := WriteIdentity(out, ca, id, time.Hour)
		must(t, err)
		src, err := identity.NewFiles(out, nil)
		must(t, err)
		svid, err := src.GetX509SVID()
		must(t, err)
		if !svid.Certificates[0].Equal(cert) {
			t.Error("another certificate came back")
		}
		got, _, err := x509svid.Verify(svid.Certificates, src)
		must(t, err)
		if got != id {
			t.Errorf("got %v", got)
		}
		must(t, src.Close())
	}
	for name, want := range map[string]os.FileMode{"": 0o700, identity.FileKey: 0o600, identity.FileSVID: 0o644, identity.FileBundle: 0o644} {
		info, err := os.Stat(filepath.Join(out, name))
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%q has mode %o, want %o", name, info.Mode().Perm(), want)
		}
	}
}
