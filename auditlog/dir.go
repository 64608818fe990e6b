package auditlog

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
)

// Paths of a log directory (c2sp.org/tlog-tiles).
const (
	checkpointPath = "checkpoint"
	maxBundle      = width * (2 + MaxRecord)
	maxTile        = width * len(Hash{})
)

// tilePath is where the tile or, for level "entries", the bundle n is; partial is its width, 0 when full.
func tilePath(level string, n uint64, partial int) string {
	path := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		path = fmt.Sprintf("x%03d/%s", n%1000, path)
	}
	path = "tile/" + level + "/" + path
	if partial > 0 {
		path += fmt.Sprintf(".p/%d", partial)
	}
	return path
}

// directory reads the files of a log directory and nothing outside of it.
type directory struct {
	root *os.Root
	size uint64 // records to read
}

// What can be wrong with a file's contents; other errors say that it cannot be read.
var (
	errTooLarge = errors.New("larger than such a file can be")
	errEnds     = errors.New("ends too early")
	errCut      = errors.New("an entry is cut off")
	errMore     = errors.New("has more than belongs there")
)

// read reads the tile or bundle n of which want nodes or entries are needed. Instead of a partial one the full one may be there;
// exact says that it is not.
func (d *directory) read(level string, n uint64, want, limit int) (data []byte, exact bool, err error) {
	if want < width {
		data, err := d.readFile(tilePath(level, n, want), limit)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, true, err
		}
	}
	data, err = d.readFile(tilePath(level, n, 0), limit)
	return data, want == width, err
}

func (d *directory) readFile(path string, limit int) ([]byte, error) {
	info, err := d.root.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case info.Size() > int64(limit):
		return nil, fmt.Errorf("%s: %w", path, errTooLarge)
	}
	f, err := d.root.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, info.Size())
	_, err = io.ReadFull(f, data)
	return data, err
}

// splitBundle gives up to want entries of a bundle. With an error it gives the entries before it; errMore comes with all.
func splitBundle(data []byte, want int, exact bool) ([][]byte, error) {
	entries := make([][]byte, 0, want)
	for len(data) > 0 && len(entries) < want {
		if len(data) < 2 {
			return entries, errCut
		}
		n := int(binary.BigEndian.Uint16(data))
		data = data[2:]
		if n > len(data) {
			return entries, errCut
		}
		entries, data = append(entries, data[:n:n]), data[n:]
	}
	switch {
	case len(entries) < want:
		return entries, errEnds
	case exact && len(data) > 0:
		return entries, errMore
	}
	return entries, nil
}

// splitTile gives want hashes of a tile.
func splitTile(data []byte, want int, exact bool) ([]Hash, error) {
	switch size := want * len(Hash{}); {
	case len(data) < size:
		return nil, errEnds
	case exact && len(data) > size:
		return nil, errMore
	}
	nodes := make([]Hash, want)
	for i := range nodes {
		nodes[i] = Hash(data[i*len(Hash{}):])
	}
	return nodes, nil
}

// expected is how many of the nodes of bundle or tile n exist when total do.
func expected(n, total uint64) int { return int(min(width, total-n*width)) }

func (d *directory) tile(level int, n, total uint64) ([]Hash, error) {
	want := expected(n, total)
	data, exact, err := d.read(fmt.Sprint(level), n, want, maxTile)
	if err != nil {
		return nil, err
	}
	return splitTile(data, want, exact)
}

// entries reads bundle n. fs.ErrNotExist says that there is none.
func (d *directory) entries(n uint64) ([][]byte, error) {
	want := expected(n, d.size)
	data, exact, err := d.read("entries", n, want, maxBundle)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = d.remains(n)
	}
	if err != nil {
		return nil, err
	}
	return splitBundle(data, want, exact)
}

// remains reads the largest partial bundle there is where a larger one should be.
func (d *directory) remains(n uint64) ([]byte, error) {
	files, err := fs.ReadDir(d.root.FS(), tilePath("entries", n, 0)+".p")
	if err != nil {
		return nil, fs.ErrNotExist
	}
	largest := 0
	for _, f := range files {
		if w, err := strconv.Atoi(f.Name()); err == nil && w < width {
			largest = max(largest, w)
		}
	}
	if largest == 0 {
		return nil, fs.ErrNotExist
	}
	return d.readFile(tilePath("entries", n, largest), maxBundle)
}

func (d *directory) bundles() uint64 { return (d.size + width - 1) / width }

