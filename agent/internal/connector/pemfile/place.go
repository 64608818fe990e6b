package pemfile

import (
	"context"
	"crypto/x509"
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
	// Careful says that the running server makes the same check before it loads
	// anything, and goes on as it was where that fails.
	Careful() bool
	// Running says whether there is a server to reload.
	Running(ctx context.Context) error
	// Reload has the running server load the files.
	Reload(ctx context.Context) error
	// Workers gives a function that says whether any of the server's processes
	// that accept connections now still does; nil where that cannot be told.
	Workers() (accept func() bool)
}

const (
	// overlap bounds the waiting for old workers: one that hangs accepts nothing.
	overlap  = time.Second
	nextLook = time.Millisecond
)

// Place is a set of files, the server that reads them, and where it listens.
type Place struct {
	*Set
	Server   Server
	Listener connector.Listener

	former func() bool // whether the workers from before the last reload accept; nil where that cannot be told
}

var _ connector.Place = (*Place)(nil)

// Address is where Verify looks.
func (p *Place) Address() string { return p.Listener.Address() }

// Verify looks whether the certificate is served. What is seen while old
// workers still accept beside new ones proves nothing, so they are waited for.
func (p *Place) Verify(ctx context.Context, want *x509.Certificate, wait time.Duration) connector.Sight {
	begun := time.Now()
	alone := wait > 0 && p.former != nil && p.Address() != "" && p.retired(ctx, min(overlap, wait/2))
	return p.Listener.Verify(ctx, want, max(wait-time.Since(begun), 0), alone)
}

// retired waits until none of the former workers accepts any more; it is false
// when the time is up before.
func (p *Place) retired(ctx context.Context, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for p.former() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(nextLook):
		}
	}
	return true
}

func (p *Place) reload(ctx context.Context) error {
	p.former = p.Server.Workers()
	return p.Server.Reload(ctx)
}

// reloadChecked reloads a server that runs and accepts its configuration. One
// that is careful is told at once: then the check is for its words.
func (p *Place) reloadChecked(ctx context.Context) (told, refused error) {
	if !p.Server.Careful() {
		if err := p.Server.Check(ctx); err != nil {
			return nil, err
		}
		return p.reload(ctx), nil
	}
	checked := make(chan error, 1)
	go func() { checked <- p.Server.Check(ctx) }()
	told = p.reload(ctx)
	if refused = <-checked; refused != nil {
		p.former = nil // they may stay
	}
	return told, refused
}

// Stage writes the new files beside the old, unless it is clear already that
// the server could not be made to load them. A place where no whole pair is
// installed gets one even if the server does not run: the pair may be what it
// lacks.
func (p *Place) Stage(ctx context.Context, pair connector.Pair) (connector.Staged, error) {
	found, err := p.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	if found.Whole() {
		if err := p.Server.Running(ctx); err != nil {
			return nil, err
		}
	}
	return p.Set.Stage(pair)
}

// Activate swaps the files, has the server check them, and reloads it. No
// server loads anything unless it accepts exactly that.
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
	first, err := first(staged)
	if err != nil {
		return err
	}
	var told, refused error
	dead := p.Server.Running(ctx)
	if dead == nil {
		told, refused = p.reloadChecked(ctx)
	} else {
		refused = p.Server.Check(ctx)
	}
	switch {
	case refused != nil:
		return fault.New(fault.Precondition, connector.ReasonConfigRefused, "the server refuses its configuration with the new pair: %w", refused)
	case first && dead != nil: // it could not start without the pair
		return nil
	case dead != nil:
		return dead
	}
	return told
}

// Restore puts the old files back and reloads a server that runs and accepts
// its configuration. One that does not is left as it is: it still serves what
// it has in memory. That it refuses its configuration with the old files too is
// an error of reason SERVER_CONFIG_BROKEN.
func (p *Place) Restore(ctx context.Context, staged connector.Staged) error {
	if len(staged) == 0 {
		return p.Discard()
	}
	if err := Back(staged); err != nil {
		return err
	}
	if p.Server.Running(ctx) != nil {
		return nil
	}
	told, refused := p.reloadChecked(ctx)
	if refused != nil {
		return fault.New(fault.Precondition, connector.ReasonServerConfigBroken,
			"the server goes on as it was, its configuration is wrong without the new pair too: %w", refused)
	}
	return told
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
