// Package trust keeps a trust domain's root on disk and writes the identities
// it signs as files. It guarantees that a root is made once and never
// replaced, that files appear whole or not at all, and that a key is never
// readable by others.
package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// The files of a root's directory.
const (
	FileRoot = "root.pem"
	FileKey  = "root-key.pem"
)

const sealedType = "SALLYPORT SEALED PRIVATE KEY"

// Create makes a root in dir, which it makes too. With a box the key is sealed;
// without, it is a PKCS#8 file that only its owner can read.
func Create(dir string, td spiffeid.TrustDomain, box *Box, now func() time.Time) (*identity.Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, Disk(fmt.Errorf("making the trust domain: %w", err))
	}
	ca, err := identity.CreateAuthority(td, now)
	if err != nil {
		return nil, err
	}
	cert, key := ca.Marshal()
	if box != nil {
		sealed, err := box.seal(key)
		if err != nil {
			return nil, fmt.Errorf("sealing the root key: %w", err)
		}
		key = pem.EncodeToMemory(&pem.Block{Type: sealedType, Bytes: sealed})
	}
	// The certificate last: with it the root exists.
	if err := writeNew(filepath.Join(dir, FileKey), key, 0o600); err != nil {
		return nil, err
	}
	return ca, writeNew(filepath.Join(dir, FileRoot), cert, 0o644)
}

// Open reads a root; box may be nil when the key is not sealed.
func Open(dir string, box *Box, now func() time.Time) (*identity.Authority, error) {
	cert, err := os.ReadFile(filepath.Join(dir, FileRoot))
	if err != nil {
		return nil, exit.Errorf(exit.Data, "the trust domain's root cannot be read: %w: restore %s from the backup", err, dir)
	}
	path := filepath.Join(dir, FileKey)
	key, err := readPrivate(path, "trust domain's root key")
	if err != nil {
		return nil, err
	}
	if b, _ := pem.Decode(key); b != nil && b.Type == sealedType {
		if box == nil {
			return nil, exit.Errorf(exit.Usage, "the root key %s is sealed: name the key-encryption key it was sealed with by --kek", path)
		}
		if key, err = box.open(b.Bytes); err != nil {
			return nil, exit.Errorf(exit.Data, "the root key %s is damaged, or was sealed with another key-encryption key: restore both from the same backup", path)
		}
	}
	ca, err := identity.LoadAuthority(cert, key, now)
	if err != nil {
		return nil, exit.Errorf(exit.Data, "the trust domain's root in %s is damaged: %w: restore it from the backup", dir, err)
	}
	return ca, nil
}

// NotBefore is the first moment of the root in dir: no clock of a sane machine
// that has it shows less.
func NotBefore(ca *identity.Authority) time.Time {
	return ca.Bundle().X509Authorities()[0].NotBefore
}

// WriteIdentity signs an SVID for a fresh key and writes svid.pem,
// svid-key.pem and bundle.pem into dir, which it makes with mode 0700. A
// reader between the files sees a pair that does not fit and keeps the old one.
// Only a service may have dnsNames.
func WriteIdentity(dir string, ca *identity.Authority, id spiffeid.ID, ttl time.Duration, dnsNames ...string) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	chain, err := ca.Mint(id, key.Public(), ttl, dnsNames...)
	if err != nil {
		return nil, err
	}
	keyPEM, err := pki.EncodeKeyPEM(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, Disk(fmt.Errorf("writing an identity: %w", err))
	}
	for _, f := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{
		{identity.FileBundle, pki.EncodeChainPEM(ca.Bundle().X509Authorities()), 0o644},
		{identity.FileKey, keyPEM, 0o600},
		{identity.FileSVID, pki.EncodeChainPEM(chain), 0o644},
	} {
		if err := atomicfile.Write(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return nil, Disk(fmt.Errorf("writing an identity: %w", err))
		}
	}
	return chain[0], nil
}

// writeNew writes a file that must not be there yet, whole or not at all.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	if _, err := os.Lstat(path); err == nil {
		return exit.Errorf(exit.Data, "%s exists already and is not replaced", path)
	}
	if err := atomicfile.Write(path, data, mode); err != nil {
		return Disk(fmt.Errorf("writing %s: %w", path, err))
	}
	return nil
}

// Disk gives errors of a full disk and of missing permission their exit code
// and their advice.
func Disk(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return exit.Errorf(exit.Space, "%w: free space there and start again; nothing was lost", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return exit.Errorf(exit.Data, "%w: make it writable for the user this runs as", err)
	}
	return err
}
