// Package datadir is the directory in which "sallyport serve" keeps all its
// state. It guarantees that one process at a time works on it, that it is ours
// and of a format we know, that nobody else on the machine can read it, and
// that the clock does not stand before what was already written.
package datadir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

// Format is the version of the layout that this program writes.
const Format = 1

// The names in the directory.
const (
	FileMarker   = "sallyport.json" // what the directory is; see Marker
	FileLock     = "lock"           // held while a process works on it
	FileClock    = "clock"          // the latest time known to have been
	FileKEK      = "kek"            // key-encryption key
	FileRestored = "restored.json"  // that it was made from a backup; see Restored
	DirTrust     = "trust"          // the trust domain's root
	DirOperator  = "operator"       // the operator's identity
	DirNATS      = "nats"           // JetStream
	DirAudit     = "audit"          // the audit log
	DirSecrets   = "secrets"        // what authorities name, such as EAB keys
)

// ClockSlack is how far the clock may have been set back without complaint.
const ClockSlack = 2 * time.Minute

// MinFree is how much space must be free to start and to go on, in bytes:
// enough to commit and close everything in good order.
const MinFree = 64 << 20

// Marker says what the directory is.
type Marker struct {
	Format      int       `json:"format"`
	TrustDomain string    `json:"trust_domain"`
	Created     time.Time `json:"created"`
	// Complete is false while the first start is under way; what it has made so far is taken up again.
	Complete bool `json:"complete"`
}

// Restored says that the directory was made from a backup.
type Restored struct {
	Backup time.Time `json:"backup"` // when the backup was begun
	At     time.Time `json:"at"`     // when it was restored
}

// Dir is an open directory.
type Dir struct {
	Path   string
	Marker Marker
	lock   *os.File
	now    func() time.Time
	free   func(path string) (uint64, error)
}

// Inspect reads what a directory is that another process may be working on.
func Inspect(path string) (Marker, error) {
	if err := ours(path); errors.Is(err, fs.ErrNotExist) {
		return Marker{}, exit.Errorf(exit.Data, "there is no %s: name the data directory of \"sallyport serve\" by --data", path)
	} else if err != nil {
		return Marker{}, err
	}
	d := &Dir{Path: path}
	data, err := d.read(FileMarker)
	if err != nil {
		return Marker{}, exit.Errorf(exit.Data, "%s is no data directory of Sallyport: %w", path, err)
	}
	if err := d.parse(data); err != nil {
		return Marker{}, err
	}
	if !d.Marker.Complete {
		return Marker{}, exit.Errorf(exit.Data, "the first start in %s has not come to its end: start \"sallyport serve\" first", path)
	}
	return d.Marker, nil
}

// Restored says when the directory was restored; nil if it never was.
func (d *Dir) Restored() (*Restored, error) {
	data, err := d.read(FileRestored)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r Restored
	if err == nil {
		r, err = parseRestored(data)
	}
	if err != nil {
		return nil, exit.Errorf(exit.Data, "%s is damaged: restore the backup again", d.Join(FileRestored))
	}
	return &r, nil
}

func parseRestored(data []byte) (Restored, error) {
	var r Restored
	if err := json.Unmarshal(data, &r); err != nil {
		return Restored{}, err
	}
	if r.Backup.IsZero() || r.At.Before(r.Backup) {
		return Restored{}, errors.New("it does not say when") // and what was lost since the backup would pass for never lost
	}
	return r, nil
}

const maxFile = 64 << 10 // bytes; of those read here none has one thousand

// read gives the content of a small file.
func (d *Dir) read(name string) ([]byte, error) {
	f, err := os.Open(d.Join(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", d.Join(name), maxFile)
	}
	return data, err
}

// Options are what Open needs to know.
type Options struct {
	Path string
	// TrustDomain for a new directory; for an existing one it must be the same or empty.
	TrustDomain string
	// DefaultTrustDomain is for a new directory when TrustDomain is empty.
	DefaultTrustDomain string
	Now                func() time.Time
}

// Open locks the directory, making it on first use. Errors carry exit codes.
func Open(o Options) (*Dir, error) {
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return nil, exit.With(exit.Data, err)
	}
	if err := Prepare(path); err != nil {
		return nil, err
	}
	d := &Dir{Path: path, now: o.Now, free: freeSpace}
	if err := d.CheckSpace(); err != nil {
		return nil, err
	}
	if err := d.acquire(); err != nil {
		return nil, err
	}
	if err := d.open(o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Prepare makes the directory or checks that an existing one is for us alone.
func Prepare(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			return exit.Errorf(exit.Data, "%s is not a directory: choose another by --data", path)
		}
		return trust.Disk(fmt.Errorf("making the data directory: %w", err))
	}
	return ours(path)
}

func ours(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return exit.With(exit.Data, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return exit.Errorf(exit.Data, "the data directory %s belongs to user %d and this runs as user %d: run as its owner, or choose another by --data", path, st.Uid, os.Geteuid())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return exit.Errorf(exit.Data, "the data directory %s is open to others (mode %04o) and will hold keys: chmod 700 %s", path, mode, path)
	}
	return nil
}

