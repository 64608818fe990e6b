package auditlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

const extentFormat = "sallyport-audit-extent-v1"

// Extent says what part of the log an export has: the file that belongs to it. An export of the whole log, from position 0 to
// the end of its checkpoint, needs the checkpoint only.
type Extent struct {
	// Checkpoint is the signed note that covers the export.
	Checkpoint []byte
	// Start is the position of the first record.
	Start uint64
	// Before are the roots of the perfect subtrees over the records before Start: Before(Start, ...) of any inclusion proof
	// for Start. Empty when Start is 0.
	Before [][]byte
	// End is one past the position of the last record; 0 means the size of Checkpoint.
	End uint64
	// Last is the inclusion path of the last record to Checkpoint. Empty when End is the size of Checkpoint.
	Last [][]byte
}

type extentFile struct {
	Format     string   `json:"format"`
	Start      uint64   `json:"start"`
	End        uint64   `json:"end"`
	Before     [][]byte `json:"before"`
	Last       [][]byte `json:"last"`
	Checkpoint string   `json:"checkpoint"`
}

// Encode gives the extent file: the bare checkpoint for an export of the whole log, else a JSON object.
func (e Extent) Encode() ([]byte, error) {
	if e.Start == 0 && e.End == 0 {
		return e.Checkpoint, nil
	}
	return encodeFile(extentFile{extentFormat, e.Start, e.End, e.Before, e.Last, string(e.Checkpoint)})
}

// ParseExtent reads an extent file or a bare checkpoint without checking it.
func ParseExtent(file []byte) (Extent, error) {
	if !bytes.HasPrefix(file, []byte("{")) {
		return Extent{Checkpoint: file}, nil
	}
	var f extentFile
	if err := decodeFile(file, &f); err != nil {
		return Extent{}, err
	}
	if f.Format != extentFormat {
		return Extent{}, violation(Damaged, "format is %q, the extent of an export has %q", f.Format, extentFormat)
	}
	if err := errors.Join(checkPath(f.Before), checkPath(f.Last)); err != nil {
		return Extent{}, err
	}
	return Extent{[]byte(f.Checkpoint), f.Start, f.Before, f.End, f.Last}, nil
}

// Before gives what Extent.Before needs from the inclusion path of a position in a tree of size records: the hashes left of it.
func Before(position, size uint64, path [][]byte) ([][]byte, error) {
	if position >= size {
		return nil, fmt.Errorf("position %d is not in a tree of %d", position, size)
	}
	inner := bits.Len64(position ^ (size - 1))
	if len(path) != inner+bits.OnesCount64(position>>inner) {
		return nil, fmt.Errorf("%d hashes are no path of position %d in a tree of %d", len(path), position, size)
	}
	var left [][]byte
	for i, h := range path {
		if i >= inner || position>>i&1 == 1 {
			left = append(left, h)
		}
	}
	return left, nil
}

// VerifyExport checks an export: lines has one record a line, each ended by \n, in the order of the log. With a part of the
// log, Options.Older is compared only if its size lies within it.
func VerifyExport(ctx context.Context, lines io.Reader, e Extent, o Options) (Report, error) {
	checkpoint, older, err := heads(e.Checkpoint, o)
	if err != nil {
		return Report{}, err
	}
	if e.End == 0 {
		e.End = checkpoint.Size
	}
	p := &pass{o: o, checkpoint: checkpoint, older: older, start: e.Start, end: e.End}
	if err := p.startAt(e); err != nil {
		return Report{}, err
	}
	lr := &lineReader{r: bufio.NewReaderSize(lines, 1<<20), at: e.Start, end: e.End + 1} // one too many is enough to know
	var readErr error
	err = inOrder(ctx, func() func() block {
		first := lr.at
		records, err := lr.block()
		if len(records) == 0 && err == nil {
			return nil
		}
		return func() block {
			b := block{first: first, err: err}
			b.examine(records)
			return b
		}
	}, func(b block) bool {
		p.add(b)
		readErr = b.err
		return b.err == nil
	})
	var bad *Violation
	switch {
	case err != nil:
		return Report{}, err
	case errors.As(readErr, &bad):
		return p.report(), bad
	case readErr != nil:
		return Report{}, fmt.Errorf("reading the export: %w", readErr)
	}
	p.finish()
	return p.report(), judgeExport(p, e)
}

