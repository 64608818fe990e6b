package auditlog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"
)

// width is how many records an entry bundle and how many hashes a tile holds (c2sp.org/tlog-tiles).
const width = 256

// block is what was learnt from up to width consecutive records that share one entry bundle.
type block struct {
	first  uint64
	leaves []Hash
	ids    []Hash // SHA-256 of the event ids; of malformed records nothing
	idsAt  []uint64
	// earliest and latest time in the records.
	earliest, latest time.Time
	malformed        *Violation // the first record that is none
	suspect          *uint64    // the first position at which entry and tile differ
	damage           error      // a file that is not as it should be, though the records may be
	// short says that the block ends before it should, and why.
	short error
	err   error // the check could not be done
}

// examine hashes and parses the records of one block.
func (b *block) examine(records [][]byte) {
	b.leaves = make([]Hash, len(records))
	b.ids = make([]Hash, 0, len(records))
	b.idsAt = make([]uint64, 0, len(records))
	for i, data := range records {
		at := b.first + uint64(i)
		b.leaves[i] = HashLeaf(data)
		r, err := scanRecord(data)
		if err != nil {
			if b.malformed == nil {
				b.malformed = violationAt(Malformed, at, "%v", err)
			}
			continue
		}
		b.ids = append(b.ids, sha256.Sum256(r.text[textID]))
		b.idsAt = append(b.idsAt, at)
		if b.earliest.IsZero() || r.time.Before(b.earliest) {
			b.earliest = r.time
		}
		if r.time.After(b.latest) {
			b.latest = r.time
		}
	}
}

// inOrder runs jobs on all processors and gives their results to take in the order of the jobs, until take says stop, a job
// has none or ctx ends. next is called from one goroutine and returns nil after the last job.
func inOrder(ctx context.Context, next func() func() block, take func(block) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers := runtime.GOMAXPROCS(0)
	type task struct {
		run  func() block
		done chan block
	}
	tasks, order := make(chan task), make(chan task, 4*workers)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(tasks)
		defer close(order)
		for run := next(); run != nil; run = next() {
			t := task{run, make(chan block, 1)}
			select {
			case order <- t:
			case <-ctx.Done():
				return
			}
			select {
			case tasks <- t:
			case <-ctx.Done():
				return
			}
		}
	})
	for range workers {
		wg.Go(func() {
			for t := range tasks {
				t.done <- t.run()
			}
		})
	}
	for t := range order {
		select {
		case b := <-t.done:
			if !take(b) {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// pass gathers what the blocks of one log say, in order.
type pass struct {
	o          Options
	checkpoint Checkpoint
	older      *Checkpoint
	tree       tree
	before     tree // the tree without the last record wanted
	last       Hash // the leaf of that record
	start      uint64
	end        uint64 // one past the last record wanted
	olderRoot  *Hash  // root of the first older.Size records, when they were seen

	ids              []identified
	earliest, latest time.Time
	malformed        *Violation
	suspect          *uint64
	damage           error
}

// identified is an event id and where it was; 24 bytes a record are what uniqueness costs.
type identified struct {
	id [2]uint64 // half of the id's SHA-256: equal ids always meet, and no others will
	at uint64
}

// add takes the next block into account.
func (p *pass) add(b block) {
	for i, leaf := range b.leaves {
		if p.tree.size == p.end-1 {
			p.before, p.last = p.tree.clone(), leaf
		}
		if p.olderEndsHere() {
			root := p.tree.root()
			p.olderRoot = &root
		}
		if i == 0 && len(b.leaves) == width && !p.needsEach(b.first) {
			p.tree.add(rootOf(b.leaves), 8)
			break
		}
		p.tree.add(leaf, 0)
	}
	for i, id := range b.ids {
		p.ids = append(p.ids, identified{[2]uint64{binary.BigEndian.Uint64(id[:]), binary.BigEndian.Uint64(id[8:])}, b.idsAt[i]})
	}
	if p.earliest.IsZero() || !b.earliest.IsZero() && b.earliest.Before(p.earliest) {
		p.earliest = b.earliest
	}
	if b.latest.After(p.latest) {
		p.latest = b.latest
	}
	if p.malformed == nil {
		p.malformed = b.malformed
	}
	if p.suspect == nil {
		p.suspect = b.suspect
	}
	if p.damage == nil {
		p.damage = b.damage
	}
	if p.o.Progress != nil {
		p.o.Progress(p.tree.size-p.start, p.end-p.start)
	}
}

// needsEach says that a full block cannot be added as one subtree, because a root inside it is wanted.
func (p *pass) needsEach(first uint64) bool {
	inside := func(n uint64) bool { return n > first && n < first+width }
	return p.older != nil && inside(p.older.Size) || inside(p.end-1)
}

func (p *pass) olderEndsHere() bool {
	return p.older != nil && p.olderRoot == nil && p.tree.size == p.older.Size
}

// finish is called when all records were added.
func (p *pass) finish() {
	if p.olderEndsHere() {
		root := p.tree.root()
		p.olderRoot = &root
	}
}

// rootOf is the root over a power of two of nodes.
func rootOf(nodes []Hash) Hash {
	var t tree
	for _, n := range nodes {
		t.add(n, 0)
	}
	return t.root()
}

// duplicate finds the first record whose event has one already.
func (p *pass) duplicate() *Violation {
	slices.SortFunc(p.ids, func(a, b identified) int {
		if a.id[0] != b.id[0] {
			return cmp.Compare(a.id[0], b.id[0])
		}
		return cmp.Or(cmp.Compare(a.id[1], b.id[1]), cmp.Compare(a.at, b.at))
	})
	var first, again *identified
	for i := 1; i < len(p.ids); i++ {
		if p.ids[i].id == p.ids[i-1].id && (again == nil || p.ids[i].at < again.at) {
			first, again = &p.ids[i-1], &p.ids[i]
		}
	}
	if again == nil {
		return nil
	}
	return violationAt(Duplicate, again.at, "its event was logged at position %d already", first.at)
}

// olderHolds compares with the older checkpoint as far as its records were seen.
func (p *pass) olderHolds() bool { return p.olderRoot != nil && *p.olderRoot == p.older.Root }

func (p *pass) report() Report {
	return Report{
		Checkpoint: p.checkpoint, Older: p.older, Start: p.start, Records: p.tree.size - p.start,
		Earliest: p.earliest, Latest: p.latest,
	}
}

// heads reads the key and the checkpoints and compares them with each other.
func heads(signed []byte, o Options) (checkpoint Checkpoint, older *Checkpoint, err error) {
	key, err := ParseKey(o.Key)
	if err != nil {
		return checkpoint, nil, err
	}
	if checkpoint, err = ParseCheckpoint(signed, key); err != nil {
		return checkpoint, nil, err
	}
	if o.Older == nil {
		return checkpoint, nil, nil
	}
	c, err := ParseCheckpoint(o.Older, key)
	if err != nil {
		var v *Violation
		if errors.As(err, &v) {
			v.Detail = "the older checkpoint: " + v.Detail
		}
		return checkpoint, nil, err
	}
	return checkpoint, &c, compareHeads(c, checkpoint)
}
