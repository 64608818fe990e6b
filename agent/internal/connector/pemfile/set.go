// Package pemfile puts a certificate and its key into PEM files that a server
// reads: all files of the pair as one.
//
// It guarantees that after any crash, once Swap or Back has been called again,
// either all files are the new ones or all are the old ones; that the old files
// come back as the very same files; that a new file has the owner and mode of
// the one it replaces; and that no file is written outside the allowed folders.
// While it works, ".NAME.sallyport-new" and ".NAME.sallyport-old" lie beside
// each file: servers that load whole folders pass hidden names over.
package pemfile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/crash"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// Part is what of a pair a file holds.
type Part string

// The parts.
const (
	Certificate Part = "certificate" // the leaf, then the chain above it
	Leaf        Part = "leaf"        // the leaf alone
	Chain       Part = "chain"       // the chain above the leaf, alone
	Key         Part = "key"         // the private key, PKCS#8
	Combined    Part = "combined"    // leaf, chain, key
)

func (p Part) secret() bool { return p == Key || p == Combined }

const maxFile = 1 << 20

// Rules are what the host's configuration says about files.
type Rules struct {
	Allow connector.Allow
	// Owner and Group are those of files that were not there before; -1 leaves
	// the agent's own.
	Owner, Group int
	// KeyMode is the mode of such a file if it holds the key.
	KeyMode fs.FileMode
}

const certificateMode = 0o644

// File is one file of a set.
type File struct {
	Part Part
	Spot connector.Spot
}

// Set is the files of one pair.
type Set struct {
	rules Rules
	files []File
}

// NewSet finds the files at the given paths. An empty path is no file; there
// must be one with the leaf and one with the key.
func NewSet(rules Rules, paths map[Part]string) (*Set, error) {
	s := &Set{rules: rules}
	var leaf, key bool
	seen := map[string]Part{}
	for _, part := range []Part{Key, Combined, Leaf, Chain, Certificate} {
		path := paths[part]
		if path == "" {
			continue
		}
		spot, err := rules.Allow.Spot(path)
		if err != nil {
			return nil, err
		}
		if other, twice := seen[spot.Path()]; twice {
			return nil, fault.New(fault.Permanent, connector.ReasonSettingsRefused, "%s and %s are the same file, %s", other, part, path)
		}
		seen[spot.Path()] = part
		s.files = append(s.files, File{Part: part, Spot: spot})
		leaf = leaf || part == Certificate || part == Leaf || part == Combined
		key = key || part.secret()
	}
	if !leaf || !key {
		return nil, fault.New(fault.Permanent, connector.ReasonSettingsRefused, "the settings name no file for the certificate or none for the key")
	}
	return s, nil
}

func (p Part) encode(pair connector.Pair) ([]byte, error) {
	chain := pair.Chain()
	switch p {
	case Certificate:
		return pki.EncodeChainPEM(chain), nil
	case Leaf:
		return pki.EncodeChainPEM(chain[:1]), nil
	case Chain:
		return pki.EncodeChainPEM(chain[1:]), nil
	}
	key, err := pki.EncodeKeyPEM(pair.Key())
	if p == Combined {
		key = append(pki.EncodeChainPEM(chain), key...)
	}
	return key, err
}

// Inspect reads what is installed.
func (s *Set) Inspect(context.Context) (connector.Found, error) {
	found := connector.Found{Empty: true}
	var problem error
	for _, f := range s.files {
		data, err := read(f.Spot)
		if errors.Is(err, fs.ErrNotExist) {
			problem = errors.Join(problem, fmt.Errorf("there is no %s", f.Spot.Path()))
			continue
		}
		if err != nil {
			return connector.Found{}, failed("reading what is installed", f.Spot, err)
		}
		found.Empty = false
		certs, key, err := split(data)
		if err != nil {
			problem = errors.Join(problem, fmt.Errorf("%s: %w", f.Spot.Path(), err))
			continue
		}
		if f.Part != Key && f.Part != Chain && len(certs) > len(found.Chain) {
			found.Chain = certs
		}
		if f.Part.secret() {
			found.Key = key
		}
	}
	if problem == nil {
		problem = fits(found)
	}
	if !found.Empty && problem != nil {
		found.Problem = problem.Error()
	}
	return found, nil
}