// startAt makes the pass begin at e.Start.
func (p *pass) startAt(e Extent) error {
	if err := errors.Join(checkPath(e.Before), checkPath(e.Last)); err != nil {
		return err
	}
	switch {
	case e.End > p.checkpoint.Size || e.Start > e.End:
		return violation(Damaged, "an export from %d to %d of a log of %d records", e.Start, e.End, p.checkpoint.Size)
	case len(e.Before) != bits.OnesCount64(e.Start):
		return violation(Damaged, "%d hashes before position %d, there should be %d", len(e.Before), e.Start, bits.OnesCount64(e.Start))
	case e.Start == e.End && e.Start > 0:
		return violation(Damaged, "an export of nothing")
	}
	p.tree.size = e.Start
	for i := len(e.Before) - 1; i >= 0; i-- {
		p.tree.edges = append(p.tree.edges, Hash(e.Before[i]))
	}
	return nil
}

// judgeExport says what the whole pass means, the worst first.
func judgeExport(p *pass, e Extent) error {
	switch got := p.tree.size; {
	case got > e.End:
		return violationAt(Changed, e.End, "the export goes on here, but should have only %d records: some were put in", e.End-e.Start)
	case got < e.End:
		return missing(p, e, e.End-got)
	case !p.rootHolds(e) && p.malformed != nil:
		return p.malformed
	case !p.rootHolds(e):
		return rewritten(p)
	case p.olderRoot != nil && !p.olderHolds():
		return forked(p)
	case p.malformed != nil:
		return p.malformed
	}
	if dup := p.duplicate(); dup != nil {
		return dup
	}
	return nil
}

// missing says what it means that n records are not there.
func missing(p *pass, e Extent, n uint64) *Violation {
	if p.olderRoot != nil && p.older.Size > e.Start && !p.olderHolds() {
		return violation(Removed, "%d of %d records are missing, the first of them before position %d of the older checkpoint", n, e.End-e.Start, p.older.Size)
	}
	return violation(Truncated, "%d of %d records are missing, at the end or before it", n, e.End-e.Start)
}

// rootHolds compares with the signed root.
func (p *pass) rootHolds(e Extent) bool {
	size := p.checkpoint.Size
	if e.End == size {
		return p.tree.root() == p.checkpoint.Root
	}
	// The last record's path leads to the root, and what is left of it is what we have.
	before, err := Before(e.End-1, size, e.Last)
	if err != nil || len(before) != len(p.before.edges) {
		return false
	}
	for i, h := range before {
		if Hash(h) != p.before.edges[len(before)-1-i] {
			return false
		}
	}
	return proof.VerifyInclusion(rfc6962.DefaultHasher, e.End-1, size, p.last[:], e.Last, p.checkpoint.Root[:]) == nil
}

// lineReader cuts an export into the records of one entry bundle after the other.
type lineReader struct {
	r   *bufio.Reader
	at  uint64 // position of the next line
	end uint64 // read no further
}

// block gives the records up to the next bundle's, none at the end. An error comes with the records before it.
func (l *lineReader) block() ([][]byte, error) {
	var records [][]byte
	for l.at < l.end && (len(records) == 0 || l.at%width != 0) {
		line, err := l.line()
		if line == nil || err != nil {
			return records, err
		}
		records = append(records, line)
		l.at++
	}
	return records, nil
}

// line reads one line, nil at the end.
func (l *lineReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxRecord+1 {
			return nil, violationAt(Malformed, l.at, "a line of more than %d bytes", MaxRecord)
		}
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, nil
		case errors.Is(err, io.EOF):
			return nil, violationAt(Truncated, l.at, "the last line does not end: the file was cut off")
		default:
			return nil, err
		}
	}
}
