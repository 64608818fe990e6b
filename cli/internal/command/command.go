// Package command is the sallyport command line: what an operator types, and
// "sallyport serve". Every command ends in an exit code of package exit and,
// when it fails, in one line that says what to do. Only what an environment
// hands in is read: no command looks at the process around it. The package is
// long because there are many commands; each has a file and none needs another.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/fault"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// program begins every error line.
const program = "sallyport"

// Environment is all that a command sees of the world around it.
type Environment struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Getenv func(string) string
	Args   []string // without the program's name
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Main runs one command and gives the exit code. SIGINT and SIGTERM end it
// orderly; a second signal kills the process.
func Main(env Environment) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // the second signal finds nobody listening
	return Run(ctx, env)
}

// Run is Main without signals.
func Run(ctx context.Context, env Environment) int {
	a := &app{env: env, now: time.Now}
	if env.Now != nil {
		a.now = env.Now
	}
	defer a.close()
	root := a.root()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return int(exit.OK)
	}
	if errors.Is(err, syscall.EPIPE) { // the reader, such as head, has seen enough
		return int(exit.OK)
	}
	exit.Report(env.Err, program, err)
	return int(exit.Of(err))
}

// app is what the commands share.
type app struct {
	env Environment
	now func() time.Time

	contextName string
	server      string
	identity    string
	verbose     bool
	client      *connect.Client
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   program,
		Short: "Certificates for networks that let nothing in",
		Long: `Sallyport manages the life of TLS certificates on hosts that accept no inbound
connection. "sallyport serve" runs all services in one process; every other
command talks to them as an operator.

First steps:
  sallyport serve --data ./data          run everything; leave it running
  sallyport token create --host web-1    let one agent in
  sallyport apply -f site.yaml           say what is wanted ("sallyport explain" shows the fields)
  sallyport watch deployment shop        follow it until it is served

When something is wrong:
  sallyport get findings                 what is wrong with certificates and hosts
  sallyport describe deployment shop     state, reason and next attempt of each target
  sallyport doctor                       does everything fit together?

An error ends in a word in capitals: docs/errors.md says what it means and what to do.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              usage(cobra.NoArgs),
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetArgs(a.env.Args)
	root.SetIn(a.env.In)
	root.SetOut(a.env.Out)
	root.SetErr(a.env.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return exit.Errorf(exit.Usage, "%w: see \"%s --help\"", err, cmd.CommandPath())
	})
	fs := root.PersistentFlags()
	fs.StringVar(&a.contextName, "context", "", "context to use instead of the current one")
	fs.StringVar(&a.server, "server", "", "host:port to call instead of the context's")
	fs.BoolVarP(&a.verbose, "verbose", "v", false, "print on standard error the trace id that logs, audit records and traces have of this command")
	fs.StringVar(&a.identity, "identity", "", "directory with svid.pem, svid-key.pem and bundle.pem to use instead of the context's")
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.AddGroup(
		&cobra.Group{ID: groupWork, Title: "Daily work:"},
		&cobra.Group{ID: groupFleet, Title: "Hosts and evidence:"},
		&cobra.Group{ID: groupSetup, Title: "Setting up:"},
	)
	a.add(root, groupWork, a.applyCommand(), a.getCommand(), a.describeCommand(), a.watchCommand(), a.renewCommand(), a.deleteCommand(), a.explainCommand())
	a.add(root, groupFleet, a.tokenCommand(), a.agentCommand(), a.certificateCommand(), a.requestCommand(), a.authorityCommand(), a.auditCommand(), a.doctorCommand())
	a.add(root, groupSetup, a.serveCommand(), a.backupCommand(), a.restoreCommand(), a.trustCommand(), a.configCommand(), a.versionCommand())
	root.AddCommand(a.docsCommand(), exitCodesTopic())
	root.SetHelpCommandGroupID(groupSetup)
	root.SetCompletionCommandGroupID(groupSetup)
	teach(root)
	return root
}

const (
	groupWork  = "work"
	groupFleet = "fleet"
	groupSetup = "setup"
)

func (a *app) add(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// usage says of arguments that check refuses which is too many, or which is missing.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) == nil {
			return nil
		}
		for n, arg := range args {
			switch {
			case check(cmd, args[:n]) != nil:
			case cmd.HasSubCommands():
				return exit.Errorf(exit.Usage, "%q is no command of \"%s\"%s", arg, cmd.CommandPath(), suggestions(cmd, arg))
			default:
				return exit.Errorf(exit.Usage, "%q is not expected here: see \"%s --help\"", arg, cmd.CommandPath())
			}
		}
		example, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n")
		return exit.Errorf(exit.Usage, "\"%s\" needs %s, as in: %s", cmd.CommandPath(), operand(cmd.Use), example)
	}
}

// operand is the word in a use line that stands for an argument: of "restore --data DIR FILE" it is FILE.
func operand(use string) string {
	flag := true // the command's name
	for word := range strings.FieldsSeq(use) {
		word = strings.Trim(word, "(|)")
		switch {
		case word == "":
		case flag:
			flag = false // its value
		case strings.HasPrefix(word, "-"):
			flag = true
		default:
			return strings.TrimSuffix(word, "...")
		}
	}
	return ""
}

// parent makes a command that only has others below it.
func parent(use, short, long string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return exit.Errorf(exit.Usage, "\"%s\" needs one of: %s", cmd.CommandPath(), strings.Join(children(cmd), ", "))
		},
	}
	cmd.AddCommand(below...)
	return cmd
}

func children(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

func suggestions(cmd *cobra.Command, arg string) string {
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(arg); len(near) > 0 {
		return fmt.Sprintf(": did you mean %q?", near[0])
	}
	return ": want one of " + strings.Join(children(cmd), ", ")
}

// connect gives the one client of this run.
func (a *app) connect() (*connect.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	at, err := a.place()
	if err != nil {
		return nil, err
	}
	a.client, err = connect.Open(at, a.now)
	if err == nil && a.verbose {
		fmt.Fprintf(a.env.Err, "trace id %s\n", a.client.TraceID())
	}
	return a.client, err
}

// place is the context in use, with what flags override.
func (a *app) place() (clientconfig.Context, error) {
	var at clientconfig.Context
	if a.server != "" {
		if _, _, err := net.SplitHostPort(a.server); err != nil {
			return at, exit.Errorf(exit.Usage, "--server %q: want host:port", a.server)
		}
	}
	if a.server == "" || a.identity == "" || a.contextName != "" {
		path, err := clientconfig.Path(a.env.Getenv)
		if err != nil {
			return at, exit.With(exit.Usage, err)
		}
		f, err := clientconfig.Load(path)
		if err != nil {
			return at, err
		}
		name := a.contextName
		if name == "" {
			name = f.CurrentContext
		}
		if name == "" {
			return at, exit.Errorf(exit.NotFound, "no current context in %s: start \"sallyport serve\" on this machine, choose one by --context, or give --server and --identity", path)
		}
		found, ok := f.Find(name)
		if !ok {
			return at, exit.With(exit.NotFound, f.Missing(name, path))
		}
		at = found.Resolved(path)
	}
	if a.server != "" {
		at.Server, at.Servers = a.server, nil
	}
	if a.identity != "" {
		at.Identity = a.identity
	}
	return at, nil
}

func (a *app) close() {
	if a.client != nil {
		_ = a.client.Close() // the answers are in already
	}
}

// colours says whether to colour what goes to standard output (no-color.org).
func (a *app) colours() bool {
	return a.env.Getenv("NO_COLOR") == "" && a.env.Getenv("TERM") != "dumb" && output.Terminal(a.env.Out)
}

// asked is what a person answers to a yes-or-no question; without a terminal
// nobody is there to ask.
func (a *app) asked(question string) (bool, error) {
	in, ok := a.env.In.(*os.File)
	if !ok || !isTerminal(in) {
		return false, exit.Errorf(exit.Usage, "%s Nobody can be asked here: give --yes to go on", question)
	}
	fmt.Fprintf(a.env.Err, "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(in, &answer); err != nil {
		return false, nil //nolint:nilerr // no answer is a no
	}
	switch strings.ToLower(answer) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}

// span is a flag for a duration that may be given in days.
type span struct{ config.Duration }

func (s *span) Set(text string) (err error) {
	s.Duration, err = config.ParseDuration(text)
	return err
}

func (s *span) Type() string { return "duration" }

func (s *span) String() string {
	if s.Duration == 0 {
		return ""
	}
	return s.Duration.String()
}

// notFound says whether err is a service's NOT_FOUND.
func notFound(err error) bool { return err != nil && fault.KindOf(err) == fault.NotFound }
