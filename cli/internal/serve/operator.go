package serve

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/identity"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

// operator keeps the operator's credential in the data directory fresh.
type operator struct {
	dir      string
	ca       *identity.Authority
	id       spiffeid.ID
	lifetime time.Duration
	now      func() time.Time
	log      *slog.Logger
}

// renew writes a new credential when there is none, when it is not of this
// root or operator, or after half its life.
func (o *operator) renew(ctx context.Context) error {
	if !o.due() {
		return nil
	}
	cert, err := trust.WriteIdentity(o.dir, o.ca, o.id, o.lifetime)
	if err != nil {
		return err
	}
	o.log.InfoContext(ctx, "wrote the operator's credential", "dir", o.dir, "spiffe_id", o.id.String(), "not_after", cert.NotAfter)
	return nil
}

func (o *operator) due() bool {
	cert := o.current()
	if cert == nil || len(cert.URIs) != 1 || cert.URIs[0].String() != o.id.String() {
		return true
	}
	if err := cert.CheckSignatureFrom(o.ca.Bundle().X509Authorities()[0]); err != nil {
		return true
	}
	now := o.now()
	return now.Before(cert.NotBefore) || now.After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore)/2))
}

// current is the certificate in the directory, nil when it cannot be used.
func (o *operator) current() *x509.Certificate {
	src, err := identity.NewFiles(o.dir, nil)
	if err != nil {
		return nil
	}
	defer func() { _ = src.Close() }()
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil
	}
	return svid.Certificates[0]
}

// contexts lets the command line find the installation: a file beside the
// credential, and the user's own file of contexts, which is not touched when
// it has a context of that name for another installation.
func (o *operator) contexts(ctx context.Context, userFile, server string) error {
	name := o.id.TrustDomain().Name()
	own := clientconfig.File{CurrentContext: name, Contexts: []clientconfig.Context{{Name: name, Server: server, Identity: "."}}}
	if err := own.Save(filepath.Join(o.dir, "config.yaml")); err != nil {
		return trust.Disk(err)
	}
	if userFile == "" {
		o.log.WarnContext(ctx, "no home directory, so no context was written: name the own one", clientconfig.EnvFile, filepath.Join(o.dir, "config.yaml"))
		return nil
	}
	changed, err := clientconfig.Put(userFile, clientconfig.Context{Name: name, Server: server, Identity: o.dir})
	var taken *clientconfig.Taken
	switch {
	case errors.As(err, &taken):
		o.log.WarnContext(ctx, "the context of this name belongs to another installation and was left alone: use the own file",
			"context", taken.Name, "file", taken.Path, "its_identity", taken.Identity, clientconfig.EnvFile, filepath.Join(o.dir, "config.yaml"))
	case err != nil: // the command line still works by the file beside the credential
		o.log.WarnContext(ctx, "the context could not be written: use the own file", "error", err, clientconfig.EnvFile, filepath.Join(o.dir, "config.yaml"))
	case changed:
		o.log.InfoContext(ctx, "wrote a context for the command line", "context", name, "file", userFile)
	}
	return nil
}