func fits(found connector.Found) error {
	if len(found.Chain) == 0 || found.Key == nil {
		return errors.New("certificate or key is missing from the files")
	}
	return pki.CheckPair(found.Chain[:1], found.Key)
}

// split takes certificates and key out of a PEM file.
func split(data []byte) (certs []*x509.Certificate, key crypto.Signer, err error) {
	for rest := data; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch {
		case b.Type == "CERTIFICATE":
			cert, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("certificate %d cannot be read", len(certs)+1)
			}
			certs = append(certs, cert)
		case bytes.HasSuffix([]byte(b.Type), []byte("PRIVATE KEY")) && key == nil:
			if key, err = pki.ParseKeyPEM(pem.EncodeToMemory(b)); err != nil {
				return nil, nil, err
			}
		}
	}
	return certs, key, nil
}

func read(s connector.Spot) (data []byte, err error) {
	err = with(s, func(root *os.Root) error {
		data, err = disk.Read(root, s.Name, maxFile)
		return err
	})
	return data, err
}

// stagedFile is what Swap, Back and Drop must know again.
type stagedFile struct {
	connector.Spot
	Existed bool `json:"existed"`
}

func beside(name, what string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".sallyport-"+what)
}

func (s stagedFile) fresh() string { return beside(s.Name, "new") }
func (s stagedFile) old() string   { return beside(s.Name, "old") }

// Stage writes the new files beside the installed ones.
func (s *Set) Stage(pair connector.Pair) (connector.Staged, error) {
	if !pair.Valid() {
		return nil, errors.New("pemfile: staging a pair that was not checked")
	}
	staged, err := s.stageAll(pair)
	if err != nil {
		return nil, errors.Join(err, s.Discard())
	}
	if err := syncNames(staged); err != nil {
		return nil, errors.Join(err, s.Discard())
	}
	return json.Marshal(staged)
}

// stageAll writes all files before it syncs the first.
func (s *Set) stageAll(pair connector.Pair) (staged []stagedFile, err error) {
	var begun []*os.File
	for _, f := range s.files {
		st, file, werr := s.stage(f, pair)
		if werr != nil {
			err = failed("writing the new files", f.Spot, werr)
			break
		}
		staged, begun = append(staged, st), append(begun, file)
	}
	for i, file := range begun {
		if ferr := disk.Finish(file); ferr != nil {
			err = errors.Join(err, failed("writing the new files", s.files[i].Spot, ferr))
		}
	}
	return staged, err
}

func (s *Set) stage(f File, pair connector.Pair) (st stagedFile, file *os.File, err error) {
	st.Spot = f.Spot
	data, err := f.Part.encode(pair)
	if err != nil {
		return st, nil, err
	}
	err = with(f.Spot, func(root *os.Root) error {
		file, err = st.write(root, data, s.rules, f.Part)
		return err
	})
	return st, file, err
}

// write puts the new file beside the old one, which tells it owner and mode.
func (s *stagedFile) write(root *os.Root, data []byte, rules Rules, part Part) (*os.File, error) {
	present, err := root.Lstat(s.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case !present.Mode().IsRegular():
		return nil, errors.New("not a plain file")
	default:
		s.Existed = true
	}
	if err := remove(root, s.fresh(), s.old()); err != nil {
		return nil, err
	}
	return disk.Begin(root, s.fresh(), data, 0o600, func(file *os.File) error {
		if s.Existed {
			return sameAs(file, present)
		}
		return rules.dress(file, part)
	})
}

// syncNames makes what was done to names durable, each folder once.
func syncNames(files []stagedFile) error {
	synced := map[string]bool{}
	for _, f := range files {
		folder := filepath.Dir(f.Path())
		if synced[folder] {
			continue
		}
		synced[folder] = true
		if err := with(f.Spot, func(root *os.Root) error { return disk.SyncDir(root, filepath.Dir(f.Name)) }); err != nil {
			return failed("syncing the folder", f.Spot, err)
		}
	}
	return nil
}

func (r Rules) dress(file *os.File, part Part) error {
	mode := fs.FileMode(certificateMode)
	if part.secret() {
		mode = r.KeyMode
	}
	if r.Owner >= 0 || r.Group >= 0 {
		if err := file.Chown(r.Owner, r.Group); err != nil {
			return fmt.Errorf("giving the file to its owner: %w", err)
		}
	}
	return file.Chmod(mode)
}

