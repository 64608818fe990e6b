package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// The files of an identity directory.
const (
	FileSVID   = "svid.pem"
	FileKey    = "svid-key.pem"
	FileBundle = "bundle.pem"
)

const (
	filesPoll    = 2 * time.Second
	filesMaxSize = 1 << 20
)

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
	for {
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
	svid, err := x509svid.Parse(cert, key)
	if err != nil {
		return nil, fmt.Errorf("reading identity in %s: %w", f.dir, err)
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), roots)
	if err != nil {
		return nil, fmt.Errorf("reading identity in %s: %w", f.dir, err)
	}
	if bundle.Empty() {
		return nil, fmt.Errorf("reading identity in %s: %s is empty", f.dir, FileBundle)
	}
	// Whether it is still valid is for the peer to say; here only whether it belongs to the bundle.
	if _, _, err := x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(svid.Certificates[0].NotAfter)); err != nil {
		return nil, fmt.Errorf("reading identity in %s: %s does not verify against %s: %w", f.dir, FileSVID, FileBundle, err)
	}
	return &pair{svid: svid, bundle: bundle, sum: sum}, nil
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

// workloadWait bounds the wait for the first SVID: go-spiffe itself would wait for ever.
const workloadWait = 30 * time.Second

// NewWorkload gives the identity that a SPIFFE Workload API at addr (such as
// unix:///run/spire/agent.sock) hands out, and follows its rotation. It waits
// at most 30 seconds for the first SVID.
func NewWorkload(ctx context.Context, addr string) (Source, error) {
	ctx, cancel := context.WithTimeout(ctx, workloadWait)
	defer cancel()
	src, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(addr)))
	if err != nil {
		return nil, fmt.Errorf("asking the Workload API at %s for an SVID: %w", addr, err)
	}
	return src, nil
}

// NewMinted gives an identity held in memory and signed by ca. It is renewed
// when it is asked for after half its life.
func NewMinted(ca *Authority, id spiffeid.ID, ttl time.Duration) (Source, error) {
	if ca == nil {
		return nil, errors.New("minting: no authority")
	}
	m := &minted{ca: ca, id: id, ttl: ttl}
	if _, err := m.GetX509SVID(); err != nil {
		return nil, err
	}
	return m, nil
}

type minted struct {
	ca  *Authority
	id  spiffeid.ID
	ttl time.Duration

	mu    sync.Mutex
	svid  *x509svid.SVID
	renew time.Time
}

func (m *minted) GetX509SVID() (*x509svid.SVID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.ca.now()
	if m.svid != nil && now.Before(m.renew) && !now.Before(m.svid.Certificates[0].NotBefore) {
		return m.svid, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("minting %q: %w", m.id, err)
	}
	chain, err := m.ca.Mint(m.id, key.Public(), m.ttl)
	if err != nil {
		return nil, err
	}
	m.svid = &x509svid.SVID{ID: m.id, Certificates: chain, PrivateKey: key}
	m.renew = now.Add(m.ttl / 2)
	return m.svid, nil
}

func (m *minted) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return m.ca.Bundle().GetX509BundleForTrustDomain(td)
}

func (m *minted) Close() error { return nil }
