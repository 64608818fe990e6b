// Package search finds records by what they say.
//
// It guarantees that nothing is missing of what was in the log when it was asked: what is not indexed yet is looked for in the log
// itself. The index only names blocks, so each record is compared with the filter before it is given.
package search

import (
	"context"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger"
	"github.com/sallyport-pki/sallyport/services/audit/internal/record"
	"github.com/sallyport-pki/sallyport/services/audit/internal/store"
)

// blocksAtOnce is how many blocks the index is asked for.
const blocksAtOnce = 16

// Search is one search, newest first.
type Search struct {
	Ledger *ledger.Ledger
	Store  *store.Store
	Filter record.Filter
}

// Each calls fn with each record that the filter selects and that stands before position before, the newest first, until fn
// returns false.
func (s Search) Each(ctx context.Context, before uint64, fn func(position uint64, data []byte) bool) error {
	before = min(before, s.Ledger.Size())
	indexed, err := s.Store.Next(ctx)
	if err != nil {
		return err
	}
	number := (before + store.BlockSize - 1) / store.BlockSize // of the block after the next to look at
	for number > indexed/store.BlockSize {
		number--
		if more, err := s.block(ctx, number, before, fn); err != nil || !more {
			return err
		}
	}
	for {
		blocks, err := s.Store.Blocks(ctx, s.Filter, number, blocksAtOnce)
		if err != nil {
			return err
		}
		for _, number = range blocks {
			if more, err := s.block(ctx, number, before, fn); err != nil || !more {
				return err
			}
		}
		if len(blocks) < blocksAtOnce {
			return nil
		}
	}
}

// block looks through one block, as far as it stands before position before.
func (s Search) block(ctx context.Context, number, before uint64, fn func(uint64, []byte) bool) (more bool, err error) {
	type hit struct {
		position uint64
		data     []byte
	}
	var hits []hit
	first := number * store.BlockSize
	err = s.Ledger.Read(ctx, first, min(first+store.BlockSize, before), func(position uint64, data []byte) error {
		if s.Filter != (record.Filter{}) {
			r, err := auditlog.ParseRecord(data)
			if err != nil {
				return fault.New(fault.Internal, "LOG_DAMAGED", "position %d of the log is not a record: %w", position, err)
			}
			if !s.Filter.Match(r) {
				return nil
			}
		}
		hits = append(hits, hit{position, data})
		return nil
	})
	if err != nil {
		return false, err
	}
	for n := len(hits) - 1; n >= 0; n-- {
		if !fn(hits[n].position, hits[n].data) {
			return false, nil
		}
	}
	return true, nil
}
