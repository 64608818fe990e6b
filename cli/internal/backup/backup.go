// Package backup writes one file from which a stopped, lost or burnt "sallyport serve" can be started again, while it runs, and
// makes a data directory from such a file.
//
// It guarantees that a backup is one state that a start can go on from: each database as it was at one moment, the audit log as
// it was at one moment, in an order in which nothing that a later part refers to is missing from an earlier one. A file appears
// under its name only when it is whole and on disk; what was changed or cut off since is found; and a directory that a restore
// has not finished is none that serve starts with. The events that were on their way are not in it: every service publishes
// again what its outbox holds when it finds an empty broker.
//
// It knows nothing of what is in the databases.
package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"
	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/boot"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

// Format is the version of the file that this program writes.
const Format = 1

// Manifest is the last entry of a backup: what is in it.
type Manifest struct {
	Format      int       `json:"format"`
	Version     string    `json:"version"` // of the program that made it
	Created     time.Time `json:"created"` // when it was begun: nothing in it is older
	TrustDomain string    `json:"trust_domain"`
	// KEK says whether the key-encryption key is in the backup.
	KEK bool `json:"kek"`
	// Databases are the services whose database is in the backup, Server those whose database is a server's and is not.
	Databases []string `json:"databases"`
	Server    []string `json:"server,omitempty"`
	Log       Log      `json:"log"`
	Files     []File   `json:"files"`
}

// Log is the audit log as it is in the backup.
type Log struct {
	Size   uint64 `json:"size"`
	Root   string `json:"root"`   // hex
	Signed uint64 `json:"signed"` // size of the newest checkpoint
	Key    string `json:"key"`    // the public key
}

// File is one of the files in a backup.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// The names in a backup.
const (
	nameManifest = "manifest.json"
	nameConfig   = "serve.yaml" // the configuration file, to be looked at: a restore puts it into the data directory
	dirDatabases = "databases/"
	dirLog       = datadir.DirAudit + "/log/"
	fileSigner   = datadir.DirAudit + "/checkpoint.key"
	fileVerifier = datadir.DirAudit + "/verifier"
)

// order is that of the databases. The audit log's index comes before the log, which may be ahead of it and not behind. Then come
// those who listen before those they listen to, so that no service has heard what nobody has said: the inventory, the
// deployer, the issuer.
var order = []string{"inventory", "deployer", "issuer"}

const index = "audit"

