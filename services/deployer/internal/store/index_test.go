package store

import (
	"context"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/services/deployer/internal/renewal"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

func TestIndexes(t *testing.T) {
	servicetest.Indexes(t, func(t *testing.T, c db.Config) (*db.DB, func()) {
		f := open(t, c)
		return f.db, func() {
			ctx := t.Context()
			f.enrol("web-1")
			f.apply(f.deployment("web-1"))
			f.must(f.Start(ctx, "shop"))
			_, err := f.ClaimRequests(ctx, 10)
			f.must(err)
			f.served(fingerprintOf(1))
			_, err = f.DueRenewals(ctx, 10)
			f.must(err)
			_, err = f.DueRetries(ctx, 10)
			f.must(err)
			for _, host := range []string{"", "web-1"} {
				_, err = f.Waiting(ctx, host)
				f.must(err)
			}
			_, err = f.Survey(ctx)
			f.must(err)
			f.event(func(ctx context.Context, tx db.Tx) error {
				return f.SetWindow(ctx, tx, fingerprintOf(1), renewal.Window{Start: f.now(), End: f.now().Add(time.Hour)})
			})
			f.must(f.Remove(ctx, "web-1", ""))
		}
	}, map[string][]string{
		"join_token_used_by":     {"UPDATE join_token SET revoked = TRUE"},
		"assignment_fingerprint": {"WHERE fingerprint = $1 AND"},
		"assignment_planned":     {"SELECT deployment FROM assignment WHERE state = 'planned'"},
		"assignment_requested":   {"WHERE state = 'requested' AND request_next <= $1 ORDER BY"},
		"assignment_failed":      {"state = 'failed' AND next_attempt <= $1 ORDER BY"},
		"assignment_renewal":     {"renew_at <= $1 ORDER BY renew_at", findDue},
		"assignment_open":        {findUnderWay},
	})
}
