package catalogue

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/secret"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/authority"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/profile"
	"github.com/sallyport-pki/sallyport/services/issuer/internal/store"
)

func open(t *testing.T, c db.Config) *Catalogue {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Database: c, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	box, err := secret.Create(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	cat, err := New(Config{Store: st, Box: box, SecretsDir: t.TempDir(), UserAgent: "sallyport/test", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return cat
}

// No key lies readable in the database, and a sealed key opens in its own row alone.
func TestKeysAreSealed(t *testing.T) {
	c := servicetest.SQLite(t)
	cat := open(t, c)
	ctx := t.Context()
	corp, _, err := cat.ApplyAuthority(ctx, authority.Spec{Name: "corp", Internal: &authority.Internal{}}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	public, _, err := cat.ApplyAuthority(ctx, authority.Spec{Name: "public", ACME: &authority.ACME{Directory: "https://ca.example/dir"}}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	var keys [][]byte
	for _, k := range []struct {
		purpose string
		a       store.Authority
		sealed  []byte
	}{{purposeIssuing, corp, corp.Key}, {purposeRoot, corp, corp.RootKey}, {purposeAccount, public, public.Key}} {
		text, err := cat.Box.Open(secret.AAD(k.purpose, k.a.UID), k.sealed)
		if err != nil {
			t.Fatalf("%s: %v", k.purpose, err)
		}
		if _, err := pki.ParseKeyPEM(text); err != nil {
			t.Errorf("%s: %v", k.purpose, err)
		}
		if _, err := cat.Box.Open(secret.AAD(k.purpose, "another"), k.sealed); err == nil {
			t.Errorf("%s: opens in another row", k.purpose)
		}
		keys = append(keys, text[30:80])
	}
	if err := cat.Store.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(c.DSN + "*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	found := false
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found = found || bytes.Contains(data, []byte(corp.UID))
		for i, k := range keys {
			if bytes.Contains(data, k) || bytes.Contains(data, []byte("PRIVATE KEY")) {
				t.Errorf("key %d lies readable in %s", i, f)
			}
		}
	}
	if !found {
		t.Error("the search finds nothing at all: it looks in the wrong place")
	}
}

func TestLive(t *testing.T) {
	servicetest.EachStore(t, func(t *testing.T, c db.Config) {
		cat := open(t, c)
		ctx := t.Context()
		a, _, err := cat.ApplyAuthority(ctx, authority.Spec{Name: "corp", Internal: &authority.Internal{}}, "", false)
		if err != nil {
			t.Fatal(err)
		}
		p := profile.Profile{Name: "web", Authority: "corp", KeyTypes: []pki.KeyType{pki.ECDSAP256}, Usages: []profile.Usage{profile.ServerAuth}, Lifetime: time.Hour, AllowedDomains: []string{"example.com"}}
		if _, _, err := cat.ApplyProfile(ctx, p, "", false); err != nil {
			t.Fatal(err)
		}
		one, err := cat.Rule(ctx, "web", false)
		if err != nil {
			t.Fatal(err)
		}
		two, err := cat.Rule(ctx, "web", true)
		if err != nil || two.Live != one.Live {
			t.Errorf("the key was opened twice: %v", err)
		}
		if live, err := cat.LiveByUID(ctx, a.UID); err != nil || live != one.Live {
			t.Errorf("got %v, %v", live, err)
		}
		// A change by another process is seen when asked again.
		p2, err := cat.Store.Profile(ctx, "web")
		if err != nil {
			t.Fatal(err)
		}
		p2.AllowIP = true
		if _, err := cat.Store.PutProfile(ctx, p2, p2.ETag); err != nil {
			t.Fatal(err)
		}
		if r, err := cat.Rule(ctx, "web", false); err != nil || r.Profile.AllowIP {
			t.Errorf("not from memory: %v", err)
		}
		if r, err := cat.Rule(ctx, "web", true); err != nil || !r.Profile.AllowIP {
			t.Errorf("not read anew: %v", err)
		}
		if err := cat.DeleteProfile(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if _, err := cat.Rule(ctx, "web", false); fault.KindOf(err) != fault.NotFound {
			t.Errorf("deleted: %v", err)
		}
		if err := cat.DeleteAuthority(ctx, "corp"); err != nil {
			t.Fatal(err)
		}
		if _, err := cat.LiveByUID(ctx, a.UID); fault.KindOf(err) != fault.Permanent {
			t.Errorf("deleted: %v", err)
		}
	})
}

func TestSecrets(t *testing.T) {
	cat := open(t, servicetest.SQLite(t))
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(cat.SecretsDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("mac", "hunter2")
	write("big", strings.Repeat("x", maxSecret+1))
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(cat.SecretsDir, "link")); err != nil {
		t.Fatal(err)
	}
	if text, err := cat.secret("mac"); err != nil || string(text) != "hunter2" {
		t.Errorf("got %q, %v", text, err)
	}
	for _, name := range []string{"none", "big", "link", "../outside", ".", ""} {
		if text, err := cat.secret(name); fault.KindOf(err) != fault.Precondition || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: got %q, %v", name, text, err)
		}
	}
	cat.SecretsDir = ""
	if _, err := cat.secret("mac"); fault.KindOf(err) != fault.Precondition {
		t.Errorf("without a folder: %v", err)
	}
}
