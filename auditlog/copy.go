package auditlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// The files beside the tiles with which a writer goes on.
const (
	statePath   = ".state/treeState"
	versionPath = ".state/version"
)

// Copied says what CopyDir has copied.
type Copied struct {
	// Size is the number of records, and Root the root hash over them.
	Size uint64
	Root Hash
	// Signed is the size of the checkpoint, which may be behind.
	Signed uint64
}

// CopyDir reads a log directory that is being written to and gives put the files of one state of it: the newest checkpoint, the
// state from which its writer goes on, and exactly the bundles and tiles that belong to the two. Progress may be nil.
func CopyDir(ctx context.Context, dir string, put func(path string, data []byte) error, progress func(done, total uint64)) (Copied, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Copied{}, fmt.Errorf("opening the log directory: %w", err)
	}
	defer func() { _ = root.Close() }() // nothing was written
	d := &directory{root: root}
	// In this order: a checkpoint covers no more than the state read after it, and the tiles of a state are there before it is.
	signed, err := d.readFile(checkpointPath, maxCheckpoint)
	if err != nil {
		return Copied{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	raw, err := d.readFile(statePath, maxCheckpoint)
	if err != nil {
		return Copied{}, fmt.Errorf("reading the state of the log: %w", err)
	}
	version, err := d.readFile(versionPath, maxCheckpoint)
	if err != nil {
		return Copied{}, fmt.Errorf("reading the version of the log: %w", err)
	}
	copied, err := heading(signed, raw)
	if err != nil {
		return copied, err
	}
	d.size = copied.Size
	for path, data := range map[string][]byte{checkpointPath: signed, statePath: raw, versionPath: version} {
		if err := put(path, data); err != nil {
			return copied, err
		}
	}
	return copied, d.copyTiles(ctx, copied, put, progress)
}

// heading reads how far checkpoint and state go. Signatures are not its business.
func heading(signed, raw []byte) (Copied, error) {
	var state struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	if err := json.Unmarshal(raw, &state); err != nil || len(state.Root) != len(Hash{}) {
		return Copied{}, violation(Damaged, "the state of the log cannot be read")
	}
	head, err := parseTreeHead(string(signed))
	if err != nil {
		return Copied{}, violation(Damaged, "not a checkpoint: %v", err)
	}
	if head.Size > state.Size {
		return Copied{}, violation(Damaged, "the checkpoint has %d records, the state of the log only %d", head.Size, state.Size)
	}
	return Copied{Size: state.Size, Root: Hash(state.Root), Signed: head.Size}, nil
}

func (d *directory) copyTiles(ctx context.Context, c Copied, put func(string, []byte) error, progress func(done, total uint64)) error {
	for n := range d.bundles() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.copyBundle(n, c, put); err != nil {
			return err
		}
		if err := d.copyTile("0", n, c.Size, c.Signed, put); err != nil {
			return err
		}
		if progress != nil {
			progress(min((n+1)*width, c.Size), c.Size)
		}
	}
	for level, size, signed := 1, c.Size/width, c.Signed/width; size > 0; level, size, signed = level+1, size/width, signed/width {
		for n := range (size + width - 1) / width {
			if err := d.copyTile(fmt.Sprint(level), n, size, signed, put); err != nil {
				return err
			}
		}
	}
	return nil
}

// widths of tile or bundle n that are needed: one when size and signed have the same there, and none of width 0.
func widths(n, size, signed uint64) []int {
	all := []int{expected(n, size)}
	if n*width < signed {
		all = append(all, expected(n, signed))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (d *directory) copyBundle(n uint64, c Copied, put func(string, []byte) error) error {
	for _, want := range widths(n, c.Size, c.Signed) {
		data, err := d.atLeast("entries", n, want, maxBundle)
		if err != nil {
			return fmt.Errorf("reading entry bundle %d: %w", n, err)
		}
		entries, err := splitBundle(data, want, false)
		if err != nil {
			return violation(Damaged, "entry bundle %d: %v", n, err)
		}
		length := 0
		for _, e := range entries {
			length += 2 + len(e)
		}
		if err := put(tilePath("entries", n, want%width), data[:length]); err != nil {
			return err
		}
	}
	return nil
}

func (d *directory) copyTile(level string, n, size, signed uint64, put func(string, []byte) error) error {
	for _, want := range widths(n, size, signed) {
		data, err := d.atLeast(level, n, want, maxTile)
		if err == nil && len(data) < want*len(Hash{}) {
			err = errEnds
		}
		if err != nil {
			return fmt.Errorf("reading tile %s/%d: %w", level, n, err)
		}
		if err := put(tilePath(level, n, want%width), data[:want*len(Hash{})]); err != nil {
			return err
		}
	}
	return nil
}

// atLeast reads a tile or bundle of at least that width: a partial one is erased once the full one is there.
func (d *directory) atLeast(level string, n uint64, want, limit int) ([]byte, error) {
	data, _, err := d.read(level, n, want, limit)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	for wider := want + 1; wider < width; wider++ {
		if data, err := d.readFile(tilePath(level, n, wider), limit); !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, err
}
