package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	header        = "sallyport 1 "
	maxRecord     = 64 << 20
	damagedPrefix = "damaged-"
	maxDamaged    = 16
	lockFile      = "lock"
)

// ErrDamaged is what Get wraps for a record that was damaged and set aside. It
// is an fs.ErrNotExist too: the record is gone.
var ErrDamaged = fmt.Errorf("damaged record: %w", fs.ErrNotExist)

// Folder keeps sealed records: each a file whose damage is noticed. It is for
// one process; calls may come from several goroutines.
type Folder struct {
	path string
	root *os.Root // nil when viewing a folder that is not there
	dir  string   // below root
	own  bool     // root is for this folder alone
	view bool
	log  *slog.Logger
	mu   sync.Mutex

	trusted map[string]bool // records whose slots this process has made, and the disk has taken all of
}

// OpenFolder opens the folder at path for records, making it (0700) if it is
// not there, and clears away what an interrupted Put has left. It refuses a
// folder that others may read.
func OpenFolder(path string, log *slog.Logger) (*Folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	f := &Folder{path: path, root: root, dir: ".", own: true, log: log, trusted: map[string]bool{}}
	if err := f.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening state: %w", err), root.Close())
	}
	return f, nil
}

func (f *Folder) open() error {
	fi, err := f.root.Stat(f.dir)
	if err != nil {
		return err
	}
	if err := private(f.path, fi); err != nil {
		return err
	}
	names, err := f.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasPrefix(n, tempPrefix) {
			if err := f.root.Remove(f.at(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// at is where name lies below root.
func (f *Folder) at(name string) string { return filepath.Join(f.dir, name) }

// ViewFolder opens the folder at path for looking only: another process may be
// at work in it. One that is not there is empty.
func ViewFolder(path string, log *slog.Logger) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking at state: %w", err)
	}
	return &Folder{path: path, root: root, dir: ".", own: true, view: true, log: log}, nil
}

var errView = errors.New("the folder was opened for looking only")

// Close lets the folder go.
func (f *Folder) Close() error {
	if f.root == nil || !f.own {
		return nil
	}
	return f.root.Close()
}

// Path is where the folder lies.
func (f *Folder) Path() string { return f.path }

// Put keeps payload under name. It is durable when Put returns.
func (f *Folder) Put(name string, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view {
		return errView
	}
	if err := Keep(f.root, f.at(name), seal(payload), 0o600); err != nil {
		return fmt.Errorf("keeping %s in %s: %w", name, f.path, err)
	}
	return nil
}

// Get gives what was kept under name. A record that is damaged is set aside
// with a line in the log and reported as ErrDamaged.
func (f *Folder) Get(ctx context.Context, name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.root == nil {
		return nil, fmt.Errorf("reading %s in %s: %w", name, f.path, fs.ErrNotExist)
	}
	data, err := Read(f.root, f.at(name), maxRecord)
	if err != nil {
		return nil, fmt.Errorf("reading state in %s: %w", f.path, err)
	}
	payload, err := unseal(data)
	if err != nil {
		if updated, no := newest(data); no == nil {
			payload, err = updated.payload, nil
			f.trust(ctx, name, payload)
		}
	}
	if err == nil {
		return payload, nil
	}
	if len(data) == 0 && !f.view { // it was about to be made
		f.log.InfoContext(ctx, "state file is empty: the agent was stopped while it made it", "folder", f.path, "file", name)
		return nil, errors.Join(ErrDamaged, f.root.Remove(f.at(name)))
	}
	f.setAside(ctx, name, err)
	return nil, fmt.Errorf("reading %s in %s: %w", name, f.path, ErrDamaged)
}

// SetAside takes a record whose content makes no sense out of the way.
func (f *Folder) SetAside(ctx context.Context, name string, why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setAside(ctx, name, why)
}

func (f *Folder) setAside(ctx context.Context, name string, why error) {
	if f.view {
		f.log.WarnContext(ctx, "state file is damaged", "folder", f.path, "file", name, "error", why)
		return
	}
	aside := damagedPrefix + name
	if n, err := f.names(); err != nil || f.countDamaged(n) >= maxDamaged {
		aside = damagedPrefix + "last"
	}
	if err := f.root.Rename(f.at(name), f.at(aside)); err != nil {
		why = errors.Join(why, err)
	}
	f.log.ErrorContext(ctx, "state file is damaged: set aside, its content is fetched or made again", "folder", f.path, "file", name, "kept_as", aside, "error", why)
}

func (f *Folder) countDamaged(names []string) (n int) {
	for _, name := range names {
		if strings.HasPrefix(name, damagedPrefix) {
			n++
		}
	}
	return n
}

// Remove forgets name; that it is not there is no error.
func (f *Folder) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.view {
		return errView
	}
	delete(f.trusted, name)
	if err := f.root.Remove(f.at(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing state in %s: %w", f.path, err)
	}
	return SyncDir(f.root, f.dir)
}

// Names lists the records, sorted.
func (f *Folder) Names() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names, err := f.names()
	if err != nil {
		return nil, fmt.Errorf("reading state in %s: %w", f.path, err)
	}
	return slices.DeleteFunc(names, func(n string) bool {
		return strings.HasPrefix(n, damagedPrefix) || strings.HasPrefix(n, tempPrefix)
	}), nil
}

func (f *Folder) names() ([]string, error) {
	if f.root == nil {
		return nil, nil
	}
	dir, err := f.root.Open(f.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Lock is held while one process owns a state folder.
type Lock struct {
	f    *os.File
	path string
	root *os.Root
}

// Unlock lets the folder go, and what was opened in it.
func (l *Lock) Unlock() error { return errors.Join(l.root.Close(), l.f.Close()) }

// TakeLock makes the folder at path this process's own until Unlock or the end
// of the process, however it ends.
func TakeLock(path string) (*Lock, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("locking state: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("locking state: %w", err)
	}
	f, err := root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking state: %w", err), root.Close())
	}
	for tries := 50; lock(f) != nil; tries-- {
		if tries == 0 {
			return nil, errors.Join(fmt.Errorf("state folder %s is in use by another agent", path), f.Close(), root.Close())
		}
		<-time.After(10 * time.Millisecond) // it may only be looked at
	}
	return &Lock{f: f, path: path, root: root}, nil
}

// Held says whether a process has taken the lock of the state folder at path. Looking takes a moment, which TakeLock waits for.
func Held(path string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDONLY|nonblock, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking whether an agent runs: %w", err)
	}
	held, err := locked(f)
	return held, errors.Join(err, f.Close())
}

// Folder is OpenFolder for one inside the state folder. All of them together
// keep one file open, that of the state folder.
func (l *Lock) Folder(name string, log *slog.Logger) (*Folder, error) {
	if err := l.root.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	f := &Folder{path: filepath.Join(l.path, name), root: l.root, dir: name, log: log, trusted: map[string]bool{}}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("opening state: %w", err)
	}
	return f, nil
}

// Key makes any text into a file name.
func Key(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// seal puts a line with a checksum before the payload.
func seal(payload []byte) []byte {
	sum := sha256.Sum256(payload)
	return slices.Concat([]byte(header+hex.EncodeToString(sum[:])+"\n"), payload)
}

func unseal(data []byte) ([]byte, error) {
	line, payload, ok := bytes.Cut(data, []byte("\n"))
	want, is := strings.CutPrefix(string(line), header)
	if !ok || !is {
		return nil, errors.New("no header: not written by this program, or cut short")
	}
	if sum := sha256.Sum256(payload); want != hex.EncodeToString(sum[:]) {
		return nil, errors.New("checksum differs")
	}
	return payload, nil
}
