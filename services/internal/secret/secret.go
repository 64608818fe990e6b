// Package secret encrypts what must not lie readable in a database: CA keys, account keys.
//
// It guarantees that a sealed value opens only with the same key-encryption key and the same associated data, so that a
// value moved to another row or another purpose is refused. Tink's AES256-GCM with a data key per value: the key-encryption
// key, from a file of its own, encrypts 32 random bytes and nothing else. It keeps no backup of the key: without the file
// every sealed value is lost.
package secret

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

const maxKeyFile = 64 << 10

// Box seals and opens values. It may be used concurrently.
type Box struct{ aead tink.AEAD }

// AAD binds a value to its place: what it is for and the row it lies in.
func AAD(purpose, row string) []byte {
	return fmt.Appendf(nil, "sallyport/%d/%s/%s", len(purpose), purpose, row)
}

// Create makes a new key file, readable by its owner alone, in an existing directory. It never replaces a file.
func Create(path string) (*Box, error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&b)); err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	b.WriteByte('\n')
	if err := create(path, b.Bytes()); err != nil {
		return nil, err
	}
	return newBox(h)
}

// create writes beside path, then links into place: a crash leaves no half key under the name, and a key that is there stays.
func create(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".kek-*") // 0600
	if err != nil {
		return fmt.Errorf("writing key file %s: %w", path, err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing key file %s: %w", path, err)
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return refuse("key file %s exists already: what is encrypted under it would be lost", path)
	} else if err != nil {
		return fmt.Errorf("writing key file %s: %w", path, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("writing key file %s: %w", path, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("writing key file %s: %w", path, err)
	}
	return nil
}

// Open reads the key file. It refuses one that others than its owner can read, and one that is not a key.
func Open(path string) (*Box, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, refuse("key file %s does not exist: restore it from the backup; a new key cannot open what the old one sealed", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, refuse("no permission to read key file %s: make it owned by the user the service runs as", path)
	case err != nil:
		return nil, fmt.Errorf("reading key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading key file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, refuse("key file %s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, refuse("key file %s can be used by others (mode %04o): chmod 600 %s", path, mode, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading key file: %w", err)
	}
	box, err := parse(data)
	if err != nil {
		return nil, refuse("key file %s is damaged: restore it from the backup", path)
	}
	return box, nil
}

// parse does not pass on what Tink says about a bad key, which could quote it.
func parse(data []byte) (*Box, error) {
	if len(data) > maxKeyFile {
		return nil, errors.New("too large")
	}
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(data)))
	if err != nil {
		return nil, errors.New("not a keyset")
	}
	return newBox(h)
}

func newBox(h *keyset.Handle) (*Box, error) {
	kek, err := aead.New(h)
	if err != nil {
		return nil, fmt.Errorf("using the key: %w", err)
	}
	return &Box{aead: aead.NewKMSEnvelopeAEAD2(aead.AES256GCMKeyTemplate(), kek)}, nil
}

// Seal encrypts plaintext for the place that aad names; see AAD.
func (b *Box) Seal(aad, plaintext []byte) ([]byte, error) {
	sealed, err := b.aead.Encrypt(plaintext, aad)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return sealed, nil
}

// Open decrypts what Seal gave for the same aad; anything else is fault.Permanent SECRET_UNREADABLE.
func (b *Box) Open(aad, sealed []byte) ([]byte, error) {
	plaintext, err := b.aead.Decrypt(sealed, aad)
	if err != nil {
		return nil, fault.New(fault.Permanent, "SECRET_UNREADABLE", "a sealed value is damaged, or was sealed with another key file or for another place")
	}
	return plaintext, nil
}

const reasonRefused = "KEY_FILE_REFUSED"

// Refused says that it is the file itself that is in the way: one that is there already, or cannot be used.
func Refused(err error) bool { return err != nil && fault.Of(err).Reason == reasonRefused }

func refuse(format string, args ...any) error {
	return fault.New(fault.Precondition, reasonRefused, format, args...)
}
