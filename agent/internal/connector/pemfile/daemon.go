package pemfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/command"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/process"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/internal/fault"
)

// Daemon is server software as the host's configuration describes it. The zero
// value checks nothing and reloads nothing.
type Daemon struct {
	// Judge has the software check its configuration; nil for none.
	Judge Judge
	// ChecksFirst says that the process, told by the signal, makes the same
	// check before it loads anything, and goes on as it was where that fails.
	ChecksFirst bool
	// Hook reloads it; nil to use Process.
	Hook *command.Command
	// Process is the running server and Signal what makes it reload; nil when
	// there is nothing to signal.
	Process *process.Server
	Signal  syscall.Signal
}

// Judge is a command, or what comes to the same.
type Judge interface {
	// Program says whether there is a program to run.
	Program() error
	// Run fails with what the software says about its configuration.
	Run(ctx context.Context) error
	// String shows the command.
	String() string
}

var _ Server = Daemon{}

// Check has the software check its configuration.
func (d Daemon) Check(ctx context.Context) error {
	if d.Judge == nil {
		return nil
	}
	if err := d.Judge.Run(ctx); err != nil {
		return fault.New(fault.Precondition, connector.ReasonServerConfigBroken, "%w", err)
	}
	return nil
}

// Careful says that the server checks for itself what it is told to load. Of a
// hook that is not known.
func (d Daemon) Careful() bool { return d.ChecksFirst && d.Hook == nil && d.Process != nil }

// Running says whether there is a process to signal. A hook is taken to know.
func (d Daemon) Running(ctx context.Context) error {
	if d.Hook != nil || d.Process == nil {
		return nil
	}
	if err := d.Process.Running(ctx); err != nil {
		return fault.New(fault.Precondition, connector.ReasonServerNotRunning, "there is no server to reload: %w", err)
	}
	return nil
}

// Reload runs the hook or sends the signal.
func (d Daemon) Reload(ctx context.Context) error {
	switch {
	case d.Hook != nil:
		if err := d.Hook.Run(ctx); err != nil {
			return fault.New(fault.Precondition, connector.ReasonHookFailed, "the reload hook failed: %w", err)
		}
	case d.Process != nil:
		if err := d.Process.Signal(ctx, d.Signal); err != nil {
			return fault.New(fault.Precondition, connector.ReasonReloadFailed, "telling the server to reload: %w", err)
		}
	}
	return nil
}

// Workers gives a function that says whether any of the server's processes that
// accept connections now still does; nil where that cannot be told.
func (d Daemon) Workers() (accept func() bool) {
	if d.Hook != nil || d.Process == nil {
		return nil
	}
	workers := d.Process.Workers()
	if len(workers) == 0 {
		return nil
	}
	return func() bool { return d.Process.Accepting(workers) }
}

// Troubles says what of the host's configuration cannot work.
func (d Daemon) Troubles(ctx context.Context) []string {
	var out []string
	if d.Judge != nil {
		if err := d.Judge.Program(); err != nil {
			out = append(out, err.Error())
		} else if err := d.Judge.Run(ctx); err != nil {
			out = append(out, fmt.Sprintf("the server's own check says: %v", err))
		}
	}
	if d.Hook != nil {
		if err := d.Hook.Program(); err != nil {
			out = append(out, fmt.Sprintf("reload hook: %v", err))
		}
	}
	if err := d.Running(ctx); err != nil {
		out = append(out, err.Error())
	}
	return out
}

// Troubles says what of the allowed folders cannot work.
func (r Rules) Troubles() []string {
	var out []string
	for _, folder := range r.Allow {
		if err := writable(folder); err != nil {
			out = append(out, err.Error())
		}
	}
	return out
}

func writable(folder string) error {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	const probe = ".sallyport-check"
	err = disk.Create(root, probe, nil, 0o600, nil)
	if err == nil {
		err = root.Remove(probe)
	}
	if err = errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("%s cannot be written: %w", folder, err)
	}
	return nil
}

// Touches says in words what an assignment may touch.
func (d Daemon) Touches(r Rules) []string {
	var out []string
	for _, folder := range r.Allow {
		out = append(out, "may write files below "+folder)
	}
	if d.Judge != nil {
		out = append(out, "has the configuration checked by: "+d.Judge.String())
	}
	switch {
	case d.Hook != nil:
		out = append(out, "reloads by: "+d.Hook.String())
	case d.Process != nil:
		out = append(out, fmt.Sprintf("reloads by signal %d to the %s named in %s", int(d.Signal), d.Process.Program, d.Process.PIDFile))
	}
	return out
}
