package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestLate: a daemon whose identity nobody renews says so in time, ever louder, and not all the time.
func TestLate(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ca, err := CreateAuthority(td, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := ServiceID(td, "issuer")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Mint(id, key.Public(), 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := WriteFiles(dir, chain, key, ca.Bundle()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	f, err := newFiles(dir, slog.New(slog.NewTextHandler(&out, nil)), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var said time.Time
	for day := range 30 {
		for hour := range 24 {
			said = f.late(t.Context(), time.Now().Add(time.Duration(day*24+hour)*time.Hour), said)
		}
		warnings, failures := strings.Count(out.String(), "level=WARN"), strings.Count(out.String(), "level=ERROR")
		switch {
		case day < 19 && warnings+failures > 0:
			t.Fatalf("day %d: %s", day, out.String())
		case day == 22 && (warnings == 0 || warnings > 13 || failures > 0):
			t.Fatalf("day %d: %d warnings, %d errors", day, warnings, failures)
		case day == 29 && failures == 0:
			t.Fatalf("day %d: no error", day)
		}
	}
	if !strings.Contains(out.String(), "sallyport trust renew") {
		t.Error("it does not say what to do")
	}
}
