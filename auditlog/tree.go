package auditlog

import (
	"crypto/sha256"
	"slices"
)

// HashLeaf is the hash of a record as a leaf (RFC 6962 section 2.1).
func HashLeaf(record []byte) Hash {
	var b [2048]byte // a record rarely has more; on the stack it costs nothing
	return sha256.Sum256(append(b[:1], record...))
}

// HashNode is the hash of a node over its two children.
func HashNode(left, right Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// tree is the right edge of a growing Merkle tree: the roots of its perfect subtrees, largest first.
type tree struct {
	size  uint64
	edges []Hash
}

// add appends a perfect subtree of 2^level leaves; size must be a multiple of that.
func (t *tree) add(root Hash, level uint) {
	for n := t.size >> level; n&1 == 1; n >>= 1 {
		last := len(t.edges) - 1
		root = HashNode(t.edges[last], root)
		t.edges = t.edges[:last]
	}
	t.edges = append(t.edges, root)
	t.size += 1 << level
}

func (t *tree) clone() tree { return tree{t.size, slices.Clone(t.edges)} }

func (t *tree) root() Hash {
	if len(t.edges) == 0 {
		return sha256.Sum256(nil)
	}
	root := t.edges[len(t.edges)-1]
	for i := len(t.edges) - 2; i >= 0; i-- {
		root = HashNode(t.edges[i], root)
	}
	return root
}
