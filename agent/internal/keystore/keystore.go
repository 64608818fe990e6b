// Package keystore keeps the private keys that wait for their certificates.
//
// It guarantees that a key is durable before its CSR can leave the host, that
// the same assignment, generation and attempt always gives the same key and the
// same CSR, and that a key lives in files of this host (0600) and nowhere else.
package keystore

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// maxPending bounds the keys that wait for one assignment: attempts that came
// to nothing leave theirs behind.
const maxPending = 8

// ID says which certificate a key is for.
type ID struct {
	Assignment string
	Generation int64
	Attempt    int32
}

func (id ID) name() string {
	return fmt.Sprintf("%s-%016d-%010d", disk.Key(id.Assignment), id.Generation, id.Attempt)
}

// Pending is a key that waits.
type Pending struct {
	ID  ID
	Key crypto.Signer
	CSR []byte // DER
}

// Store keeps the keys of all assignments. It is for one goroutine.
type Store struct{ folder *disk.Folder }

// New keeps keys in the folder.
func New(folder *disk.Folder) *Store { return &Store{folder} }

type record struct {
	ID
	Key []byte // PKCS#8
	CSR []byte
}

// Make gives the key and CSR for id, making them if they are not there or are
// of another type or for other names. They are durable when it returns.
func (s *Store) Make(ctx context.Context, id ID, kt pki.KeyType, names pki.Names) (Pending, error) {
	p, err := s.Get(ctx, id)
	if err == nil && p.fits(kt, names) {
		return p, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Pending{}, err
	}
	key, err := pki.GenerateKey(kt)
	if err != nil {
		return Pending{}, err
	}
	csr, err := pki.NewCSR(key, names)
	if err != nil {
		return Pending{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pending{}, fmt.Errorf("encoding private key: %w", err)
	}
	data, err := json.Marshal(record{id, der, csr})
	if err != nil {
		return Pending{}, fmt.Errorf("encoding private key: %w", err)
	}
	if err := s.folder.Put(id.name(), data); err != nil {
		return Pending{}, err
	}
	return Pending{id, key, csr}, s.trim(id.Assignment)
}

func (p Pending) fits(kt pki.KeyType, names pki.Names) bool {
	csr, err := pki.CheckCSR(p.CSR)
	return err == nil && csr.KeyType == kt && csr.Names.Equal(names)
}

// Get gives the key for id; fs.ErrNotExist if there is none, or none that can
// be read any more.
func (s *Store) Get(ctx context.Context, id ID) (Pending, error) { return s.get(ctx, id.name()) }

func (s *Store) get(ctx context.Context, name string) (Pending, error) {
	data, err := s.folder.Get(ctx, name)
	if err != nil {
		return Pending{}, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		s.folder.SetAside(ctx, name, errors.New("the record of a key cannot be read"))
		return Pending{}, disk.ErrDamaged
	}
	key, err := x509.ParsePKCS8PrivateKey(r.Key)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok || r.name() != name {
		s.folder.SetAside(ctx, name, errors.New("the record holds no readable key of its name"))
		return Pending{}, disk.ErrDamaged
	}
	return Pending{r.ID, signer, r.CSR}, nil
}

// Find gives the key of the assignment whose public part this is, whatever
// generation and attempt it was made for; fs.ErrNotExist if none is.
func (s *Store) Find(ctx context.Context, assignment string, spki string) (Pending, error) {
	names, err := s.of(assignment)
	if err != nil {
		return Pending{}, err
	}
	for _, n := range names {
		p, err := s.get(ctx, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Pending{}, err
		}
		if pki.SPKIHash(p.Key.Public()) == spki {
			return p, nil
		}
	}
	return Pending{}, fmt.Errorf("no key of the assignment is for the certificate: %w", fs.ErrNotExist)
}

// Forget erases the keys of the assignment up to and with the generation.
func (s *Store) Forget(assignment string, generation int64) error {
	names, err := s.of(assignment)
	if err != nil {
		return err
	}
	last := ID{assignment, generation, 1<<31 - 1}.name()
	for _, n := range names {
		if n <= last {
			err = errors.Join(err, s.folder.Remove(n))
		}
	}
	return err
}

// Keep erases the keys of all assignments but these, and says how many that were. What has no name of ours stays.
func (s *Store) Keep(assignments map[string]bool) (erased int, err error) {
	kept := map[string]bool{}
	for a := range assignments {
		kept[disk.Key(a)] = true
	}
	names, err := s.folder.Names()
	for _, n := range names {
		if key, _, ours := strings.Cut(n, "-"); ours && len(key) == len(disk.Key("")) && !kept[key] {
			err = errors.Join(err, s.folder.Remove(n))
			erased++
		}
	}
	return erased, err
}

// Count says how many keys wait.
func (s *Store) Count() (int, error) {
	names, err := s.folder.Names()
	return len(names), err
}

func (s *Store) of(assignment string) ([]string, error) {
	names, err := s.folder.Names()
	prefix := disk.Key(assignment) + "-"
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) }), err
}

func (s *Store) trim(assignment string) error {
	names, err := s.of(assignment)
	for len(names) > maxPending {
		err = errors.Join(err, s.folder.Remove(names[0]))
		names = names[1:]
	}
	return err
}