// Options are what Create needs.
type Options struct {
	Places datadir.Places
	// Config is the configuration file, "" for none.
	Config string
	// Out is the file to make.
	Out string
	// WithoutDatabases goes on where databases are a server's: they are then backed up by the server's own means.
	WithoutDatabases bool
	// Recipients can decrypt the file; with none it is not encrypted.
	Recipients []age.Recipient
	// Progress is told what is being done.
	Progress func(format string, args ...any)
	Now      func() time.Time
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Create makes a backup. Errors carry exit codes.
func Create(ctx context.Context, o Options) (*Manifest, error) {
	marker, err := datadir.Inspect(o.Places.Data)
	if err != nil {
		return nil, err
	}
	if len(o.Places.Server) > 0 && !o.WithoutDatabases {
		return nil, exit.Errorf(exit.Usage, "the databases of %v are in PostgreSQL, which has its own means: back them up in the order that docs/backup.md gives, and give --without-databases here for all the rest", o.Places.Server)
	}
	if _, err := os.Lstat(o.Out); err == nil {
		return nil, exit.Errorf(exit.Usage, "%s exists already: choose another name", o.Out)
	}
	if dir := filepath.Dir(o.Out); !isDir(dir) {
		return nil, exit.Errorf(exit.Usage, "the directory %s for the backup is not there: make it, for the user that serve runs as, by \"install -d -m 700 -o sallyport %s\"", dir, dir)
	}
	work, err := newWorkspace(filepath.Dir(o.Out), filepath.Base(o.Out), ofBackups)
	if err != nil {
		return nil, trust.Disk(exit.With(exit.Data, fmt.Errorf("making the backup: %w", err)))
	}
	defer work.remove()
	b := &builder{Options: o, dir: work.dir, m: Manifest{
		Format: Format, Version: boot.Version().String(), Created: o.Now().UTC().Truncate(time.Microsecond),
		TrustDomain: marker.TrustDomain, Databases: []string{}, Server: o.Places.Server, Files: []File{},
	}}
	if err := b.build(ctx); err != nil {
		return nil, trust.Disk(exit.With(exit.Data, err))
	}
	return &b.m, nil
}

type builder struct {
	Options
	dir string // for what is made on the way
	m   Manifest
	w   *writer
}

func (b *builder) build(ctx context.Context) error {
	f, err := os.OpenFile(filepath.Join(b.dir, "backup"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("making the backup: %w", err)
	}
	defer func() { _ = f.Close() }() // after a failure; what is in it goes
	if b.w, err = newWriter(f, b.Recipients); err != nil {
		return err
	}
	if err := b.contents(ctx); err != nil {
		return err
	}
	return b.commit(ctx, f)
}

func (b *builder) commit(ctx context.Context, f *os.File) error {
	text, err := json.MarshalIndent(b.m, "", " ")
	if err != nil {
		return err
	}
	if err := b.w.add(nameManifest, int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	if err := b.w.close(); err != nil {
		return fmt.Errorf("writing the backup: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the backup: %w", err)
	}
	return atomicfile.Move(f.Name(), b.Out)
}

func (b *builder) contents(ctx context.Context) error {
	if err := b.database(ctx, index); err != nil {
		return err
	}
	if err := b.log(ctx); err != nil {
		return err
	}
	for _, service := range order {
		if err := b.database(ctx, service); err != nil {
			return err
		}
	}
	return b.rest()
}

func (b *builder) database(ctx context.Context, service string) error {
	file, ok := b.Places.Databases[service]
	if !ok {
		return nil
	}
	b.Progress("copying the database of %s", service)
	snapshot := filepath.Join(b.dir, service+".db")
	if err := snapshotDatabase(ctx, file, snapshot); err != nil {
		return fmt.Errorf("copying the %s's database %s: %w", service, file, err)
	}
	if err := b.file(dirDatabases+service+".db", snapshot); err != nil {
		return err
	}
	b.m.Databases = append(b.m.Databases, service)
	return os.Remove(snapshot)
}

func (b *builder) log(ctx context.Context) error {
	var told time.Time
	progress := func(done, total uint64) {
		if now := time.Now(); now.Sub(told) > time.Second {
			b.Progress("copying the audit log: %d of %d records", done, total)
			told = now
		}
	}
	b.Progress("copying the audit log")
	verifier, err := os.ReadFile(filepath.Join(b.Places.Audit, "verifier"))
	if err != nil {
		return fmt.Errorf("reading the audit log's public key: %w", err)
	}
	copied, err := auditlog.CopyDir(ctx, filepath.Join(b.Places.Audit, "log"), func(path string, data []byte) error {
		return b.bytes(dirLog+path, data)
	}, progress)
	if err != nil {
		return fmt.Errorf("copying the audit log: %w", err)
	}
	b.m.Log = Log{Size: copied.Size, Root: hex.EncodeToString(copied.Root[:]), Signed: copied.Signed, Key: string(bytes.TrimSpace(verifier))}
	if err := b.bytes(fileVerifier, verifier); err != nil {
		return err
	}
	return b.file(fileSigner, filepath.Join(b.Places.Audit, "checkpoint.key"))
}

// rest adds what hardly ever changes: keys, secrets, what the directory is.
func (b *builder) rest() error {
	p := b.Places
	b.Progress("copying keys and configuration")
	if rel, err := filepath.Rel(p.Data, p.KEK); err == nil && filepath.IsLocal(rel) {
		if err := b.file(datadir.FileKEK, p.KEK); err != nil {
			return err
		}
		b.m.KEK = true
	}
	if err := b.tree(datadir.DirTrust, filepath.Join(p.Data, datadir.DirTrust)); err != nil {
		return err
	}
	if err := b.tree(datadir.DirSecrets, p.Secrets); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if b.Config != "" {
		if err := b.file(nameConfig, b.Config); err != nil {
			return err
		}
	}
	// The clock is noted anew by the restore; the operator's credential is made anew by the start.
	return b.file(datadir.FileMarker, filepath.Join(p.Data, datadir.FileMarker))
}

// tree adds the files below a directory, also those that the service reads by a symbolic link.
func (b *builder) tree(name, dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("reading for the backup: %w", err)
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() { // a link to nothing; a folder
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return b.file(name+"/"+filepath.ToSlash(rel), path)
	})
}

func (b *builder) file(name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading for the backup: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("reading for the backup: %w", err)
	}
	return b.add(name, info.Size(), f)
}

func (b *builder) bytes(name string, data []byte) error {
	return b.add(name, int64(len(data)), bytes.NewReader(data))
}

func (b *builder) add(name string, size int64, from io.Reader) error {
	h := sha256.New()
	if err := b.w.add(name, size, io.TeeReader(io.LimitReader(from, size), h)); err != nil {
		return fmt.Errorf("writing %s to the backup: %w", name, err)
	}
	b.m.Files = append(b.m.Files, File{Name: name, Size: size, SHA256: hex.EncodeToString(h.Sum(nil))})
	return nil
}

// Bytes is how much is in the backup, unpacked.
func (m *Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// has says whether a file is in the backup.
func (m *Manifest) has(name string) bool {
	return slices.ContainsFunc(m.Files, func(f File) bool { return f.Name == name })
}
