package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

const maxKeyFile = 64 << 10

// sealPurpose binds the sealed root key to its place.
var sealPurpose = []byte("sallyport/10/trust-root/root-key")

// Box seals the root key with the key-encryption key in a file: a Tink keyset,
// the same file that the issuer seals its CA keys with.
type Box struct{ aead tink.AEAD }

// CreateBox makes a new key file with mode 0600. It never replaces one.
func CreateBox(path string) (*Box, error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making the key-encryption key: %w", err)
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b)); err != nil {
		return nil, fmt.Errorf("making the key-encryption key: %w", err)
	}
	b.WriteByte('\n')
	if err := writeNew(path, b.Bytes(), 0o600); err != nil {
		return nil, err
	}
	return newBox(h)
}

// OpenBox reads the key file. One that others can read, that is damaged or not
// there is refused.
func OpenBox(path string) (*Box, error) {
	data, err := readPrivate(path, "key-encryption key")
	if err != nil {
		return nil, err
	}
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(data)))
	if err == nil {
		if b, err := newBox(h); err == nil {
			return b, nil
		}
	}
	// Tink's own words could quote the key.
	return nil, exit.Errorf(exit.Data, "the key-encryption key %s is damaged: restore it from the backup", path)
}

func newBox(h *keyset.Handle) (*Box, error) {
	kek, err := aead.New(h)
	if err != nil {
		return nil, fmt.Errorf("using the key-encryption key: %w", err)
	}
	return &Box{aead: aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), kek)}, nil
}

func (b *Box) seal(plain []byte) ([]byte, error) { return b.aead.Encrypt(plain, sealPurpose) }

func (b *Box) open(sealed []byte) ([]byte, error) { return b.aead.Decrypt(sealed, sealPurpose) }

// readPrivate reads a small secret file and refuses one that others can read.
func readPrivate(path, what string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, exit.Errorf(exit.Data, "the %s %s is missing: restore it from the backup; without it what it protects is lost", what, path)
	case err != nil:
		return nil, exit.Errorf(exit.Data, "the %s cannot be read: %w", what, err)
	case !info.Mode().IsRegular() || info.Size() > maxKeyFile:
		return nil, exit.Errorf(exit.Data, "the %s %s is no key file", what, path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, exit.Errorf(exit.Data, "the %s %s can be used by others (mode %04o): chmod 600 %s, and think about who has read it", what, path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, exit.Errorf(exit.Data, "no permission to read the %s %s: run as its owner", what, path)
	}
	if err != nil {
		return nil, exit.Errorf(exit.Data, "the %s cannot be read: %w", what, err)
	}
	return data, nil
}
