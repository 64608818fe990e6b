// Package tiles writes a log of c2sp.org/tlog-tiles into a directory of a local file system, with the files that the POSIX driver of
// Tessera v1 keeps there, so that either can go on with what the other has left.
//
// What the log is, says .state/treeState alone: its size and root. Append writes bundles and tiles of the records behind that size,
// side by side, and only when all of them are on disk under their names it puts the new state in the place of the old, durably too.
// So a process or machine that dies at any moment, or a disk that fails, leaves the old state or the new one, whole, and an
// append that has ended without an error is on disk for ever. Files behind the state mean nothing: an append that came to nothing
// has left them, and the next one writes them anew. What the state covers is never written again; partial bundles and tiles are erased
// when a published checkpoint covers the full ones (Collect).
//
// It neither locks the directory nor signs anything: that is its caller's.
package tiles

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/sync/errgroup"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/crash"
)

const (
	// StatePath is where the state is.
	StatePath = stateDir + "/treeState"

	stateDir    = ".state"
	versionPath = stateDir + "/version"
	erasedPath  = stateDir + "/gcState"
	version     = "1" // of how Tessera keeps a log
	// sideBySide is how many files are synced at once: the journal of the file system takes what waits for it together.
	sideBySide = 16
)

// EmptyRoot is the root of a log without records.
var EmptyRoot = sha256.Sum256(nil)

// State is how far a log goes.
type State struct {
	Size uint64
	Root auditlog.Hash
}

type treeState struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

func (s State) encode() []byte {
	data, err := json.Marshal(treeState{s.Size, s.Root[:]})
	if err != nil {
		panic(err) // it has nothing that JSON has not
	}
	return data
}

// ParseState reads a state file.
func ParseState(data []byte) (State, error) {
	var s treeState
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, err
	}
	if len(s.Root) != hashSize {
		return State{}, fmt.Errorf("a root of %d bytes", len(s.Root))
	}
	return State{s.Size, auditlog.Hash(s.Root)}, nil
}

// ReadState gives the state of the log in dir. fs.ErrNotExist says that there is none.
func ReadState(dir string) (State, error) {
	data, err := small(filepath.Join(dir, StatePath))
	if err != nil {
		return State{}, err
	}
	s, err := ParseState(data)
	if err != nil {
		return State{}, fmt.Errorf("%s: %w", filepath.Join(dir, StatePath), err)
	}
	return s, nil
}

const maxSmall = 4 << 10 // bytes; what tells of the state has a hundred

func small(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(data) > maxSmall {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSmall)
	}
	return data, err
}

