package trust

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/identity"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

func TestRenew(t *testing.T) {
	dir := t.TempDir()
	ca, err := Create(filepath.Join(dir, "trust"), td, nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	all := filepath.Join(dir, "identity")
	for _, name := range []string{"issuer", "audit"} {
		id, err := identity.ServiceID(td, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := WriteIdentity(filepath.Join(all, name), ca, id, 30*24*time.Hour, name+".example.org"); err != nil {
			t.Fatal(err)
		}
	}
	owner := 4711
	one := filepath.Join(all, "issuer")
	if os.Geteuid() == 0 {
		for _, file := range []string{identity.FileSVID, identity.FileKey, identity.FileBundle} {
			if err := os.Chown(filepath.Join(one, file), owner, owner); err != nil {
				t.Fatal(err)
			}
		}
	}
	found, err := Identities(all)
	if err != nil || len(found) != 2 || found[1] != one {
		t.Fatalf("%v, %v", found, err)
	}
	if found, err := Identities(one); err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	if _, err := Identities(filepath.Join(dir, "trust")); exit.Of(err) != exit.NotFound {
		t.Errorf("identities where there are none: %v", err)
	}

	running, err := identity.NewFiles(one, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = running.Close() }()
	first, _, renewed, err := Renew(one, ca, time.Hour, time.Now().Add(14*24*time.Hour))
	if err != nil || renewed {
		t.Fatalf("renewed before half of its life: %v, %v", renewed, err)
	}
	second, id, renewed, err := Renew(one, ca, time.Hour, time.Now().Add(16*24*time.Hour))
	if err != nil || !renewed || id.Path() != "/service/issuer" || second.Equal(first) || !slices.Equal(second.DNSNames, first.DNSNames) || len(first.DNSNames) != 2 {
		t.Fatalf("%v of %s, %v", renewed, id, err)
	}
	if left := time.Until(second.NotAfter); left > time.Hour || left < 50*time.Minute {
		t.Errorf("it lives %s", left)
	}
	for _, file := range []string{identity.FileSVID, identity.FileKey, identity.FileBundle} {
		info, err := os.Stat(filepath.Join(one, file))
		if err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 && ownerOf(t, info) != owner {
			t.Errorf("%s belongs to %d", file, ownerOf(t, info))
		}
		if file == identity.FileKey && info.Mode().Perm() != 0o600 {
			t.Errorf("the key's mode is %o", info.Mode().Perm())
		}
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		svid, err := running.GetX509SVID()
		if err == nil && svid.Certificates[0].Equal(second) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("who runs with it has not taken it up")
		}
	}

	other, err := Create(filepath.Join(dir, "other"), identityDomain(t), nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := Renew(one, other, time.Hour, time.Now().Add(time.Hour)); exit.Of(err) != exit.Data {
		t.Errorf("renewed by the root of another trust domain: %v", err)
	}
}
