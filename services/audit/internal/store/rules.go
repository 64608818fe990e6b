package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/services/internal/check"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

// Rules hold for the index at any moment; size gives how many records the log has.
func Rules(size func() uint64) []check.Rule {
	return []check.Rule{
		{Name: "log-indexed", Broken: func(ctx context.Context, tx db.Tx, _ time.Time, limit int) ([]check.Violation, error) {
			return unindexed(ctx, tx, size, limit)
		}},
		{Name: "log-published", Broken: func(ctx context.Context, tx db.Tx, _ time.Time, _ int) ([]check.Violation, error) {
			var published int64
			if err := tx.QueryRow(ctx, `SELECT published FROM log WHERE id = 1`).Scan(&published); err != nil {
				return nil, err
			}
			if now := size(); uint64(published) > now {
				return []check.Violation{{Subject: "log", Message: fmt.Sprintf("the audit stream has %d records, the log %d", published, now)}}, nil
			}
			return nil, nil
		}},
	}
}

// unindexed finds what of the log is missing from the index, or twice in it. The log is asked first: it grows before the index does.
func unindexed(ctx context.Context, tx db.Tx, size func() uint64, limit int) ([]check.Violation, error) {
	before := size()
	end, err := nextPosition(ctx, tx)
	if err != nil {
		return nil, err
	}
	var all []check.Violation
	if now := size(); end > now {
		all = append(all, check.Violation{Subject: position(now), Message: fmt.Sprintf("is in the index, but the log has only %d records", now)})
	}
	if before > end+MaxTail {
		all = append(all, check.Violation{Subject: position(end), Message: fmt.Sprintf("and those after it are not in the index: the log has %d records", before)})
	}
	gaps, err := check.SQL(`SELECT 'records/' || CAST((b.number + 1) * 256 AS TEXT), 'and the 255 after it are not in the index, but later ones are' FROM block b
		WHERE b.number < (SELECT max(number) FROM block) AND NOT EXISTS (SELECT 1 FROM block n WHERE n.number = b.number + 1) ORDER BY b.number`)(ctx, tx, time.Time{}, limit)
	if err != nil {
		return nil, err
	}
	all = append(all, gaps...)
	wrong, err := events(ctx, tx, end)
	return append(all, wrong...), err
}

// events goes through the events of all records before position end: each has to have one record, and each record one event.
func events(ctx context.Context, tx db.Tx, end uint64) ([]check.Violation, error) {
	var all []check.Violation
	seen := map[uuid.UUID]uint64{} // of one bucket: the same id is in the same
	var bucket, last int64
	var entries []byte
	var known uint64
	err := each(ctx, tx, `SELECT bucket, entries FROM event_position ORDER BY bucket, block`, nil, []any{&bucket, &entries}, func() {
		if bucket != last {
			clear(seen)
			last = bucket
		}
		for e := range slices.Chunk(entries, entrySize) {
			id, at := uuid.UUID(e), binary.BigEndian.Uint64(e[len(uuid.UUID{}):])
			if other, twice := seen[id]; twice && len(all) < maxTold {
				all = append(all, check.Violation{Subject: position(max(at, other)), Message: fmt.Sprintf("its event %s has another record, at position %d", id, min(at, other))})
			}
			seen[id] = at
			known++
		}
	})
	if err == nil && known != end {
		all = append(all, check.Violation{Subject: "log", Message: fmt.Sprintf("the index has %d records, and the events of %d", end, known)})
	}
	return all, err
}

// maxTold bounds the events that are told.
const maxTold = 100

func position(p uint64) string { return fmt.Sprintf("records/%d", p) }
