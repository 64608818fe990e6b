package enroll

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

var encoded = regexp.MustCompile(`[A-Za-z0-9+/]{40,}`)

// FuzzIdentity reads what may be in the record of the identity: what is used is an agent's, with its own key and a bundle that vouches
// for it, and comes to the same after it was written again; all else is set aside, and its words do not get into the log, as they may
// hold the key.
func FuzzIdentity(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ca, err := identity.CreateAuthority(td, nil)
	if err != nil {
		f.Fatal(err)
	}
	open := func(t testing.TB, log *slog.Logger) *disk.Folder {
		t.Helper()
		folder, err := disk.OpenFolder(filepath.Join(t.TempDir(), "identity"), log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := folder.Close(); err != nil {
				t.Error(err)
			}
		})
		return folder
	}
	folder := open(f, slog.New(slog.DiscardHandler))
	s, err := OpenStore(f.Context(), folder)
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range []string{"/agent/web-1", "/operator/ann"} {
		rec, key, err := s.newKey(recordNext, "web-1", "token-1")
		if err != nil {
			f.Fatal(err)
		}
		half, err := folder.Get(f.Context(), recordNext)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(half)
		chain, err := ca.Mint(spiffeid.RequireFromPath(td, path), key.Public(), time.Hour)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := rec.grant(&agentv1.IdentityGrant{Chain: [][]byte{chain[0].Raw}, Bundle: [][]byte{ca.Bundle().X509Authorities()[0].Raw}}, key); (err == nil) != (path == "/agent/web-1") {
			f.Fatal(err)
		}
		if err := s.write(recordCurrent, rec); err != nil {
			f.Fatal(err)
		}
		whole, err := folder.Get(f.Context(), recordCurrent)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(whole)
		f.Add(bytes.Replace(whole, []byte(`"key":"`), []byte(`"key":"AAAA`), 1))
		f.Add(bytes.Replace(whole, []byte(`"bundle":["`), []byte(`"bundle":["","`), 1))
		f.Add(bytes.Replace(whole, []byte(`"host":"web-1"`), []byte(`"host":7`), 1))
	}
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var log strings.Builder
		folder := open(t, slog.New(slog.NewTextHandler(&log, nil)))
		if err := folder.Put(recordCurrent, data); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStore(t.Context(), folder)
		if err != nil {
			t.Fatal(err) // the agent would not start
		}
		id := s.Current()
		if id == nil {
			names, err := folder.Names()
			if err != nil {
				t.Fatal(err)
			}
			rec, key, err := s.read(t.Context(), recordCurrent)
			switch {
			case errors.Is(err, fs.ErrNotExist) && len(names) == 0:
			case err == nil && len(names) == 1 && len(rec.Chain) == 0 && key != nil: // its key alone
			default:
				t.Fatalf("%v lie there still, %v", names, err)
			}
			for _, secret := range encoded.FindAllString(string(data), -1) {
				if strings.Contains(log.String(), secret) {
					t.Fatalf("the log says what stands there: %s", log.String())
				}
			}
			return
		}
		caller, err := identity.CallerOf(id.SVID.ID)
		if err != nil || caller.Role != identity.RoleAgent {
			t.Fatalf("%v was taken, %v", id.SVID.ID, err)
		}
		if _, err := s.GetX509BundleForTrustDomain(id.SVID.ID.TrustDomain()); err != nil {
			t.Fatal(err)
		}
		rec, _, err := s.read(t.Context(), recordCurrent)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.write(recordCurrent, rec); err != nil {
			t.Fatal(err)
		}
		again, err := OpenStore(t.Context(), folder)
		if err != nil || again.Current() == nil || again.Current().Host != id.Host || !again.Current().RenewAt.Equal(id.RenewAt) || !again.Current().Expires().Equal(id.Expires()) {
			t.Fatalf("%+v, %v, after %+v", again.Current(), err, id)
		}
	})
}
