// Package store is the search index over the log: which blocks of 256 records may hold what is asked for, and which events have a
// record, and where.
//
// It guarantees that it knows every record of the blocks before Next, that a block it does not name for a filter holds nothing the
// filter selects, and that what it says of events is exact. It knows nothing of the records after its last block, at most MaxTail
// of them: whoever asks looks into the log itself for those, as for the records themselves.
package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations are the tables of the audit service, its outbox included.
func Migrations() fs.FS {
	own, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the name is a constant of this file
	}
	return event.WithSchema(own)
}

const (
	// BlockSize is how many records a block has.
	BlockSize = 256
	// MaxTail is how many records the log may have that are not indexed.
	MaxTail = 4 * 4096

	// entrySize is an event's id and the position of its record.
	entrySize = len(uuid.UUID{}) + 8

	// How many values one statement has. SQLite takes $1, $2 ... for names and looks each of them up among all, so that a
	// statement's time grows with the square of its parameters: these are the sizes at which both databases are near their best.
	insertValues = 128
	lookupValues = 64
)

// Store is the index in one database.
type Store struct{ db *db.DB }

// New takes a database that was opened with Migrations.
func New(d *db.DB) *Store { return &Store{d} }

// Tip is the newest record of which the index knows that the log has it.
type Tip struct {
	Size    uint64 // the log had so many records at least
	EventID string // of the last of them; empty when Size is 0
}

