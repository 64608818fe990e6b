package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// Identities lists the directories that hold an identity: dir itself, or those in it.
func Identities(dir string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(dir, identity.FileSVID)); err == nil {
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, Disk(fmt.Errorf("looking for identities: %w", err))
	}
	var found []string
	for _, e := range entries {
		one := filepath.Join(dir, e.Name())
		if _, err := os.Stat(filepath.Join(one, identity.FileSVID)); err == nil {
			found = append(found, one)
		}
	}
	if len(found) == 0 {
		return nil, exit.Errorf(exit.NotFound, "there is no identity in %s: make one by \"sallyport trust issue\"", dir)
	}
	return found, nil
}

// Renew writes a new key and SVID of the same name over the identity in dir when half of its life is over, for the owner it
// had. It gives the certificate that lies there then, and whether it is new.
func Renew(dir string, ca *identity.Authority, ttl time.Duration, now time.Time) (cert *x509.Certificate, id spiffeid.ID, renewed bool, err error) {
	path := filepath.Join(dir, identity.FileSVID)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, id, false, Disk(fmt.Errorf("reading an identity: %w", err))
	}
	chain, err := pki.ParseChainPEM(data)
	if err != nil || len(chain) == 0 {
		return nil, id, false, exit.Errorf(exit.Data, "%s holds no certificate: make the identity anew by \"sallyport trust issue\"", path)
	}
	if id, err = x509svid.IDFromCert(chain[0]); err != nil || !id.MemberOf(ca.TrustDomain()) {
		return nil, id, false, exit.Errorf(exit.Data, "%s is no identity of the trust domain %q: name the directory of its own root", path, ca.TrustDomain().Name())
	}
	if half := chain[0].NotBefore.Add(chain[0].NotAfter.Sub(chain[0].NotBefore) / 2); now.Before(half) {
		return chain[0], id, false, nil
	}
	owner, err := os.Stat(filepath.Join(dir, identity.FileKey))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, id, false, Disk(fmt.Errorf("reading an identity: %w", err))
	}
	extra := slices.DeleteFunc(slices.Clone(chain[0].DNSNames), func(name string) bool { return strings.HasSuffix(name, identity.ServerNameSuffix) })
	if cert, err = WriteIdentity(dir, ca, id, ttl, extra...); err != nil {
		return nil, id, false, err
	}
	if owner != nil {
		for _, name := range []string{identity.FileSVID, identity.FileKey, identity.FileBundle} {
			if err := keepOwner(filepath.Join(dir, name), owner); err != nil {
				return nil, id, true, Disk(fmt.Errorf("giving an identity to its owner: %w", err))
			}
		}
	}
	return cert, id, true, nil
}
