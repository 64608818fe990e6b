package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sallyport-pki/sallyport/auditlog"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/services/audit/internal/ledger/tiles"
	"golang.org/x/mod/sumdb/note"
)

const (
	keyFile      = "checkpoint.key"
	verifierFile = "verifier"
	lockFile     = "lock"
)

func refuse(format string, args ...any) *fault.Error {
	return fault.New(fault.Precondition, "LOG_REFUSED", format, args...)
}

// acquire makes the directory and locks it against other processes, and against a second opening in this one.
func (l *Ledger) acquire() error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return refuse("cannot make the directory of the audit log: choose a directory that can be written, or make it by hand: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(l.dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return refuse("cannot write to %s: make the directory and its files writable for this program: %w", l.dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return refuse("another process has the audit log in %s open: stop it first, a log has one writer", l.dir)
		}
		return refuse("cannot lock %s: the log must be on a local file system: %w", l.dir, err)
	}
	l.lock = f
	return nil
}

// loadKey reads the signing key, or makes it where there is no log yet.
func (l *Ledger) loadKey(origin string) (note.Signer, error) {
	path := filepath.Join(l.dir, keyFile)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if tiles.Exists(l.logDir) {
			return nil, refuse("%s is missing, but there is a log signed with it: restore the key from a backup", path)
		}
		if err := makeKey(path, origin); err != nil {
			return nil, refuse("cannot make the signing key %s: %w", path, err)
		}
	case err != nil:
		return nil, refuse("cannot read the signing key: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, refuse("%s can be read by others (mode %04o): chmod 600 it, and think about who has read it", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, refuse("cannot read the signing key: %w", err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, refuse("%s is not a signing key: restore it from a backup", path) // the cause could quote the key
	}
	if signer.Name() != origin {
		return nil, refuse("%s is the key of the log %q, this is the log %q: give each log its own directory", path, signer.Name(), origin)
	}
	return signer, l.deriveVerifier(signer, string(data))
}

// makeKey writes a new key and makes sure that it is on disk before anything is signed with it.
func makeKey(path, origin string) error {
	private, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return err
	}
	err = writeFile(path, []byte(private+"\n"), 0o600)
	crash.At(crash.LogKeyMade)
	return err
}

// publicOf gives the verifier of a signer's text, "PRIVATE+KEY+<name>+<hash>+<base64 of algorithm and seed>".
func publicOf(name, private string) (string, error) {
	parts := strings.SplitN(private, "+", 5)
	if len(parts) != 5 {
		return "", errors.New("not a note signer")
	}
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize {
		return "", errors.New("not an Ed25519 key")
	}
	return note.NewEd25519VerifierKey(name, ed25519.NewKeyFromSeed(key[1:]).Public().(ed25519.PublicKey))
}

// deriveVerifier computes the public key from the private: a verifier file may be lost, or a lie.
func (l *Ledger) deriveVerifier(signer note.Signer, private string) error {
	verifier, err := publicOf(signer.Name(), strings.TrimSpace(private))
	if err != nil {
		return refuse("%s is not an Ed25519 signing key: restore it from a backup", filepath.Join(l.dir, keyFile))
	}
	l.verifier = verifier
	l.key, err = note.NewVerifier(verifier)
	return err
}

func (l *Ledger) writeVerifier() error {
	path := filepath.Join(l.dir, verifierFile)
	text := []byte(l.verifier + "\n")
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := writeFile(path, text, 0o644); err != nil {
		return refuse("cannot write %s: %w", path, err)
	}
	return nil
}

// check refuses a log that is not what its key has signed, and says how far its checkpoint goes, if there is one. It reads the right
// edge of the tree, not the whole log: that is what offline verification is for.
func (l *Ledger) check(ctx context.Context) (signed uint64, published bool, err error) {
	c := auditlog.Checkpoint{Root: tiles.EmptyRoot}
	switch data, err := l.files.ReadCheckpoint(ctx); {
	case err == nil:
		published = true
		if c, err = auditlog.ParseCheckpoint(data, l.key); err != nil {
			return 0, true, refuse("the checkpoint in %s is not of this log: %w; restore the directory from a backup", l.logDir, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return 0, false, refuse("cannot read the checkpoint in %s: %w", l.logDir, err)
	}
	state, err := tiles.ReadState(l.logDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = refuse("%s is missing, but there is a log: restore the whole directory from a backup", filepath.Join(l.logDir, tiles.StatePath))
	case err != nil:
		err = refuse("the state of the log in %s cannot be read: restore the whole directory from a backup: %w", l.logDir, err)
	case c.Size > state.Size:
		err = refuse("%s has a checkpoint of %d records but a state of %d: the state is older than the log; restore the whole directory from one backup", l.logDir, c.Size, state.Size)
	default:
		if err = l.checkRoot(state, "state"); err == nil {
			err = l.checkRoot(tiles.State{Size: c.Size, Root: c.Root}, "checkpoint")
		}
	}
	return c.Size, published, err
}

// checkRoot compares a root with the tiles.
func (l *Ledger) checkRoot(want tiles.State, whose string) error {
	root, err := tiles.Root(l.logDir, want.Size)
	if err != nil {
		return refuse("the tiles in %s do not reach the %d records of its %s: restore the whole directory from a backup: %w", l.logDir, want.Size, whose, err)
	}
	if root != want.Root {
		return refuse("the tiles in %s do not give the root of its %s of %d records: the log was damaged or changed; restore the whole directory from a backup", l.logDir, whose, want.Size)
	}
	return nil
}

// writeFile replaces a file so that after a crash either the old or the new is there, whole.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
