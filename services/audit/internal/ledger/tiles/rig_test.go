package tiles

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// rig is a disk on which a step can fail, and of which it is known what would be left if the power were cut. It works on real
// files, and syncs none.
type rig struct {
	mu    sync.Mutex
	steps int
	// fault is asked before each step: the error it gives is the step's. With done, the step is done all the same, a write by half.
	fault func(step int) (err error, done bool)
	// look is called after each step.
	look func(step int)

	now, kept map[string]*inode // by path: as it is, and as it is known to be on disk
}

// inode is a file, or a directory if data is nil.
type inode struct {
	data, kept []byte
}

func (r *rig) step(do func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		r.now, r.kept = map[string]*inode{}, map[string]*inode{}
	}
	r.steps++
	var err error
	done := true
	if r.fault != nil {
		err, done = r.fault(r.steps)
		done = done || err == nil
	}
	if done {
		err = errors.Join(err, do())
	}
	if r.look != nil {
		r.look(r.steps)
	}
	return err
}

func (r *rig) mkdir(path string) error {
	return r.step(func() error {
		for dir := path; r.now[dir] == nil && len(dir) > 1; dir = filepath.Dir(dir) {
			if _, err := os.Stat(dir); err == nil && r.kept[dir] == nil && len(r.now) == 0 {
				break // it was there before
			}
			r.now[dir] = &inode{}
		}
		return realDisk{}.mkdir(path)
	})
}

func (r *rig) create(path string) (w writable, err error) {
	err = r.step(func() error {
		f, err := realDisk{}.create(path)
		if err == nil {
			r.now[path] = &inode{data: []byte{}}
			w = &riggedFile{r, f, r.now[path]}
		}
		return err
	})
	if err != nil && w != nil {
		_ = w.(*riggedFile).file.Close()
		return nil, err
	}
	return w, err
}

func (r *rig) rename(from, to string) error {
	return r.step(func() error {
		err := realDisk{}.rename(from, to)
		if err == nil {
			r.now[to] = r.now[from]
			delete(r.now, from)
		}
		return err
	})
}

func (r *rig) remove(path string) error {
	return r.step(func() error {
		delete(r.now, path)
		return realDisk{}.remove(path)
	})
}

func (r *rig) sync(dir string) error {
	return r.step(func() error {
		for path := range r.kept {
			if filepath.Dir(path) == dir && r.now[path] == nil {
				delete(r.kept, path)
			}
		}
		for path, i := range r.now {
			if filepath.Dir(path) == dir {
				r.kept[path] = i
			}
		}
		return nil
	})
}

type riggedFile struct {
	rig  *rig
	file writable
	*inode
}

func (f *riggedFile) Write(data []byte) (n int, err error) {
	err = f.rig.step(func() error {
		n, err = f.file.Write(data)
		f.data = append(f.data, data...)
		return err
	})
	return n, err
}

func (f *riggedFile) Sync() error {
	return f.rig.step(func() error { f.inode.kept = append([]byte{}, f.data...); return nil })
}

func (f *riggedFile) Close() error { return f.rig.step(f.file.Close) }

