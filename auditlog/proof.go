package auditlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

const (
	inclusionFormat   = "sallyport-audit-inclusion-v1"
	consistencyFormat = "sallyport-audit-consistency-v1"
	// maxProof bounds a proof file: a record escaped at its worst, a checkpoint and two paths.
	maxProof = 1 << 20
	// maxPath is the longest path in a tree of 2^63 leaves.
	maxPath = 64
)

// Inclusion proves that one record is in the log. As a file it is one JSON object; hashes are in base64.
type Inclusion struct {
	// Position of the record, from 0.
	Position uint64
	// Record is its bytes.
	Record []byte
	// Path is RFC 6962 section 2.1.1, leaf side first.
	Path [][]byte
	// Checkpoint is the signed note the path leads to.
	Checkpoint []byte
}

type inclusionFile struct {
	Format     string   `json:"format"`
	Position   uint64   `json:"position"`
	Record     string   `json:"record"`
	Path       [][]byte `json:"path"`
	Checkpoint string   `json:"checkpoint"`
}

// Consistency proves that one checkpoint continues another.
type Consistency struct {
	// Older and Newer are signed notes.
	Older, Newer []byte
	// Path is RFC 6962 section 2.1.2.
	Path [][]byte
}

type consistencyFile struct {
	Format string   `json:"format"`
	Older  string   `json:"older"`
	Newer  string   `json:"newer"`
	Path   [][]byte `json:"path"`
}

// Encode gives the proof file.
func (p Inclusion) Encode() ([]byte, error) {
	return encodeFile(inclusionFile{inclusionFormat, p.Position, string(p.Record), p.Path, string(p.Checkpoint)})
}

// Encode gives the proof file.
func (p Consistency) Encode() ([]byte, error) {
	return encodeFile(consistencyFile{consistencyFormat, string(p.Older), string(p.Newer), p.Path})
}

func encodeFile(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}

// ParseInclusion reads a proof file without checking the proof.
func ParseInclusion(file []byte) (Inclusion, error) {
	var f inclusionFile
	if err := decodeFile(file, &f); err != nil {
		return Inclusion{}, err
	}
	if f.Format != inclusionFormat {
		return Inclusion{}, violation(Damaged, "format is %q, an inclusion proof has %q", f.Format, inclusionFormat)
	}
	if err := checkPath(f.Path); err != nil {
		return Inclusion{}, err
	}
	return Inclusion{f.Position, []byte(f.Record), f.Path, []byte(f.Checkpoint)}, nil
}

// ParseConsistency reads a proof file without checking the proof.
func ParseConsistency(file []byte) (Consistency, error) {
	var f consistencyFile
	if err := decodeFile(file, &f); err != nil {
		return Consistency{}, err
	}
	if f.Format != consistencyFormat {
		return Consistency{}, violation(Damaged, "format is %q, a consistency proof has %q", f.Format, consistencyFormat)
	}
	if err := checkPath(f.Path); err != nil {
		return Consistency{}, err
	}
	return Consistency{[]byte(f.Older), []byte(f.Newer), f.Path}, nil
}

func decodeFile(file []byte, into any) error {
	if len(file) > maxProof {
		return violation(Damaged, "proof file of %d bytes", len(file))
	}
	d := json.NewDecoder(bytes.NewReader(file))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return violation(Damaged, "this is not a proof file: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return violation(Damaged, "more after the end of the proof")
	}
	return nil
}

func checkPath(path [][]byte) error {
	if len(path) > maxPath {
		return violation(Damaged, "path of %d hashes", len(path))
	}
	for _, h := range path {
		if len(h) != len(Hash{}) {
			return violation(Damaged, "a hash of %d bytes in the path", len(h))
		}
	}
	return nil
}

// VerifyInclusion checks an inclusion proof: that the checkpoint is signed, that the record is canonical and that it stands at
// its position in the tree of the checkpoint. Options.Older is not looked at: it takes a consistency proof.
func VerifyInclusion(p Inclusion, o Options) (Record, Checkpoint, error) {
	key, err := ParseKey(o.Key)
	if err != nil {
		return Record{}, Checkpoint{}, err
	}
	c, err := ParseCheckpoint(p.Checkpoint, key)
	if err != nil {
		return Record{}, Checkpoint{}, err
	}
	if err := checkPath(p.Path); err != nil {
		return Record{}, c, err
	}
	if p.Position >= c.Size {
		return Record{}, c, violationAt(NotIncluded, p.Position, "the checkpoint has only %d records", c.Size)
	}
	leaf := HashLeaf(p.Record)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Position, c.Size, leaf[:], p.Path, c.Root[:]); err != nil {
		return Record{}, c, violationAt(NotIncluded, p.Position, "the path does not lead from this record to the signed root: record, position or path was changed")
	}
	r, err := ParseRecord(p.Record)
	if err != nil {
		return r, c, violationAt(Malformed, p.Position, "%v", err)
	}
	return r, c, nil
}

// VerifyConsistency checks that both checkpoints are signed and that the newer continues the older.
func VerifyConsistency(p Consistency, o Options) (older, newer Checkpoint, err error) {
	key, err := ParseKey(o.Key)
	if err != nil {
		return older, newer, err
	}
	if older, err = ParseCheckpoint(p.Older, key); err != nil {
		return older, newer, err
	}
	if newer, err = ParseCheckpoint(p.Newer, key); err != nil {
		return older, newer, err
	}
	if err := checkPath(p.Path); err != nil {
		return older, newer, err
	}
	if err := compareHeads(older, newer); err != nil {
		return older, newer, err
	}
	if older.Size == newer.Size || older.Size == 0 {
		return older, newer, nil
	}
	err = proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, newer.Size, p.Path, older.Root[:], newer.Root[:])
	if err != nil {
		return older, newer, violation(Fork, "the path does not show that the checkpoint of %d records continues the one of %d: either the path is wrong or the log was rewritten in between", newer.Size, older.Size)
	}
	return older, newer, nil
}

// compareHeads says what two checkpoints tell by themselves.
func compareHeads(older, newer Checkpoint) error {
	if newer.Size < older.Size {
		return violationAt(Truncated, newer.Size, "the log has %d records, the older checkpoint %d", newer.Size, older.Size)
	}
	if newer.Size == older.Size && newer.Root != older.Root {
		return violation(Fork, "two signed checkpoints of %d records with different roots", newer.Size)
	}
	return nil
}
