package pemfile

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Server is the software that reads the files. The errors of its methods are
// of type *fault.Error.
type Server interface {
	// Check has the server judge its configuration as it is on disk now. The
	// reason of its error is not looked at.
	Check(ctx context.Context) error
	// Running says whether there is a server to reload.
	Running(ctx context.Context) error
	// Reload has the running server load the files.
	Reload(ctx context.Context) error
}

// Place is a set of files, the server that reads them, and where it listens.
type Place struct {
	*Set
	Server   Server
	Listener connector.Listener
}

var _ connector.Place = (*Place)(nil)

// Address is where Verify looks.
func (p *Place) Address() string { return p.Listener.Address() }

// Verify looks whether the certificate is served.
func (p *Place) Verify(ctx context.Context, want *x509.Certificate, wait time.Duration) connector.Sight {
	return p.Listener.Verify(ctx, want, wait)
}

// Stage writes the new files beside the old, unless it is clear already that
// the server could not be made to load them. A place where no whole pair is
// installed gets one even if the server does not run or is at odds with its
// configuration: the pair may be what it lacks. The server's check, a process, goes on while the files are written.
func (p *Place) Stage(ctx context.Context, pair connector.Pair) (connector.Staged, error) {
	found, err := p.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	if !found.Whole() {
		return p.Set.Stage(pair)
	}
	if err := p.Server.Running(ctx); err != nil {
		return nil, err
	}
	checked := make(chan error, 1)
	go func() { checked <- p.Server.Check(ctx) }()
	staged, err := p.Set.Stage(pair)
	if broken := <-checked; broken != nil {
		return nil, errors.Join(fault.New(fault.Precondition, connector.ReasonServerConfigBroken,
			"nothing was touched, the server's configuration is wrong already: %w", broken), p.Discard())
	}
	return staged, err
}

// Activate swaps the files, has the server check them, and reloads it.
func (p *Place) Activate(ctx context.Context, staged connector.Staged) error {
	if err := Swap(staged); err != nil {
		return err
	}
	found, err := p.Inspect(ctx)
	if err != nil {
		return err
	}
	if !found.Whole() {
		return fault.New(fault.Precondition, connector.ReasonInstallFailed, "the new files are not a whole pair: somebody else writes them too: %s", found.Problem)
	}
	if err := p.Server.Check(ctx); err != nil {
		return fault.New(fault.Precondition, connector.ReasonConfigRefused, "the server refuses its configuration with the new pair: %w", err)
	}
	first, err := first(staged)
	if err != nil {
		return err
	}
	if err := p.Server.Running(ctx); err != nil {
		if first { // it could not start without the pair
			return nil
		}
		return err
	}
	return p.Server.Reload(ctx)
}

// Restore puts the old files back and reloads a server that runs and accepts
// its configuration. One that does not is left as it is: it still serves what
// it has in memory.
func (p *Place) Restore(ctx context.Context, staged connector.Staged) error {
	if len(staged) == 0 {
		return p.Discard()
	}
	if err := Back(staged); err != nil {
		return err
	}
	if p.Server.Running(ctx) != nil || p.Server.Check(ctx) != nil {
		return nil
	}
	return p.Server.Reload(ctx)
}

// Commit removes the old files.
func (p *Place) Commit(_ context.Context, staged connector.Staged) error { return Drop(staged) }

// first says whether no file was there before.
func first(staged connector.Staged) (bool, error) {
	files, err := decode(staged)
	for _, f := range files {
		if f.Existed {
			return false, err
		}
	}
	return true, err
}