// Discard removes what an unfinished Stage has left. Nothing installed is
// touched.
func (s *Set) Discard() error {
	for _, f := range s.files {
		st := stagedFile{Spot: f.Spot}
		if err := with(st.Spot, func(root *os.Root) error { return remove(root, st.fresh()) }); err != nil {
			return failed("removing the new files", f.Spot, err)
		}
	}
	return nil
}

// Swap makes the staged files the installed ones. The old ones stay beside
// them. It may be called again after a crash.
func Swap(staged connector.Staged) error {
	files, err := decode(staged)
	if err != nil {
		return err
	}
	for _, f := range files { // all old files are kept before the first is replaced
		if err := with(f.Spot, f.keepOld); err != nil {
			return failed("keeping the old file", f.Spot, err)
		}
	}
	if err := syncNames(files); err != nil {
		return err
	}
	crash.At(crash.OldKept)
	for _, f := range files {
		if err := with(f.Spot, f.putNew); err != nil {
			return failed("putting the new file in place", f.Spot, err)
		}
		crash.At(crash.FileSwapped)
	}
	if err := syncNames(files); err != nil {
		return err
	}
	crash.At(crash.AllSwapped)
	return nil
}

func (s stagedFile) keepOld(root *os.Root) error {
	if !s.Existed {
		return nil
	}
	if _, err := root.Lstat(s.old()); err == nil {
		return nil
	}
	return root.Link(s.Name, s.old())
}

func (s stagedFile) putNew(root *os.Root) error {
	err := root.Rename(s.fresh(), s.Name)
	if errors.Is(err, fs.ErrNotExist) { // done before a crash
		if _, err := root.Lstat(s.Name); err != nil {
			return err
		}
		return nil
	}
	return err
}

// Back makes the old files the installed ones again, and removes files that
// were not there before. It may be called again after a crash.
func Back(staged connector.Staged) error {
	files, err := decode(staged)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := with(f.Spot, f.back); err != nil {
			return failed("putting the old file back", f.Spot, err)
		}
	}
	return syncNames(files)
}

func (s stagedFile) back(root *os.Root) error {
	if s.Existed {
		err := root.Rename(s.old(), s.Name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // not there: never swapped, or back already
			return err
		}
		// Two names of one file: then rename leaves both.
		return s.clean(root)
	}
	if _, err := root.Lstat(s.fresh()); errors.Is(err, fs.ErrNotExist) {
		if err := remove(root, s.Name); err != nil { // it is the new one
			return err
		}
	}
	return s.clean(root)
}

func (s stagedFile) clean(root *os.Root) error { return remove(root, s.fresh(), s.old()) }

// Drop removes the old files for good.
func Drop(staged connector.Staged) error {
	files, err := decode(staged)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := with(f.Spot, f.clean); err != nil {
			return failed("removing the old file", f.Spot, err)
		}
	}
	return syncNames(files)
}

func decode(staged connector.Staged) ([]stagedFile, error) {
	var files []stagedFile
	if err := json.Unmarshal(staged, &files); err != nil {
		return nil, fault.New(fault.Permanent, connector.ReasonInstallFailed, "reading what was staged: %w", err)
	}
	return files, nil
}

func with(s connector.Spot, do func(*os.Root) error) error {
	root, err := s.Open()
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

func remove(root *os.Root, names ...string) error {
	for _, n := range names {
		if err := root.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// failed gives a file error the reason that tells an operator what to do.
func failed(doing string, s connector.Spot, err error) error {
	var have *fault.Error
	switch {
	case errors.As(err, &have):
		return err
	case disk.Full(err):
		return fault.New(fault.Transient, connector.ReasonDiskFull, "%s: no room left for %s: %w", doing, s.Path(), err)
	case disk.Refused(err):
		return fault.New(fault.Precondition, connector.ReasonNotWritable, "%s: %s: %w", doing, s.Path(), err)
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.Precondition, connector.ReasonFolderMissing, "%s: %s: %w", doing, s.Path(), err)
	}
	return fault.New(fault.Precondition, connector.ReasonInstallFailed, "%s: %s: %w", doing, s.Path(), err)
}
