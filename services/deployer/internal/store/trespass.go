package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"

	"github.com/sallyport-pki/sallyport/internal/fault"
)

// trespass records that the agent on host named a row of table, "assignment" or "challenge", that is another host's. The agent
// is told what it would be told if the row did not exist, so that it learns nothing; an auditor sees the attempt.
func (s *Store) trespass(ctx context.Context, host, table, id string, err error) error {
	if fault.KindOf(err) != fault.NotFound {
		return err
	}
	recording := s.write(ctx, func(ctx context.Context, t *txn) error {
		var owner string
		switch err := t.QueryRow(ctx, `SELECT host FROM `+table+` WHERE id = $1`, id).Scan(&owner); {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err != nil:
			return fmt.Errorf("looking whose %s %s is: %w", table, id, err)
		case owner == "" || owner == host:
			return nil
		}
		return t.emit(ctx, fact{
			kind: "call.denied", subject: table + "s/" + id, reason: "of another host", result: eventv1.Result_RESULT_REFUSED,
			facts: map[string]string{"host": host, "owner": owner},
		}, nil)
	})
	if recording != nil {
		return recording
	}
	return err
}
