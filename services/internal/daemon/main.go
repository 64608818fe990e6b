package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/sallyport-pki/sallyport/internal/boot"
)

const help = `Runs the %[1]s service as a program of its own, until SIGTERM or SIGINT.
("sallyport serve" runs all four services in one process.)

Usage:
  sallyport-%[1]s --config /etc/sallyport/%[1]s.yaml

Flags:
  --config FILE   configuration file (default /etc/sallyport/%[1]s.yaml)
  --version       print the version and exit
  --help          print this and exit

The configuration names the service's identity (make one by
"sallyport trust issue service/%[1]s"), its database, the NATS broker and the other
services. Example: deploy/config/%[1]s.yaml. All settings: docs/reference/configuration.md.

Exit codes: 0 stopped in good order; 1 something went wrong, and the log says what:
a supervisor should start it again; 2 the configuration or the command line is wrong:
starting it again does not help.
`

// Main is the main function of a service's program. Its command line has --config, by default /etc/sallyport/<name>.yaml, and
// --version; run is given the path of the configuration file. Main does not return.
func Main(name string, run func(ctx context.Context, file string) error) {
	boot.Main(func(ctx context.Context) error {
		return start(ctx, name, os.Args[1:], os.Stdout, run)
	})
}

// usageError is what is wrong with the command line.
type usageError struct{ error }

func (usageError) ExitCode() int { return boot.ExitConfig }

func start(ctx context.Context, name string, args []string, out io.Writer, run func(ctx context.Context, file string) error) error {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	file := fs.String("config", "/etc/sallyport/"+name+".yaml", "")
	version := fs.Bool("version", false, "")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, err := fmt.Fprintf(out, help, name)
		return err
	case err != nil:
		return usageError{fmt.Errorf("%w: see \"sallyport-%s --help\"", err, name)}
	case fs.NArg() > 0:
		return usageError{fmt.Errorf("%q is not expected here: see \"sallyport-%s --help\"", fs.Arg(0), name)}
	case *version:
		_, err := fmt.Fprintln(out, boot.Version())
		return err
	}
	return run(ctx, *file)
}
