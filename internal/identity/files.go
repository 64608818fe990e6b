package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// The files of an identity directory.
const (
	FileSVID   = "svid.pem"
	FileKey    = "svid-key.pem"
	FileBundle = "bundle.pem"
	// fileNextKey holds the key of a pair being replaced: the key on disk and the
	// certificate on disk never lack their other half, wherever a writer stops.
	fileNextKey = "svid-key.pem.next"
)

const (
	filesPoll    = 2 * time.Second
	filesMaxSize = 1 << 20
	// filesTries is how often a first read is tried: it may meet a writer at work.
	filesTries = 3
	filesPause = 50 * time.Millisecond
	// sayLate is how often it is said that an identity ends soon and nobody renews it.
	sayLate = 6 * time.Hour
)

// WriteFiles puts an identity into dir, which is made (0700) if missing. The
// key is readable for the owner only. Readers, and a crash at any point, meet
// either the old identity or the new one, as long as the new bundle still
// verifies the old SVID.
func WriteFiles(dir string, chain []*x509.Certificate, key crypto.Signer, bundle *x509bundle.Bundle) error {
	var cert bytes.Buffer
	for _, c := range chain {
		cert.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	roots, err := bundle.Marshal()
	if err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	if _, err := parsePair(cert.Bytes(), keyPEM, roots); err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{FileBundle, roots, 0o644}, {fileNextKey, keyPEM, 0o600}, {FileSVID, cert.Bytes(), 0o644}, {FileKey, keyPEM, 0o600}} {
		if err := replace(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return fmt.Errorf("writing identity: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, fileNextKey)); err != nil {
		return fmt.Errorf("writing identity: %w", err)
	}
	return nil
}

// replace writes a file as a whole or not at all.
func replace(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone after the rename
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// NewFiles gives the identity kept in dir (svid.pem, svid-key.pem, bundle.pem)
// and takes up changes within seconds. A pair that does not fit together, or a
// bundle that does not verify it, is taken for half-written: the old identity
// stays until the files agree.
func NewFiles(dir string, log *slog.Logger) (Source, error) {
	return newFiles(dir, log, filesPoll)
}

type files struct {
	dir    string
	log    *slog.Logger
	cur    atomic.Pointer[pair]
	cancel context.CancelFunc
	done   chan struct{}
}

type pair struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
	sum    [sha256.Size]byte
}

func newFiles(dir string, log *slog.Logger, every time.Duration) (*files, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &files{dir: dir, log: log, done: make(chan struct{})}
	p, err := f.read(nil)
	for range filesTries {
		if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			break
		}
		<-time.After(filesPause)
		p, err = f.read(nil)
	}
	if err != nil {
		return nil, err
	}
	f.cur.Store(p)
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	go f.watch(ctx, every)
	return f, nil
}

func (f *files) watch(ctx context.Context, every time.Duration) {
	defer close(f.done)
	t := time.NewTicker(every)
	defer t.Stop()
	var last string
	var said time.Time
	for {
		said = f.late(ctx, time.Now(), said)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		p, err := f.read(f.cur.Load())
		switch {
		case err != nil && err.Error() != last:
			last = err.Error()
			f.log.WarnContext(ctx, "identity files not usable, keeping the old identity", "error", err)
		case err == nil && p != f.cur.Load():
			last = ""
			f.cur.Store(p)
			f.log.InfoContext(ctx, "identity reloaded", "spiffe_id", p.svid.ID.String(), "not_after", p.svid.Certificates[0].NotAfter)
		}
	}
}

// late says, from time to time, that the identity ends soon: whoever renews it should have done so at half of its life.
func (f *files) late(ctx context.Context, now, said time.Time) time.Time {
	svid := f.cur.Load().svid
	cert := svid.Certificates[0]
	life, left := cert.NotAfter.Sub(cert.NotBefore), cert.NotAfter.Sub(now)
	if left > life/3 || now.Sub(said) < sayLate {
		return said
	}
	level := slog.LevelWarn
	if left < life/10 {
		level = slog.LevelError
	}
	f.log.Log(ctx, level, "the own identity ends soon and nobody has renewed it: run \"sallyport trust renew\", and see to it that it is run daily",
		"dir", f.dir, "spiffe_id", svid.ID.String(), "not_after", cert.NotAfter, "left", left.Round(time.Second))
	return now
}

// read loads the directory; old is given back when nothing changed.
func (f *files) read(old *pair) (*pair, error) {
	cert, err := readSmall(filepath.Join(f.dir, FileSVID))
	if err != nil {
		return nil, err
	}
	key, err := readSmall(filepath.Join(f.dir, FileKey))
	if err != nil {
		return nil, err
	}
	roots, err := readSmall(filepath.Join(f.dir, FileBundle))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bytes.Join([][]byte{cert, key, roots}, []byte{0}))
	if old != nil && old.sum == sum {
		return old, nil
	}
	p, err := parsePair(cert, key, roots)
	if err != nil {
		// A writer stopped half-way: the certificate is new already, its key is not in place yet.
		if next, nextErr := readSmall(filepath.Join(f.dir, fileNextKey)); nextErr == nil {
			if p, nextErr := parsePair(cert, next, roots); nextErr == nil {
				p.sum = sum
				return p, nil
			}
		}
		return nil, fmt.Errorf("reading identity in %s: %w", f.dir, err)
	}
	p.sum = sum
	return p, nil
}

func parsePair(cert, key, roots []byte) (*pair, error) {
	svid, err := x509svid.Parse(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", FileSVID, FileKey, err)
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), roots)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileBundle, err)
	}
	// Whether it is still valid is for the peer to say; here only whether it belongs to the bundle.
	if _, _, err := x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(svid.Certificates[0].NotAfter)); err != nil {
		return nil, fmt.Errorf("%s does not verify against %s: %w", FileSVID, FileBundle, err)
	}
	return &pair{svid: svid, bundle: bundle}, nil
}

func readSmall(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading identity: %w", err)
	}
	if fi.Size() > filesMaxSize {
		return nil, fmt.Errorf("reading identity: %s is larger than %d bytes", path, filesMaxSize)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading identity: %w", err)
	}
	return b, nil
}

func (f *files) GetX509SVID() (*x509svid.SVID, error) { return f.cur.Load().svid, nil }

func (f *files) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return f.cur.Load().bundle.GetX509BundleForTrustDomain(td)
}

func (f *files) Close() error {
	f.cancel()
	<-f.done
	return nil
}
