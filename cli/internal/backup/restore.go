package backup

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/sallyport-pki/sallyport/auditlog"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

// staging is where a restore works in the data directory. As long as it is there the directory is none to start with.
const staging = "restoring"

// RestoreOptions are what Restore needs.
type RestoreOptions struct {
	// File is the backup.
	File string
	// Places are where everything goes; the data directory must be empty or not there.
	Places datadir.Places
	// TrustDomain is the one that the backup must be of; "" for any.
	TrustDomain string
	// Identities open an encrypted backup.
	Identities []age.Identity
	Progress   func(format string, args ...any)
	Now        func() time.Time
}

// Restore makes a data directory from a backup that it has found in order. Errors carry exit codes.
func Restore(ctx context.Context, o RestoreOptions) (*Manifest, error) {
	if err := datadir.Prepare(o.Places.Data); err != nil {
		return nil, err
	}
	for _, dir := range []string{o.Places.Data, o.Places.Audit} {
		if err := empty(dir); err != nil {
			return nil, err
		}
	}
	r := &restorer{RestoreOptions: o, stage: filepath.Join(o.Places.Data, staging)}
	if err := os.Mkdir(r.stage, 0o700); err != nil {
		return nil, trust.Disk(exit.With(exit.Data, fmt.Errorf("restoring: %w", err)))
	}
	m, err := r.restore(ctx)
	if err == nil {
		err = r.commit(m)
	}
	if err != nil {
		return nil, errors.Join(trust.Disk(exitData(err)), r.undo())
	}
	return m, nil
}

// Verify looks whether a backup could be restored. It unpacks it in a temporary directory; what one that was killed has left
// there goes with the next.
func Verify(ctx context.Context, o RestoreOptions) (*Manifest, error) {
	w, err := newWorkspace(os.TempDir(), "sallyport-verify", ofVerify)
	if err != nil {
		return nil, trust.Disk(exit.With(exit.Data, err))
	}
	defer w.remove()
	dir := w.dir
	kek := o.Places.KEK
	o.Places = datadir.Places{Data: dir, KEK: filepath.Join(dir, datadir.FileKEK), Audit: filepath.Join(dir, datadir.DirAudit),
		Secrets: filepath.Join(dir, datadir.DirSecrets), Databases: map[string]string{}}
	for _, service := range append([]string{index}, order...) {
		o.Places.Databases[service] = filepath.Join(dir, service+".db")
	}
	r := &restorer{RestoreOptions: o, stage: filepath.Join(dir, staging), apart: kek, only: true}
	m, err := r.restore(ctx)
	if err != nil {
		return nil, trust.Disk(exitData(err))
	}
	return m, nil
}

// exitData gives an error that has no code of its own that of a directory or file.
func exitData(err error) error {
	var own *exit.Error
	if err == nil || errors.As(err, &own) || errors.Is(err, context.Canceled) {
		return err
	}
	return exit.With(exit.Data, err)
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return exit.Errorf(exit.Data, "looking into %s: %w", dir, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "lost+found":
		case staging:
			return exit.Errorf(exit.Data, "%s holds what an interrupted restore has left: remove all that is in it, then restore again", dir)
		default:
			return exit.Errorf(exit.Data, "%s is not empty (it has %q): a restore goes into an empty directory; move the old one aside, it may be needed", dir, e.Name())
		}
	}
	return nil
}

type restorer struct {
	RestoreOptions
	stage string
	apart string   // where Verify finds a key-encryption key that is not in the backup
	only  bool     // to verify
	made  []string // files and directories outside of the data directory
}

// final is where a file of a backup goes.
func (r *restorer) final(name string) string {
	p := r.Places
	if service, ok := strings.CutPrefix(name, dirDatabases); ok {
		return p.Databases[strings.TrimSuffix(service, ".db")]
	}
	for prefix, dir := range map[string]string{datadir.DirAudit + "/": p.Audit, datadir.DirSecrets + "/": p.Secrets} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return filepath.Join(dir, rest)
		}
	}
	if name == datadir.FileKEK {
		return p.KEK
	}
	return filepath.Join(p.Data, name)
}

// staged is where it lies until all of it is found in order: what does not belong into the data directory at its own place,
// which means nothing as long as the data directory is not finished.
func (r *restorer) staged(name string) string {
	to := r.final(name)
	if rel, err := filepath.Rel(r.Places.Data, to); err == nil && filepath.IsLocal(rel) {
		return filepath.Join(r.stage, rel)
	}
	return to
}

func (r *restorer) restore(ctx context.Context) (*Manifest, error) {
	f, err := os.Open(r.File)
	if err != nil {
		return nil, exit.With(exit.Usage, fmt.Errorf("reading the backup: %w", err))
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, exit.Errorf(exit.Usage, "%s is a directory: name the backup in it", r.File)
	}
	r.Progress("unpacking %s", r.File)
	m, err := read(ctx, f, r.Identities, r.put)
	if err != nil {
		return nil, err
	}
	return m, r.check(ctx, m)
}