func (d *Dir) acquire() error {
	f, err := os.OpenFile(d.Join(FileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return trust.Disk(exit.With(exit.Data, fmt.Errorf("locking the data directory: %w", err)))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return exit.Errorf(exit.Data, "the data directory %s is in use by another process (pid %s): stop that one first, or choose another by --data", d.Path, strings.TrimSpace(string(owner)))
		}
		return exit.Errorf(exit.Data, "locking the data directory %s: %w: it must be on a local file system", d.Path, err)
	}
	d.lock = f
	if err := f.Truncate(0); err != nil {
		return errors.Join(trust.Disk(err), f.Close())
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return trust.Disk(err)
}

func (d *Dir) open(o Options) error {
	data, err := d.read(FileMarker)
	if errors.Is(err, fs.ErrNotExist) {
		return d.begin(o)
	}
	if err != nil {
		return exit.Errorf(exit.Data, "reading the data directory: %w", err)
	}
	if err := d.parse(data); err != nil {
		return err
	}
	if o.TrustDomain != "" && o.TrustDomain != d.Marker.TrustDomain {
		return exit.Errorf(exit.Data, "the data directory %s belongs to the trust domain %q, not %q: leave --trust-domain out, or choose another directory by --data", d.Path, d.Marker.TrustDomain, o.TrustDomain)
	}
	return d.checkClock()
}

func (d *Dir) parse(data []byte) error {
	path := d.Join(FileMarker)
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &format); err != nil || format.Format < 1 {
		return exit.Errorf(exit.Data, "%s is damaged: restore the data directory from the backup", path)
	}
	if format.Format > Format {
		return exit.Errorf(exit.Data, "the data directory %s has format %d and this program knows up to %d: start the newer version that wrote it", d.Path, format.Format, Format)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d.Marker); err != nil || d.Marker.TrustDomain == "" {
		return exit.Errorf(exit.Data, "%s is damaged: restore the data directory from the backup", path)
	}
	return nil
}

// begin takes an empty directory.
func (d *Dir) begin(o Options) error {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return exit.Errorf(exit.Data, "reading the data directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+FileMarker) { // a first start was cut off while it wrote the marker
			if err := os.Remove(d.Join(e.Name())); err != nil {
				return trust.Disk(fmt.Errorf("beginning a data directory: %w", err))
			}
			continue
		}
		if e.Name() != FileLock && e.Name() != "lost+found" {
			return exit.Errorf(exit.Data, "%s is not empty and not a data directory of Sallyport (it has %q and no %s): choose another by --data", d.Path, e.Name(), FileMarker)
		}
	}
	d.Marker = Marker{Format: Format, TrustDomain: o.TrustDomain, Created: d.now().UTC().Truncate(time.Second)}
	if d.Marker.TrustDomain == "" {
		d.Marker.TrustDomain = o.DefaultTrustDomain
	}
	return d.writeMarker()
}

// Complete notes that the first start has made all there must be.
func (d *Dir) Complete() error {
	if d.Marker.Complete {
		return nil
	}
	d.Marker.Complete = true
	return d.writeMarker()
}

func (d *Dir) writeMarker() error {
	b, err := json.MarshalIndent(d.Marker, "", "  ")
	if err != nil {
		return err
	}
	return trust.Disk(atomicfile.Write(d.Join(FileMarker), append(b, '\n'), 0o600))
}

// checkClock refuses a clock that stands before the latest time noted.
func (d *Dir) checkClock() error {
	latest := d.Marker.Created
	data, err := d.read(FileClock)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return exit.Errorf(exit.Data, "reading the data directory: %w", err)
	default:
		t, err := parseClock(data)
		if err != nil {
			return exit.Errorf(exit.Data, "%s is damaged: remove it if the clock is right", d.Join(FileClock))
		}
		if t.After(latest) {
			latest = t
		}
	}
	if now := d.now(); now.Before(latest.Add(-ClockSlack)) {
		return exit.Errorf(exit.Clock, "the clock says %s, but this data directory was in use at %s: set the clock right, then start again (if it was wrong then: remove %s)",
			now.UTC().Format(time.RFC3339), latest.UTC().Format(time.RFC3339), d.Join(FileClock))
	}
	return nil
}

func parseClock(data []byte) (time.Time, error) {
	return time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
}

// NoteClock writes down the time, so that a clock set back is noticed at the
// next start. It is to be called now and then, and at the end.
func (d *Dir) NoteClock() error {
	b := d.now().UTC().AppendFormat(nil, time.RFC3339)
	return trust.Disk(atomicfile.Write(d.Join(FileClock), append(b, '\n'), 0o600))
}

// CheckSpace refuses to go on when the disk is nearly full.
func (d *Dir) CheckSpace() error {
	free, err := d.free(d.Path)
	if err != nil {
		return exit.Errorf(exit.Data, "asking for the free space of %s: %w", d.Path, err)
	}
	if free < MinFree {
		return exit.Errorf(exit.Space, "the disk of %s is full: %d MiB are free, at least %d are needed: free space there and start again; nothing was lost", d.Path, free>>20, uint64(MinFree)>>20)
	}
	return nil
}

func freeSpace(path string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil //nolint:gosec // a block size is positive
}

// Join is the path of a name in the directory.
func (d *Dir) Join(name ...string) string {
	return filepath.Join(append([]string{d.Path}, name...)...)
}

// Close gives the lock up.
func (d *Dir) Close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlocking the data directory: %w", err)
	}
	return nil
}
