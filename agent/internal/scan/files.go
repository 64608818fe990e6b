package scan

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
)

// The bounds of looking through files.
const (
	maxFile    = 1 << 20
	maxDepth   = 12
	maxEntries = 200_000
	// maxInFile is how many certificates make a chain; more are a trust store,
	// which is not what this is about.
	maxInFile = maxChain
	breathe   = 50 // entries between pauses
)

// never lists what is no place for files.
var never = []string{"/proc", "/sys", "/dev"}

var extensions = []string{".pem", ".crt", ".cer"}

func (s *Scanner) files(ctx context.Context, c *counter) error {
	w := &walk{ctx: ctx, s: s, c: c, seen: map[string]bool{}}
	for _, path := range s.Paths {
		if err := w.tree(path); err != nil {
			return err
		}
	}
	for _, path := range s.referenced(ctx) {
		if err := w.reference(path); err != nil {
			return err
		}
	}
	return nil
}

// walk is one scan of files.
type walk struct {
	ctx     context.Context
	s       *Scanner
	c       *counter
	entries int
	seen    map[string]bool // paths, links resolved
}

func (w *walk) excluded(path string) bool {
	return slices.ContainsFunc(slices.Concat(never, w.s.Exclude), func(e string) bool {
		e = filepath.Clean(e)
		return path == e || strings.HasPrefix(path, e+string(filepath.Separator))
	})
}

// tree looks at one configured path: a file as it is, a folder by extensions.
func (w *walk) tree(top string) error {
	top = filepath.Clean(top)
	fi, err := os.Stat(top)
	if err != nil {
		w.s.Log.DebugContext(w.ctx, "not scanned", "path", top, "error", err)
		return nil
	}
	if !fi.IsDir() {
		return w.file(top)
	}
	// A folder that is itself a link is entered; links to folders below are not,
	// so there are no loops.
	if real, err := filepath.EvalSymlinks(top); err == nil {
		top = real
	}
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		if err := w.pause(); err != nil {
			return err
		}
		switch {
		case err != nil: // may not be read: others may
			if d != nil && d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case d.IsDir() && (w.excluded(path) || depth(top, path) > maxDepth):
			return filepath.SkipDir
		case d.IsDir(), !slices.Contains(extensions, strings.ToLower(filepath.Ext(path))):
			return nil
		}
		return w.file(path)
	})
}

func depth(top, path string) int {
	rel, err := filepath.Rel(top, path)
	if err != nil {
		return maxDepth + 1
	}
	return strings.Count(rel, string(filepath.Separator))
}

// pause lets the host breathe, and ends a walk that has no end.
func (w *walk) pause() error {
	if w.entries++; w.entries > maxEntries {
		w.s.Log.WarnContext(w.ctx, "scan stops looking through files: there are too many", "entries", maxEntries)
		return errEnough
	}
	if w.entries%breathe != 0 {
		return nil
	}
	select {
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

// reference looks at what a server's configuration names: a file, or a folder
// of files of any name.
func (w *walk) reference(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return nil
	}
	if !fi.IsDir() {
		return w.file(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil
	}
	for _, e := range entries[:min(len(entries), maxSightings)] {
		if err := w.pause(); err != nil {
			return err
		}
		if err := w.file(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) file(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil || w.seen[real] || w.excluded(path) || w.excluded(real) {
		return nil
	}
	w.seen[real] = true
	if fi, err := os.Stat(real); err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	data, err := disk.ReadPath(real, maxFile)
	if err != nil {
		w.s.Log.DebugContext(w.ctx, "not scanned", "path", path, "error", err)
		return nil
	}
	chain := certificates(data)
	clear(data) // it may have held a key
	if len(chain) == 0 || len(chain) > maxInFile {
		return nil
	}
	return w.c.add(Sighting{Role: File, Location: path, Chain: chain})
}

// certificates takes the certificates out of a file, PEM or DER, in their
// order; nothing else of it.
func certificates(data []byte) [][]byte {
	if cert, err := x509.ParseCertificate(data); err == nil {
		return [][]byte{slices.Clone(cert.Raw)}
	}
	var out [][]byte
	for rest := data; len(out) <= maxInFile; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" && b.Type != "X509 CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(b.Bytes); err == nil {
			out = append(out, cert.Raw)
		}
	}
	return out
}
