package ledger

import (
	"context"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/transparency-dev/tessera/client"
)

// Inclusion gives the record at position with the proof that it is in the log. It waits, as long as ctx allows, for a checkpoint
// that covers the record, and checks the proof as an auditor would.
func (l *Ledger) Inclusion(ctx context.Context, position uint64) (auditlog.Inclusion, error) {
	if size := l.Size(); position >= size {
		return auditlog.Inclusion{}, notFound(position, size)
	}
	c, err := l.AwaitCheckpoint(ctx, position+1)
	if err != nil {
		return auditlog.Inclusion{}, err
	}
	p := auditlog.Inclusion{Position: position, Checkpoint: c.Note}
	err = l.Read(ctx, position, position+1, func(_ uint64, record []byte) error {
		p.Record = record
		return nil
	})
	if err != nil {
		return p, err
	}
	tree, err := client.NewProofBuilder(ctx, c.Size, l.files.ReadTile)
	if err == nil {
		p.Path, err = tree.InclusionProof(ctx, position)
	}
	if err != nil {
		return p, l.damaged("proving position %d: %w", position, err)
	}
	if _, _, err := auditlog.VerifyInclusion(p, auditlog.Options{Key: l.verifier}); err != nil {
		return p, l.damaged("the proof of position %d does not hold: %w", position, err)
	}
	return p, nil
}

// Consistency proves that the first from records are a prefix of the first to, 0 meaning the newest checkpoint's. It gives the
// checkpoint as well.
func (l *Ledger) Consistency(ctx context.Context, from, to uint64) ([][]byte, uint64, auditlog.Checkpoint, error) {
	c, err := l.Checkpoint(ctx)
	if err != nil {
		return nil, 0, c, err
	}
	if to == 0 {
		to = c.Size
	}
	switch {
	case to > c.Size:
		return nil, 0, c, fault.Invalid("to_size", "%d: the newest checkpoint has %d records", to, c.Size)
	case from > to:
		return nil, 0, c, fault.Invalid("from_size", "%d is more than %d", from, to)
	}
	tree, err := client.NewProofBuilder(ctx, c.Size, l.files.ReadTile)
	var path [][]byte
	if err == nil {
		path, err = tree.ConsistencyProof(ctx, from, to)
	}
	if err != nil {
		return nil, 0, c, l.damaged("proving that %d records continue %d: %w", to, from, err)
	}
	return path, to, c, nil
}

func notFound(position, size uint64) error {
	return fault.New(fault.NotFound, "POSITION_NOT_FOUND", "position %d: the log has %d records", position, size)
}

func (l *Ledger) damaged(format string, args ...any) error {
	return fault.New(fault.Internal, "LOG_DAMAGED", "the log in "+l.logDir+": "+format, args...)
}
