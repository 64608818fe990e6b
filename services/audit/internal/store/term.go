package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/sallyport-pki/sallyport/auditlog"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/internal/db"
)

const (
	blockBits = 27
	maxBlocks = 1 << blockBits // 34 thousand million records
	// maxPrefixes is how many prefixes of one type or subject are indexed; a filter with a longer one looks for this one.
	maxPrefixes = 4
)

// Of FNV-1a.
const (
	offset64 = 14695981039346656037
	prime64  = 1099511628211
)

// The kinds of terms.
const (
	kindActor   = 'a'
	kindResult  = 'r'
	kindSubject = 's'
	kindTrace   = 'i'
	kindType    = 't'
)

// term is the key of a term in block 0; those of other blocks follow. Two terms in one key only cost a look into a block in vain.
func term(kind byte, text string) int64 {
	sum := (offset64 ^ uint64(kind)) * prime64
	for i := range len(text) {
		sum = (sum ^ uint64(text[i])) * prime64
	}
	sum ^= sum >> 32 // FNV's upper bits depend little on the last bytes
	sum *= 0x9e3779b97f4a7c15
	return int64(sum >> (blockBits + 1) << blockBits)
}

// terms collects the keys of one block.
type terms struct {
	number uint64
	keys   []int64
	last   auditlog.Record // often the same as the next
}

func (t *terms) add(r auditlog.Record) {
	key := func(kind byte, text string) { t.keys = append(t.keys, term(kind, text)|int64(t.number)) }
	first := len(t.keys) == 0
	if first || r.Type != t.last.Type {
		key(kindType, r.Type)
		prefixes(r.Type, ".", func(p string) { key(kindType, p) })
	}
	if first || r.Subject != t.last.Subject {
		key(kindSubject, r.Subject)
		prefixes(r.Subject, "/", func(p string) { key(kindSubject, p) })
	}
	if first || r.Actor != t.last.Actor {
		key(kindActor, r.Actor)
	}
	if first || r.Result != t.last.Result {
		key(kindResult, r.Result)
	}
	if r.TraceID != "" && (first || r.TraceID != t.last.TraceID) {
		key(kindTrace, r.TraceID)
	}
	t.last = r
}

// prefixes calls use with the first prefixes of text that end in the separator.
func prefixes(text, separator string, use func(string)) {
	end := 0
	for range maxPrefixes {
		n := strings.Index(text[end:], separator)
		if n < 0 {
			return
		}
		end += n + len(separator)
		use(text[:end])
	}
}

// termsOf are terms that a block must have if f selects anything in it.
func termsOf(f record.Filter) []int64 {
	var all []int64
	text := func(kind byte, want, separator string) {
		switch {
		case want == "":
		case strings.HasSuffix(want, separator):
			var longest string
			prefixes(want, separator, func(p string) { longest = p })
			all = append(all, term(kind, longest))
		default:
			all = append(all, term(kind, want))
		}
	}
	// The rarest first: the database looks for it, and looks the others up.
	if f.TraceID != "" {
		all = append(all, term(kindTrace, f.TraceID))
	}
	text(kindSubject, f.Subject, "/")
	if f.Actor != "" {
		all = append(all, term(kindActor, f.Actor))
	}
	if f.Result != eventv1.Result_RESULT_UNSPECIFIED {
		all = append(all, term(kindResult, record.Result(f.Result)))
	}
	text(kindType, f.Type, ".")
	return all
}

// Blocks gives up to limit numbers of blocks before the one numbered before, the newest first, in which f may select something. It
// knows of those before Next alone.
func (s *Store) Blocks(ctx context.Context, f record.Filter, before uint64, limit int) ([]uint64, error) {
	query, args := blocksQuery(f, before, limit)
	var found []uint64
	err := s.db.Read(ctx, func(ctx context.Context, tx db.Tx) error {
		var number int64
		return each(ctx, tx, query, args, []any{&number}, func() { found = append(found, uint64(number)) })
	})
	if err != nil {
		return nil, fmt.Errorf("searching the index: %w", err)
	}
	return found, nil
}

func blocksQuery(f record.Filter, before uint64, limit int) (string, []any) {
	var args []any
	arg := func(v int64) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	before = min(before, maxBlocks)
	var number, query, order string
	all := termsOf(f)
	if len(all) == 0 {
		number, order = "b.number", "b.number"
		query = `SELECT b.number FROM block b WHERE b.number < ` + arg(int64(before))
	} else {
		number, order = "t.key - "+arg(all[0]), "t.key"
		query = `SELECT ` + number + ` FROM term t WHERE t.key >= ` + arg(all[0]) + ` AND t.key < ` + arg(all[0]+int64(before))
		for _, other := range all[1:] {
			query += ` AND EXISTS (SELECT 1 FROM term o WHERE o.key = t.key + ` + arg(other-all[0]) + `)`
		}
	}
	if !f.From.IsZero() || !f.To.IsZero() {
		query += ` AND EXISTS (SELECT 1 FROM block w WHERE w.number = ` + number
		if !f.From.IsZero() {
			query += ` AND w.max_time >= ` + arg(f.From.UnixMicro())
		}
		if !f.To.IsZero() {
			query += ` AND w.min_time < ` + arg(f.To.UnixMicro())
		}
		query += `)`
	}
	return query + ` ORDER BY ` + order + ` DESC LIMIT ` + arg(int64(limit)), args
}
