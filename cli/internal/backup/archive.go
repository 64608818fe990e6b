package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// A backup is a tar archive, compressed by gzip, perhaps encrypted by age: at the worst it can be opened without Sallyport.
type writer struct {
	tar    *tar.Writer
	layers []io.Closer // innermost first
}

func newWriter(to io.Writer, recipients []age.Recipient) (*writer, error) {
	w := &writer{}
	if len(recipients) > 0 {
		sealed, err := age.Encrypt(to, recipients...)
		if err != nil {
			return nil, exit.Errorf(exit.Usage, "encrypting the backup: %w", err)
		}
		w.layers, to = []io.Closer{sealed}, sealed
	}
	packed, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	w.tar = tar.NewWriter(packed)
	w.layers = append([]io.Closer{w.tar, packed}, w.layers...)
	return w, nil
}

func (w *writer) add(name string, size int64, from io.Reader) error {
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatPAX}); err != nil {
		return err
	}
	n, err := io.Copy(w.tar, from)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (w *writer) close() error {
	var all []error
	for _, l := range w.layers {
		all = append(all, l.Close())
	}
	return errors.Join(all...)
}

const (
	maxManifest = 256 << 20
	ageHeader   = "age-encryption.org/"
)

func damaged(format string, args ...any) error {
	return exit.Errorf(exit.Verification, "the backup is damaged: %w: take another one", fmt.Errorf(format, args...))
}

// unseal takes the outer layers off.
func unseal(from io.Reader, identities []age.Identity) (io.Reader, error) {
	in := bufio.NewReaderSize(from, 64<<10)
	if head, _ := in.Peek(len(ageHeader)); string(head) == ageHeader {
		if len(identities) == 0 {
			return nil, exit.Errorf(exit.Usage, "the backup is encrypted: name the file with the key by --identity-file")
		}
		open, err := age.Decrypt(in, identities...)
		var none *age.NoIdentityMatchError
		if errors.As(err, &none) {
			return nil, exit.Errorf(exit.Usage, "the backup was encrypted for another key than the ones in --identity-file")
		}
		if err != nil {
			return nil, damaged("%w", err)
		}
		in = bufio.NewReader(open)
	}
	packed, err := gzip.NewReader(in)
	if err != nil {
		return nil, damaged("not a backup of Sallyport: %w", err)
	}
	packed.Multistream(false)
	return &whole{packed: packed, in: in}, nil
}

// whole reads to the end of both layers, so that what is cut off or hung on is noticed.
type whole struct {
	packed *gzip.Reader
	in     *bufio.Reader
	end    error // once it is reached
}

func (w *whole) Read(p []byte) (int, error) {
	if w.end != nil {
		return 0, w.end
	}
	n, err := w.packed.Read(p)
	if errors.Is(err, io.EOF) {
		if _, err = w.in.ReadByte(); err == nil {
			err = errors.New("something follows its end")
		}
	}
	w.end = err // a reader that has all it wants does not look at an error that comes with it
	return n, err
}

// read gives put each file of a backup, in the order in which they stand there, and the manifest when it fits them all. What
// put was given is worth nothing without it.
func read(ctx context.Context, from io.Reader, identities []age.Identity, put func(name string, data io.Reader) error) (*Manifest, error) {
	plain, err := unseal(from, identities)
	if err != nil {
		return nil, err
	}
	var found []File
	var m *Manifest
	seen := map[string]bool{}
	for t := tar.NewReader(plain); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		switch {
		case err != nil:
			return nil, damaged("%w", err)
		case h.Typeflag != tar.TypeReg || seen[h.Name] || m != nil:
			return nil, damaged("%q does not belong into it", clip(h.Name))
		}
		seen[h.Name] = true
		if h.Name == nameManifest {
			if m, err = parseManifest(t); err != nil {
				return nil, err
			}
			continue
		}
		if !known(h.Name) {
			return nil, damaged("%q does not belong into it", clip(h.Name))
		}
		sum := sha256.New()
		source := &counter{r: t}
		if err := put(h.Name, io.TeeReader(source, sum)); err != nil {
			if source.err != nil {
				err = damaged("%s: %w", h.Name, source.err)
			}
			return nil, err
		}
		if source.n != h.Size {
			return nil, damaged("%s was not read to its end", h.Name)
		}
		found = append(found, File{Name: h.Name, Size: h.Size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	}
	if _, err := io.Copy(io.Discard, plain); err != nil { // its checksum stands at its end
		return nil, damaged("%w", err)
	}
	if m == nil {
		return nil, damaged("it was cut off: it has no manifest")
	}
	return m, m.judge(found)
}

// counter remembers how much was read, and what went wrong with that.
type counter struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func parseManifest(from io.Reader) (*Manifest, error) {
	text, err := io.ReadAll(io.LimitReader(from, maxManifest))
	if err != nil {
		return nil, damaged("%w", err)
	}
	var m Manifest
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&m); err != nil || m.Format < 1 {
		return nil, damaged("its manifest cannot be read")
	}
	if m.Format > Format {
		return nil, exit.Errorf(exit.Data, "the backup has format %d and this program knows up to %d: restore it with the version that made it, %s, or a newer one", m.Format, Format, clip(m.Version))
	}
	return &m, nil
}

// judge compares what there is with what must be.
func (m *Manifest) judge(found []File) error {
	if len(m.Files) != len(found) {
		return damaged("it has %d files, its manifest %d", len(found), len(m.Files))
	}
	for i, want := range m.Files {
		if found[i] != want {
			return damaged("%s is not as its manifest says", clip(want.Name))
		}
	}
	for _, need := range []string{datadir.FileMarker, fileSigner, fileVerifier, dirLog + "checkpoint", datadir.DirTrust + "/root.pem", datadir.DirTrust + "/root-key.pem"} {
		if !m.has(need) {
			return damaged("%s is missing", need)
		}
	}
	for _, service := range append([]string{index}, order...) {
		if m.has(dirDatabases+service+".db") == slices.Contains(m.Server, service) {
			return damaged("the %s's database is missing", service)
		}
	}
	return nil
}

// known says whether a file may be in a backup.
func known(name string) bool {
	if !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.ContainsAny(name, "\\\x00") {
		return false
	}
	switch name {
	case datadir.FileMarker, datadir.FileKEK, nameConfig, fileSigner, fileVerifier:
		return true
	}
	if service, ok := strings.CutPrefix(name, dirDatabases); ok {
		service, ok = strings.CutSuffix(service, ".db")
		return ok && (service == index || slices.Contains(order, service))
	}
	for _, dir := range []string{dirLog, datadir.DirTrust + "/", datadir.DirSecrets + "/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

func clip(s string) string {
	const limit = 80
	return s[:min(len(s), limit)]
}