// Exists says whether anything of a log is in dir.
func Exists(dir string) bool {
	for _, part := range []string{layout.CheckpointPath, "tile", StatePath} {
		if _, err := os.Lstat(filepath.Join(dir, part)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

var (
	// ErrForeign says that somebody else has written the state.
	ErrForeign = errors.New("the state of the log is not the one written last: does another program write to it?")
	// ErrTooLarge says that a record cannot be in a log. Nothing of the append was written then, and the next one may follow.
	ErrTooLarge = fmt.Errorf("a record of more than %d bytes", auditlog.MaxRecord)
)

// Writer appends to one log. It is not for concurrent use.
type Writer struct {
	dir    string
	disk   disk
	edge   edge
	state  State
	linked map[string]bool // directories of the last append, which are known to be on disk under their names
	failed error
}

// Create begins a log in dir, whose parent is there. There must be none.
func Create(dir string) error { return create(dir, realDisk{}) }

func create(dir string, d disk) error {
	w := &Writer{dir: dir, disk: d}
	if err := d.mkdir(w.at(stateDir)); err != nil {
		return err
	}
	for _, parent := range []string{filepath.Dir(dir), dir} {
		if err := d.sync(parent); err != nil {
			return err
		}
	}
	return w.replace(StatePath, State{Root: EmptyRoot}.encode())
}

// Open goes on with the log in dir. The right edge of its tree must be what its state says.
func Open(dir string) (*Writer, error) { return open(dir, realDisk{}) }

func open(dir string, d disk) (*Writer, error) {
	w := &Writer{dir: dir, disk: d}
	found, err := small(w.at(versionPath))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = w.replace(versionPath, []byte(version))
	case err == nil && string(found) != version:
		err = fmt.Errorf("%s says %q: a log of another version than %s", w.at(versionPath), found, version)
	}
	if err != nil {
		return nil, err
	}
	state, err := ReadState(dir)
	if err != nil {
		return nil, err
	}
	if w.edge, err = loadTiles(dir, state.Size); err != nil {
		return nil, err
	}
	if w.edge.root() != state.Root {
		return nil, errors.New("the tiles do not give the root of the state")
	}
	if err := w.edge.loadBundle(dir); err != nil {
		return nil, err
	}
	// Whoever wrote it may have died, or been told of an error, before it was known to be on disk.
	w.state = state
	return w, w.replace(StatePath, state.encode())
}

func (w *Writer) at(path string) string { return filepath.Join(w.dir, path) }

// State is what was written last.
func (w *Writer) State() State { return w.state }

// Append adds records, which get the next positions. After an error they may be in the log or not, and every later call gives it again:
// Open finds out.
func (w *Writer) Append(records [][]byte) error {
	if w.failed != nil || len(records) == 0 {
		return w.failed
	}
	next, files, err := w.edge.grow(records)
	if err != nil {
		return err
	}
	state := State{next.size, next.root()}
	if w.failed = w.commit(files, state); w.failed == nil {
		w.edge, w.state = next, state
	}
	return w.failed
}

// commit makes files durable, and then the state that covers them.
func (w *Writer) commit(files []file, state State) error {
	if found, err := ReadState(w.dir); err != nil {
		return err
	} else if found != w.state {
		return ErrForeign
	}
	dirs, err := w.link(files)
	if err != nil {
		return err
	}
	staged := StatePath + ".new"
	if err := w.write(append(files, file{staged, state.encode()})...); err != nil {
		return err
	}
	if err := together(dirs, w.disk.sync); err != nil {
		return err
	}
	crash.At(crash.TilesWritten)
	if err := w.disk.rename(w.at(staged), w.at(StatePath)); err != nil {
		return err
	}
	return w.disk.sync(w.at(stateDir))
}

// link makes the directories of files. It gives those that have to be synced for the files to keep their names: theirs, and the
// parents of directories of which that is not known.
func (w *Writer) link(files []file) (dirs []string, err error) {
	linked, sync := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		dir := filepath.Dir(f.path)
		if sync[dir] = true; linked[dir] {
			continue
		}
		if !w.linked[dir] {
			if err := w.disk.mkdir(w.at(dir)); err != nil {
				return nil, err
			}
		}
		for ; dir != "."; dir = filepath.Dir(dir) {
			if linked[dir] = true; !w.linked[dir] {
				sync[filepath.Dir(dir)] = true
			}
		}
	}
	w.linked = linked
	for dir := range sync {
		dirs = append(dirs, w.at(dir))
	}
	return dirs, nil
}

// write writes new files. They are made one after the other, because their directories let no two in at once, and then synced together.
func (w *Writer) write(files ...file) error {
	var outs []writable
	var err error
	for _, f := range files {
		var out writable
		if out, err = w.create(f.path); err != nil {
			break
		}
		outs = append(outs, out)
		if _, err = out.Write(f.data); err != nil {
			break
		}
	}
	if err == nil {
		err = together(outs, writable.Sync)
	}
	for _, out := range outs {
		err = errors.Join(err, out.Close())
	}
	return err
}

func (w *Writer) create(path string) (writable, error) {
	out, err := w.disk.create(w.at(path))
	if errors.Is(err, fs.ErrExist) { // left behind the state
		if err = w.disk.remove(w.at(path)); err == nil {
			out, err = w.disk.create(w.at(path))
		}
	}
	return out, err
}

// replace puts a file in the place of another, durably.
func (w *Writer) replace(path string, data []byte) error {
	staged := path + ".new"
	if err := w.write(file{staged, data}); err != nil {
		return err
	}
	if err := w.disk.rename(w.at(staged), w.at(path)); err != nil {
		return err
	}
	return w.disk.sync(filepath.Dir(w.at(path)))
}

func together[T any](all []T, do func(T) error) error {
	var g errgroup.Group
	g.SetLimit(sideBySide)
	for _, one := range all {
		g.Go(func() error { return do(one) })
	}
	return g.Wait()
}

type erased struct {
	FromSize uint64 `json:"fromSize"`
}

// Collect erases the partial bundles and tiles of which the first published records, which a checkpoint covers, have full ones.
func Collect(ctx context.Context, dir string, published uint64) error {
	w := &Writer{dir: dir, disk: realDisk{}}
	var done erased // up to which records that was done before
	data, err := small(w.at(erasedPath))
	if err == nil {
		err = json.Unmarshal(data, &done)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading up to where partial tiles are erased: %w", err)
	}
	from := done.FromSize / width
	for n := from; n < published/width && ctx.Err() == nil; n++ {
		partial := []string{layout.EntriesPath(n, 0), layout.TilePath(0, n, 0)}
		for level, index := uint64(1), n; index%width == width-1; level++ { // the last under a tile of the next level
			index /= width
			partial = append(partial, layout.TilePath(level, index, 0))
		}
		for _, path := range partial {
			if err := os.RemoveAll(w.at(path + ".p")); err != nil {
				return err
			}
		}
		done.FromSize = (n + 1) * width
	}
	if done.FromSize/width == from {
		return nil
	}
	if data, err = json.Marshal(done); err != nil {
		return err
	}
	return w.replace(erasedPath, data)
}