// Adopt binds an empty index to the log with this verifier key, or checks that it is that log's.
func (s *Store) Adopt(ctx context.Context, verifier string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO log (id, verifier) VALUES (1, $1) ON CONFLICT DO NOTHING`, verifier); err != nil {
			return err
		}
		var owner string
		if err := tx.QueryRow(ctx, `SELECT verifier FROM log WHERE id = 1`).Scan(&owner); err != nil {
			return err
		}
		if owner != verifier {
			return fault.New(fault.Precondition, "INDEX_REFUSED", "the database is the index of the log with key %q, this log has key %q: give this log a database of its own, or restore the log that belongs to the database", owner, verifier)
		}
		return nil
	})
}

// Tip gives the newest record the index knows of.
func (s *Store) Tip(ctx context.Context) (Tip, error) {
	var tip Tip
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		var size int64
		err := tx.QueryRow(ctx, `SELECT tip, tip_event FROM log WHERE id = 1`).Scan(&size, &tip.EventID)
		tip.Size = uint64(size)
		return err
	})
	if err != nil {
		return Tip{}, fmt.Errorf("reading the tip of the index: %w", err)
	}
	return tip, nil
}

// SetTip notes how long the log is.
func (s *Store) SetTip(ctx context.Context, tip Tip) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error { return setTip(ctx, tx, tip) })
	if err != nil {
		return fmt.Errorf("noting how long the log is: %w", err)
	}
	return nil
}

func setTip(ctx context.Context, tx db.Tx, tip Tip) error {
	_, err := tx.Exec(ctx, `UPDATE log SET tip = $1, tip_event = $2 WHERE id = 1 AND tip <= $1`, int64(tip.Size), tip.EventID)
	return err
}

// Next is the position before which everything is indexed.
func (s *Store) Next(ctx context.Context) (uint64, error) {
	var next uint64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) (err error) {
		next, err = nextPosition(ctx, tx)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading how far the log is indexed: %w", err)
	}
	return next, nil
}

func nextPosition(ctx context.Context, tx db.Tx) (uint64, error) {
	var last int64
	err := tx.QueryRow(ctx, `SELECT number FROM block ORDER BY number DESC LIMIT 1`).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return (uint64(last) + 1) * BlockSize, err
}

// Add indexes whole blocks, of which the first record stands at position first. They must be the next.
func (s *Store) Add(ctx context.Context, first uint64, records []record.Encoded) error {
	if first%BlockSize != 0 || len(records)%BlockSize != 0 || len(records) == 0 {
		return fault.New(fault.Internal, "INTERNAL", "%d records from position %d are not whole blocks", len(records), first)
	}
	if end := (first + uint64(len(records))) / BlockSize; end > maxBlocks {
		return fault.New(fault.Internal, "INTERNAL", "block %d: the index has at most %d", end, maxBlocks)
	}
	events, keys, blocks := summarise(first, records)
	tip := Tip{first + uint64(len(records)), records[len(records)-1].Head.ID}
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		next, err := nextPosition(ctx, tx)
		if err != nil {
			return err
		}
		if next != first {
			return fault.New(fault.Precondition, "INDEX_REFUSED", "the index goes to position %d, not %d: does another process index its log into this database? Give each log a database of its own", next, first)
		}
		for _, part := range []struct {
			into    string
			columns int
			values  []any
		}{
			{`INSERT INTO event_position (bucket, block, entries) VALUES `, 3, events},
			{`INSERT INTO term (key) VALUES `, 1, keys},
			{`INSERT INTO block (number, min_time, max_time) VALUES `, 3, blocks},
		} {
			if err := insert(ctx, tx, part.into, part.columns, part.values); err != nil {
				return err
			}
		}
		return setTip(ctx, tx, tip)
	})
	if err != nil {
		return fmt.Errorf("indexing %d records from position %d: %w", len(records), first, err)
	}
	return nil
}

// summarise gives the rows of the three tables, each in the order of its key, one value after the other.
func summarise(first uint64, records []record.Encoded) (events, keys, blocks []any) {
	buckets := map[int64][]byte{}
	var all []int64
	for from := 0; from < len(records); from += BlockSize {
		number := (first + uint64(from)) / BlockSize
		low, high := db.FromTime(records[from].Head.Time), db.FromTime(records[from].Head.Time)
		terms := terms{number: number}
		for i, r := range records[from : from+BlockSize] {
			at := db.FromTime(r.Head.Time)
			low, high = min(low, at), max(high, at)
			terms.add(r.Head)
			b := bucket(r.ID)
			buckets[b] = binary.BigEndian.AppendUint64(append(buckets[b], r.ID[:]...), first+uint64(from+i))
		}
		all = append(all, terms.keys...)
		blocks = append(blocks, int64(number), low, high)
	}
	slices.Sort(all)
	for _, k := range slices.Compact(all) {
		keys = append(keys, k)
	}
	for _, b := range slices.Sorted(maps.Keys(buckets)) {
		events = append(events, b, int64(first/BlockSize), buckets[b])
	}
	return events, keys, blocks
}

// bucket puts events that were made within 64 ms of each other together, by the time in a UUIDv7; ids without a time are alone.
func bucket(id uuid.UUID) int64 {
	high := binary.BigEndian.Uint64(id[:])
	if id.Version() == 7 {
		return int64(high >> (16 + 6))
	}
	return -1 - int64(high>>1)
}

// insert writes rows. Statements have a power of two rows, so that they are few and stay prepared.
func insert(ctx context.Context, tx db.Tx, into string, columns int, values []any) error {
	for rows := insertValues / columns; len(values) > 0; {
		for rows*columns > len(values) {
			rows /= 2
		}
		var b strings.Builder
		b.WriteString(into)
		for n := range rows {
			b.WriteString([]string{"(", ",("}[min(n, 1)])
			for c := range columns {
				fmt.Fprintf(&b, "%s$%d", []string{"", ","}[min(c, 1)], n*columns+c+1)
			}
			b.WriteByte(')')
		}
		if _, err := tx.Exec(ctx, b.String(), values[:rows*columns]...); err != nil {
			return err
		}
		values = values[rows*columns:]
	}
	return nil
}

// Positions gives where those of the events stand that have a record, and the position before which the index knows everything.
func (s *Store) Positions(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]uint64, uint64, error) {
	found := map[uuid.UUID]uint64{}
	var next uint64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		var newest int64
		err := tx.QueryRow(ctx, `SELECT bucket FROM event_position ORDER BY bucket DESC LIMIT 1`).Scan(&newest)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if next, err = nextPosition(ctx, tx); err != nil {
			return err
		}
		wanted := make(map[uuid.UUID]bool)
		var buckets []int64
		for _, id := range ids {
			if b := bucket(id); b <= newest { // else it is of an event newer than all that are known, as nearly always
				wanted[id] = true
				buckets = append(buckets, b)
			}
		}
		slices.Sort(buckets)
		buckets = slices.Compact(buckets)
		for part := range slices.Chunk(buckets, lookupValues) {
			var args []any
			query := `SELECT entries FROM event_position WHERE bucket IN ` + db.In(&args, part)
			var entries []byte
			err := each(ctx, tx, query, args, []any{&entries}, func() {
				for e := range slices.Chunk(entries, entrySize) {
					if id := uuid.UUID(e); wanted[id] {
						found[id] = binary.BigEndian.Uint64(e[len(id):])
					}
				}
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("looking up %d events: %w", len(ids), err)
	}
	return found, next, nil
}

// each reads a query, calling take after each row.
func each(ctx context.Context, tx db.Tx, query string, args, into []any, take func()) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		take()
	}
	return rows.Err()
}

// Published is the position up to which records were published.
func (s *Store) Published(ctx context.Context) (uint64, error) {
	var n int64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		return tx.QueryRow(ctx, `SELECT published FROM log WHERE id = 1`).Scan(&n)
	})
	if err != nil {
		return 0, fmt.Errorf("reading how far records were published: %w", err)
	}
	return uint64(n), nil
}

// SetPublished notes that the records before position next were published.
func (s *Store) SetPublished(ctx context.Context, next uint64) error {
	err := s.db.Write(ctx, func(ctx context.Context, tx db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE log SET published = $1 WHERE id = 1`, int64(next))
		return err
	})
	if err != nil {
		return fmt.Errorf("noting how far records were published: %w", err)
	}
	return nil
}
