package tiles

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"

	"github.com/sallyport-pki/sallyport/auditlog"
)

const (
	width    = layout.EntryBundleWidth // of bundles and tiles
	hashSize = len(auditlog.Hash{})
)

// edge is the right edge of the tree: all that has to be known to go on with it.
type edge struct {
	size   uint64
	bundle []byte   // the last one, as far as it goes; empty when there is a full one
	levels [][]byte // of each level the hashes of the last tile, likewise
}

// file is one that has to be there before the state may name it.
type file struct {
	path string
	data []byte
}

// grow gives the edge behind more records, and the files that belong to it. It leaves e as it is.
func (e edge) grow(records [][]byte) (edge, []file, error) {
	e.levels = slices.Clone(e.levels)
	var files []file
	top := 0 // the highest level that has grown
	for len(records) > 0 {
		some := records[:min(len(records), int(width-e.size%width))]
		records = records[len(some):]
		if err := e.enter(some); err != nil {
			return e, nil, err
		}
		if e.size%width > 0 {
			break // these were the last
		}
		files = append(files, file{layout.EntriesPath(e.size/width-1, 0), e.bundle})
		e.bundle = nil
		for level := 0; len(e.levels[level]) == width*hashSize; level++ {
			full := e.levels[level]
			files = append(files, file{layout.TilePath(uint64(level), e.size>>(8*(level+1))-1, 0), full})
			if e.levels[level] = nil; level+1 == len(e.levels) {
				e.levels = append(e.levels, nil)
			}
			e.levels[level+1] = append(e.levels[level+1], perfect(full)...)
			top = max(top, level+1)
		}
	}
	if len(e.bundle) > 0 {
		files = append(files, file{layout.EntriesPath(e.size/width, uint8(e.size%width)), e.bundle})
	}
	for level, nodes := range e.levels[:top+1] {
		if n := len(nodes) / hashSize; n > 0 {
			files = append(files, file{layout.TilePath(uint64(level), e.size>>(8*(level+1)), uint8(n)), nodes})
		}
	}
	return e, files, nil
}

// enter adds records to the last bundle and its tile, which have room for them.
func (e *edge) enter(records [][]byte) error {
	if len(e.levels) == 0 {
		e.levels = [][]byte{nil}
	}
	length := 0
	for _, r := range records {
		if len(r) > auditlog.MaxRecord {
			return ErrTooLarge
		}
		length += 2 + len(r)
	}
	bundle, leaves := slices.Grow(e.bundle, length), slices.Grow(e.levels[0], len(records)*hashSize)
	for _, r := range records {
		bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(r))), r...)
		// A leaf's hash is over a zero and the record: the length's last byte lends its place, which spares a copy.
		prefixed := bundle[len(bundle)-len(r)-1:]
		prefixed[0] = 0
		leaf := sha256.Sum256(prefixed)
		prefixed[0] = byte(len(r))
		leaves = append(leaves, leaf[:]...)
	}
	e.bundle, e.levels[0] = bundle, leaves
	e.size += uint64(len(records))
	return nil
}

// root is the hash over all records (RFC 6962 section 2.1): over the perfect subtrees on the edge, the smallest of which, at the
// right, are in the lowest tile.
func (e edge) root() auditlog.Hash {
	var root []byte
	for _, nodes := range e.levels {
		for n := len(nodes) / hashSize; n > 0; n = len(nodes) / hashSize {
			left := len(nodes) - (n&-n)*hashSize
			if subtree := perfect(nodes[left:]); root == nil {
				root = subtree
			} else {
				h := auditlog.HashNode(auditlog.Hash(subtree), auditlog.Hash(root))
				root = h[:]
			}
			nodes = nodes[:left]
		}
	}
	if root == nil {
		return EmptyRoot
	}
	return auditlog.Hash(root)
}

// perfect is the hash over a power of two of nodes.
func perfect(nodes []byte) []byte {
	nodes = slices.Clone(nodes)
	for len(nodes) > hashSize {
		half := nodes[:len(nodes)/2]
		for i := 0; i < len(half); i += hashSize {
			h := auditlog.HashNode(auditlog.Hash(nodes[2*i:]), auditlog.Hash(nodes[2*i+hashSize:]))
			copy(half[i:], h[:])
		}
		nodes = half
	}
	return nodes
}

var errShort = errors.New("ends too early")

// loadTiles reads the tiles of the edge of the first size records.
func loadTiles(dir string, size uint64) (edge, error) {
	e := edge{size: size}
	for level := uint64(0); size>>(8*level) > 0; level++ {
		count := size >> (8 * level)
		var nodes []byte
		if n := count % width; n > 0 {
			data, err := client.FileFetcher{Root: dir}.ReadTile(context.Background(), level, count/width, uint8(n))
			if err == nil && len(data) < int(n)*hashSize {
				err = fmt.Errorf("%s: %w", layout.TilePath(level, count/width, uint8(n)), errShort)
			}
			if err != nil {
				return e, err
			}
			nodes = data[: int(n)*hashSize : int(n)*hashSize]
		}
		e.levels = append(e.levels, nodes)
	}
	return e, nil
}

// loadBundle reads the last bundle, of which the tile above knows the hashes.
func (e *edge) loadBundle(dir string) error {
	n := e.size % width
	if n == 0 {
		return nil
	}
	path := layout.EntriesPath(e.size/width, uint8(n))
	data, err := client.FileFetcher{Root: dir}.ReadEntryBundle(context.Background(), e.size/width, uint8(n))
	if err != nil {
		return err
	}
	var entries api.EntryBundle
	if err := entries.UnmarshalText(data); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if uint64(len(entries.Entries)) < n {
		return fmt.Errorf("%s: %w", path, errShort)
	}
	for i, entry := range entries.Entries[:n] {
		if leaf := auditlog.HashLeaf(entry); string(leaf[:]) != string(e.levels[0][i*hashSize:(i+1)*hashSize]) {
			return fmt.Errorf("%s: entry %d is not the one that was logged", path, i)
		}
		e.bundle = append(binary.BigEndian.AppendUint16(e.bundle, uint16(len(entry))), entry...)
	}
	return nil
}

// Root gives the root hash over the first size records, by the tiles.
func Root(dir string, size uint64) (auditlog.Hash, error) {
	e, err := loadTiles(dir, size)
	return e.root(), err
}
