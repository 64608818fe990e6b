package store

import (
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func TestIndexes(t *testing.T) {
	servicetest.Indexes(t, func(t *testing.T, c db.Config) (*db.DB, func()) {
		f := open(t, c)
		return f.db, func() {
			must := func(_ any, err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			ctx, until := t.Context(), f.clock.Add(time.Minute)
			f.begin(f.decision("r-1"))
			f.begin(f.issued("r-2"))
			must(f.Claim(ctx, "me", until, 10))
			must(f.NextDue(ctx))
			must(f.ClaimWindows(ctx, "me", until, 10))
			must(f.NextWindow(ctx))
			must(f.Survey(ctx))
			must(f.Standings(ctx))
			_, _, err := f.Revoked(ctx, f.a.UID)
			must(nil, err)
		}
	}, map[string][]string{
		"request_due":         {"next_attempt <= $1 AND claimed_until <= $1", "END), 0) FROM request WHERE next_attempt > 0"},
		"certificate_window":  {"window_next <= $1 AND claimed_until <= $1", "END), 0) FROM certificate WHERE window_next > 0"},
		"revocation_due":      {"AND last = 0 ORDER BY"},
		"revocation_unlisted": {"r.authority_uid = a.uid AND r.listed = 0"},
	})
}