func (r *restorer) put(name string, data io.Reader) error {
	if strings.HasPrefix(name, dirDatabases) && r.final(name) == "" {
		return exit.Errorf(exit.Usage, "the backup holds the database %s, but by the configuration that service keeps its data in PostgreSQL: restore with the configuration of then", name)
	}
	path := r.staged(name)
	outside := !strings.HasPrefix(path, r.stage+string(filepath.Separator))
	if err := r.mkdir(filepath.Dir(path), outside); err != nil {
		return err
	}
	if strings.HasPrefix(name, dirDatabases) {
		if err := noLeftovers(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return inTheWay(path)
	}
	if err != nil {
		return err
	}
	if outside {
		r.made = append(r.made, path)
	}
	_, err = io.Copy(f, data)
	if err == nil && outside {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// mkdir makes a directory with its parents.
func (r *restorer) mkdir(dir string, outside bool) error {
	if !outside {
		return os.MkdirAll(dir, 0o700)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := r.mkdir(filepath.Dir(dir), outside); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	r.made = append(r.made, dir)
	return nil
}

func inTheWay(path string) error {
	return exit.Errorf(exit.Data, "%s exists already: move it aside first", path)
}

// noLeftovers refuses what SQLite would take for the newest changes to a database, and are those to the one that was there before.
func noLeftovers(database string) error {
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if _, err := os.Lstat(database + suffix); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(inTheWay(database+suffix), err)
		}
	}
	return nil
}

// check looks whether what was unpacked can be started.
func (r *restorer) check(ctx context.Context, m *Manifest) error {
	if !r.only && !slices.Equal(m.Server, r.Places.Server) {
		return exit.Errorf(exit.Usage, "when the backup was made, PostgreSQL held the databases of %v, by the configuration now it holds those of %v: restore with the configuration of then", m.Server, r.Places.Server)
	}
	if want := r.TrustDomain; want != "" && want != m.TrustDomain {
		return exit.Errorf(exit.Usage, "the backup is of the trust domain %q, the configuration of %q: take a backup of this installation, or the configuration of that one", clip(m.TrustDomain), want)
	}
	if now := r.Now(); !r.only && now.Before(m.Created.Add(-datadir.ClockSlack)) {
		return exit.Errorf(exit.Clock, "the clock says %s, but the backup was begun at %s: set the clock right, then restore again", now.UTC().Format(time.RFC3339), m.Created.Format(time.RFC3339))
	}
	r.Progress("checking keys")
	if err := r.checkKeys(m); err != nil {
		return err
	}
	for _, service := range m.Databases {
		r.Progress("checking the database of %s", service)
		if err := checkDatabase(ctx, r.staged(dirDatabases+service+".db")); err != nil {
			return damaged("database of the %s: %w", service, err)
		}
	}
	r.Progress("checking the audit log: %d records", m.Log.Size)
	report, err := auditlog.VerifyDir(ctx, r.staged(datadir.DirAudit+"/log"), auditlog.Options{Key: m.Log.Key})
	if err != nil {
		return damaged("audit log: %w", err)
	}
	c := report.Checkpoint
	if c.Size != m.Log.Signed || c.Size == m.Log.Size && hex.EncodeToString(c.Root[:]) != m.Log.Root {
		return damaged("the audit log is not the one that its manifest describes")
	}
	return nil
}

func (r *restorer) checkKeys(m *Manifest) error {
	kek := r.staged(datadir.FileKEK)
	if !m.KEK {
		if r.only {
			kek = r.apart
		} else {
			kek = r.Places.KEK
		}
		if _, err := os.Stat(kek); kek == "" || errors.Is(err, fs.ErrNotExist) {
			r.Progress("the key-encryption key is not in the backup: put it at its place (kek: in the configuration) before you start")
			return nil
		}
	}
	box, err := trust.OpenBox(kek)
	if err != nil {
		return err
	}
	ca, err := trust.Open(r.staged(datadir.DirTrust), box, r.Now)
	if err != nil {
		return err
	}
	if ca.TrustDomain().Name() != m.TrustDomain {
		return damaged("its root is of the trust domain %q", ca.TrustDomain().Name())
	}
	return nil
}

// commit makes it the data directory: the marker comes last, and without it nothing starts.
func (r *restorer) commit(m *Manifest) error {
	if err := os.Mkdir(filepath.Join(r.stage, datadir.DirNATS), 0o700); err != nil {
		return err
	}
	at := r.Now().UTC()
	if at.Before(m.Created) {
		at = m.Created
	}
	note, err := json.MarshalIndent(datadir.Restored{Backup: m.Created, At: at}, "", "  ")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		datadir.FileRestored: append(note, '\n'), datadir.FileClock: at.AppendFormat(nil, time.RFC3339),
	} {
		if err := os.WriteFile(filepath.Join(r.stage, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := r.syncOutside(); err != nil {
		return err
	}
	if err := syncAll(r.stage); err != nil {
		return err
	}
	entries, err := os.ReadDir(r.stage)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == datadir.FileMarker {
			continue
		}
		if err := os.Rename(filepath.Join(r.stage, e.Name()), filepath.Join(r.Places.Data, e.Name())); err != nil {
			return err
		}
	}
	if err := syncAll(r.Places.Data); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(r.stage, datadir.FileMarker), filepath.Join(r.Places.Data, datadir.FileMarker)); err != nil {
		return err
	}
	if err := os.Remove(r.stage); err != nil {
		return err
	}
	return syncAll(r.Places.Data)
}

// syncOutside has the names of what was made outside of the data directory on disk, where its content is already.
func (r *restorer) syncOutside() error {
	synced := map[string]bool{}
	for _, path := range r.made {
		dir := filepath.Dir(path)
		if synced[dir] {
			continue
		}
		synced[dir] = true
		if err := atomicfile.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// syncAll has everything on that file system on disk, which is quicker than file by file when there are tens of thousands.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// undo removes what a restore that failed has made.
func (r *restorer) undo() error {
	var all []error
	for _, path := range slices.Backward(r.made) { // what is in a directory before it
		all = append(all, os.Remove(path))
	}
	entries, err := os.ReadDir(r.Places.Data)
	all = append(all, err)
	for _, e := range entries {
		if e.Name() != "lost+found" {
			all = append(all, os.RemoveAll(filepath.Join(r.Places.Data, e.Name())))
		}
	}
	return errors.Join(all...)
}