// block reads and examines bundle n and compares it with its leaf tile.
func (d *directory) block(n uint64) block {
	b := block{first: n * width}
	entries, err := d.entries(n)
	switch {
	case errors.Is(err, errMore):
		b.damage = fmt.Errorf("entry bundle %d: %w", n, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errEnds), errors.Is(err, errCut), errors.Is(err, errTooLarge):
		b.short = err
	case err != nil:
		b.err = fmt.Errorf("reading entry bundle %d: %w", n, err)
		return b
	}
	b.examine(entries)
	nodes, err := d.tile(0, n, d.size)
	if err != nil {
		b.damage = fmt.Errorf("tile 0/%d: %w", n, err)
		return b
	}
	for i, leaf := range b.leaves {
		if leaf != nodes[i] {
			at := b.first + uint64(i)
			b.suspect = &at
			break
		}
	}
	return b
}

// VerifyDir checks a log directory: the checkpoint in it, all entries, all tiles. It takes a live log or a copy; what was added
// after the checkpoint is not looked at.
func VerifyDir(ctx context.Context, dir string, o Options) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, fmt.Errorf("opening the log directory: %w", err)
	}
	defer func() { _ = root.Close() }() // nothing was written
	d := &directory{root: root}
	signed, err := d.readFile(checkpointPath, maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, violation(Damaged, "no checkpoint in %s: is it a log directory?", dir)
	} else if errors.Is(err, errTooLarge) {
		return Report{}, violation(Damaged, "%v", err)
	} else if err != nil {
		return Report{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	checkpoint, older, err := heads(signed, o)
	if err != nil {
		return Report{}, err
	}
	d.size = checkpoint.Size
	p := &pass{o: o, checkpoint: checkpoint, older: older, end: checkpoint.Size}
	upper := &upperTiles{dir: d}
	var short *block
	var failed error
	n := uint64(0)
	err = inOrder(ctx, func() func() block {
		if n == d.bundles() {
			return nil
		}
		bundle := n
		n++
		return func() block { return d.block(bundle) }
	}, func(b block) bool {
		if b.err != nil {
			failed = b.err
			return false
		}
		p.add(b)
		if b.short != nil {
			short = &b
			return false
		}
		if len(b.leaves) == width {
			upper.add(1, rootOf(b.leaves))
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return Report{}, err
	}
	p.finish()
	if short != nil {
		return p.report(), d.incomplete(p, short)
	}
	upper.finish()
	return p.report(), d.judge(p, upper)
}

// judge says what the whole pass means, the worst first.
func (d *directory) judge(p *pass, upper *upperTiles) error {
	if p.tree.root() != p.checkpoint.Root {
		switch {
		case p.suspect != nil:
			return d.diagnose(*p.suspect)
		case upper.suspect != nil:
			at := *upper.suspect
			return violationAt(Changed, at, "the %d records from here on do not give the hash that the tiles above have: one of them, and its hash in tile 0/%d, was changed", width, at/width)
		case p.malformed != nil:
			return p.malformed
		}
		return rewritten(p)
	}
	switch dup := p.duplicate(); {
	case p.older != nil && !p.olderHolds():
		return forked(p)
	case p.malformed != nil:
		return p.malformed
	case dup != nil:
		return dup
	case p.suspect != nil:
		return violationAt(Damaged, *p.suspect, "the records are what was signed, but their hash in tile 0/%d is wrong: copy the directory again", *p.suspect/width)
	case upper.suspect != nil:
		return violationAt(Damaged, *upper.suspect, "the records are what was signed, but their hash in a tile above is wrong: copy the directory again")
	case p.damage != nil || upper.damage != nil:
		return violation(Damaged, "the records are what was signed, but a file is not as it should be: %v", cmp.Or(p.damage, upper.damage))
	}
	return nil
}

// rewritten is the answer when nothing but the signature speaks against the records.
func rewritten(p *pass) *Violation {
	detail := "the records do not give the root that was signed, and nothing else shows which of them are not the ones that were logged"
	if p.older != nil && p.olderHolds() {
		v := violationAt(Rewritten, p.older.Size, "%s; the first %d, up to the older checkpoint, are", detail, p.older.Size)
		return v
	}
	return violation(Rewritten, "%s", detail)
}

func forked(p *pass) *Violation {
	return violation(Fork, "the older checkpoint of %d records and this one of %d are both signed, but the first %d records are not the ones of the older: the key has signed two histories",
		p.older.Size, p.checkpoint.Size, p.older.Size)
}

// incomplete says what it means that the entries end in block b.
func (d *directory) incomplete(p *pass, b *block) error {
	n, at := b.first/width, b.first+uint64(len(b.leaves))
	switch {
	case p.suspect != nil:
		return d.diagnose(*p.suspect)
	case errors.Is(b.short, errTooLarge), errors.Is(b.short, errCut):
		return violationAt(Changed, at, "entry bundle %d cannot be read from here on: %v", n, b.short)
	case d.next(n):
		return violationAt(Removed, at, "entry bundle %d ends here or is not there, later ones are", n)
	}
	return violationAt(Truncated, at, "the checkpoint has %d records, the directory only %d", d.size, at)
}

// next says whether any bundle after n can be read.
func (d *directory) next(n uint64) bool {
	for n++; n < d.bundles(); n++ {
		if _, err := d.entries(n); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// diagnose says what happened at the first position where entry and leaf tile differ.
func (d *directory) diagnose(at uint64) error {
	want, err := d.leafInTiles(at)
	if err != nil {
		return violationAt(Damaged, at, "%v", err)
	}
	got, err := d.leafOfEntry(at)
	if err != nil {
		return violationAt(Damaged, at, "%v", err)
	}
	loggedAt, known := d.searchTiles(got)
	standsAt, found := d.searchEntries(want, at)
	switch {
	case known && found:
		return violationAt(Reordered, at, "the record logged at %d stands here, the one logged here stands at %d", loggedAt, standsAt)
	case found:
		return violationAt(Changed, at, "a record that was never logged was put in before the one logged here, which stands at %d", standsAt)
	case known:
		if still, err := d.leafOfEntry(loggedAt); err == nil && still == got {
			return violationAt(Changed, at, "a copy of the record at %d stands here", loggedAt)
		}
		return violationAt(Removed, at, "the record logged here is gone, the one logged at %d stands in its place", loggedAt)
	}
	return violationAt(Changed, at, "its hash is %x, logged was one with hash %x", got[:8], want[:8])
}

func (d *directory) leafInTiles(at uint64) (Hash, error) {
	nodes, err := d.tile(0, at/width, d.size)
	if err != nil {
		return Hash{}, err
	}
	return nodes[at%width], nil
}

func (d *directory) leafOfEntry(at uint64) (Hash, error) {
	entries, err := d.entries(at / width)
	if i := int(at % width); i < len(entries) {
		return HashLeaf(entries[i]), nil
	}
	return Hash{}, err
}

func (d *directory) searchTiles(leaf Hash) (uint64, bool) {
	for n := range d.bundles() {
		nodes, _ := d.tile(0, n, d.size)
		if i := slices.Index(nodes, leaf); i >= 0 {
			return n*width + uint64(i), true
		}
	}
	return 0, false
}

func (d *directory) searchEntries(leaf Hash, after uint64) (uint64, bool) {
	for n := after / width; n < d.bundles(); n++ {
		entries, _ := d.entries(n)
		for i, e := range entries {
			if at := n*width + uint64(i); at > after && HashLeaf(e) == leaf {
				return at, true
			}
		}
	}
	return 0, false
}

// upperTiles compares the tiles above the leaves with what the leaves give.
type upperTiles struct {
	dir     *directory
	pending [][]Hash // by level
	done    []uint64 // tiles finished, by level
	suspect *uint64  // first position under the first node that differs
	damage  error    // of the first tile that cannot be read
}

func (u *upperTiles) add(level int, node Hash) {
	for len(u.pending) <= level {
		u.pending = append(u.pending, nil)
		u.done = append(u.done, 0)
	}
	u.pending[level] = append(u.pending[level], node)
	if len(u.pending[level]) == width {
		parent := rootOf(u.pending[level])
		u.compare(level)
		u.add(level+1, parent)
	}
}

// finish compares the tiles that are not full.
func (u *upperTiles) finish() {
	for level := range u.pending {
		if len(u.pending[level]) > 0 {
			u.compare(level)
		}
	}
}

func (u *upperTiles) compare(level int) {
	n, nodes := u.done[level], u.pending[level]
	u.done[level]++
	u.pending[level] = nil
	stored, err := u.dir.tile(level, n, n*width+uint64(len(nodes)))
	if err != nil {
		if u.damage == nil {
			u.damage = fmt.Errorf("tile %d/%d: %w", level, n, err)
		}
		return
	}
	for i := range nodes {
		if at := (n*width + uint64(i)) << (8 * level); nodes[i] != stored[i] && (u.suspect == nil || at < *u.suspect) {
			u.suspect = &at
			return
		}
	}
}