// cut puts into dir what could be left of the log in from after a power cut: all that was synced, and of everything else any part.
func (r *rig) cut(t *testing.T, from, dir string, luck func() bool) {
	t.Helper()
	left := map[string]*inode{}
	for path, i := range r.kept {
		left[path] = i
	}
	for path, i := range r.now {
		if luck() {
			left[path] = i
		}
	}
	for path := range r.kept {
		if r.now[path] == nil && luck() {
			delete(left, path)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, i := range left {
		there := true // with all directories above
		for above := filepath.Dir(path); strings.HasPrefix(above, from); above = filepath.Dir(above) {
			there = there && left[above] != nil
		}
		if !there {
			continue
		}
		rel, _ := filepath.Rel(from, path)
		path = filepath.Join(dir, rel)
		data := i.data
		switch {
		case data == nil:
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		case i.kept != nil && !luck():
			data = i.kept
		case i.kept == nil && !luck(): // the name is there, the contents are not
			data = make([]byte, len(data)/2)
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// inMemory gives a directory, on a file system in memory where there is one: nothing here is synced, and there are thousands.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tiles")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// flights are of sizes that begin and end within and at the end of bundles.
var flights = []int{3, 300, 209, 600, 1}

// work makes a log with a few flights, or goes on with one, until the disk fails. It tells acked how many records were acknowledged.
func work(dir string, d disk, acked *int) error {
	if !Exists(dir) {
		if err := create(dir, d); err != nil {
			return err
		}
	}
	w, err := open(dir, d)
	if err != nil {
		return err
	}
	end := 0
	for _, n := range flights {
		end += n
		if at := int(w.State().Size); at < end {
			if err := w.Append(some(at, end-at)); err != nil {
				if w.Append(some(at, 1)) == nil {
					return fmt.Errorf("it goes on after %v", err) //nolint:errorlint // it is not that one
				}
				return err
			}
		}
		*acked = end
	}
	return nil
}

// resume opens what is left, looks that nothing is missing or half there, and goes on to the end.
func resume(t *testing.T, dir string, acked int, when string) {
	t.Helper()
	if !Exists(dir) && acked > 0 {
		t.Errorf("%s: there is no log, %d records were acknowledged", when, acked)
		return
	}
	if Exists(dir) {
		state, err := ReadState(dir)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		whole, end := state.Size == 0, uint64(0)
		for _, n := range flights {
			end += uint64(n)
			whole = whole || end == state.Size
		}
		if !whole || state.Size < uint64(acked) {
			t.Errorf("%s: %d records, %d were acknowledged", when, state.Size, acked)
		}
		need(t, dir, state.Size, when)
	}
	total := 0
	if err := work(dir, &rig{}, &total); err != nil {
		t.Errorf("%s: going on: %v", when, err)
		return
	}
	need(t, dir, uint64(total), when+", in the end")
}

// TestPowerCutAtEachStep cuts the power after every step, with five outcomes: nothing is left but what was synced, everything is (as after
// a kill), and any part.
func TestPowerCutAtEachStep(t *testing.T) {
	dir := filepath.Join(inMemory(t), "log")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	acked, cuts := 0, 0
	r := &rig{}
	r.look = func(step int) {
		for i, luck := range []func() bool{never, func() bool { return true }, coin(random), coin(random), coin(random)} {
			left := filepath.Join(filepath.Dir(dir), "left", "log")
			r.cut(t, dir, left, luck)
			resume(t, left, acked, fmt.Sprintf("cut after step %d, outcome %d", step, i))
			if err := os.RemoveAll(filepath.Dir(left)); err != nil {
				t.Error(err)
			}
			cuts++
		}
	}
	if err := work(dir, r, &acked); err != nil {
		t.Fatal(err)
	}
	if r.steps < 50 {
		t.Errorf("only %d steps", r.steps)
	}
	t.Logf("%d cuts at %d steps", cuts, r.steps)
}

func never() bool { return false }

func coin(r *rand.Rand) func() bool { return func() bool { return r.IntN(2) == 0 } }

// TestFailsAtEachStep lets one step fail, or succeed and say that it has failed, and another writer go on.
func TestFailsAtEachStep(t *testing.T) {
	for step := 1; ; step++ {
		for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
			for _, done := range []bool{false, true} {
				dir := filepath.Join(inMemory(t), "log")
				failed := false
				r := &rig{fault: func(n int) (error, bool) {
					if n != step {
						return nil, true
					}
					failed = true
					return errno, done
				}}
				acked := 0
				err := work(dir, r, &acked)
				if !failed {
					if step < 50 {
						t.Errorf("only %d steps", step)
					}
					return
				}
				when := fmt.Sprintf("%v at step %d, done: %v", errno, step, done)
				if !errors.Is(err, errno) {
					t.Errorf("%s: it says %v", when, err)
				}
				// Whoever opens it believes what it finds, so that has to be on disk now.
				r.fault = nil
				if w, err := open(dir, r); err == nil {
					left := filepath.Join(filepath.Dir(dir), "left", "log")
					r.cut(t, dir, left, never)
					resume(t, left, int(w.State().Size), when+", opened, cut")
				}
				resume(t, dir, acked, when)
			}
		}
	}
}
