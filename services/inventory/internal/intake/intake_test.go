package intake

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func FuzzObservation(f *testing.F) {
	for _, name := range []string{"secp256k1", "sha1", "negative"} {
		der, err := os.ReadFile(filepath.Join("..", "catalog", "testdata", name+".der"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add("web-1", "1.0", "/etc/ssl/a.pem", "", "s", der, []byte{0x30, 0x03, 2, 1, 1})
	}
	f.Add("web-1\x00", "\xff", "127.0.0.1:443", "a.example.com\x00\xff", "", []byte{}, []byte{})
	now := timestamppb.New(time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC))
	f.Fuzz(func(t *testing.T, host, version, location, serverName, scan string, leaf, rest []byte) {
		o, unreadable, err := observation(&eventv1.Event{Time: now}, &eventv1.HostObserved{
			Host: host, Version: version, Platform: version, ScanId: scan, ScanComplete: true,
			Sightings: []*eventv1.Sighting{{Role: eventv1.SightingRole_SIGHTING_ROLE_FILE, Location: location, ServerName: serverName, Chain: [][]byte{leaf, rest}}},
		})
		if err != nil {
			if !errors.Is(err, &fault.Error{Kind: fault.Permanent, Reason: "BAD_OBSERVATION"}) {
				t.Fatal(err)
			}
			return
		}
		if len(o.Seen)+len(unreadable) > 1 {
			t.Fatal("more than there was")
		}
		texts := []string{o.Host, o.Version, o.Platform, o.Scan}
		for _, s := range o.Seen {
			texts = append(texts, s.Location, s.ServerName)
		}
		for _, s := range texts {
			if !utf8.ValidString(s) || strings.ContainsRune(s, 0) || len(s) > 1024 {
				t.Fatalf("text %q that no database takes", s)
			}
		}
	})
}
