package command

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// contexts loads the contexts file.
func (a *app) contexts() (string, *clientconfig.File, error) {
	path, err := clientconfig.Path(a.env.Getenv)
	if err != nil {
		return "", nil, exit.With(exit.Usage, err)
	}
	f, err := clientconfig.Load(path)
	return path, f, err
}

// updateContexts changes the contexts file.
func (a *app) updateContexts(change func(path string, f *clientconfig.File) error) error {
	path, err := clientconfig.Path(a.env.Getenv)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	return clientconfig.Update(path, func(f *clientconfig.File) (bool, error) {
		err := change(path, f)
		return err == nil, err
	})
}

func (a *app) configCommand() *cobra.Command {
	return parent("config", "Choose which installation to talk to",
		`Contexts say which server to call and as whom. They are kept in the file that
$SALLYPORT_CONFIG names, else in ~/.config/sallyport/config.yaml. "sallyport
serve" adds one for its own installation, named after the trust domain.

  current_context: sallyport.local
  contexts:
    - name: sallyport.local
      server: 127.0.0.1:8443            # all services
      servers: {audit: 10.0.0.7:8443}   # or some of them elsewhere
      identity: /var/lib/sallyport/operator`,
		a.getContextsCommand(), a.useContextCommand(), a.setContextCommand(), a.deleteContextCommand(), a.currentContextCommand(), a.viewCommand())
}

func (a *app) getContextsCommand() *cobra.Command {
	var noHeaders bool
	cmd := &cobra.Command{
		Use: "get-contexts", Short: "Show all contexts", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			path, f, err := a.contexts()
			if err != nil {
				return err
			}
			t := &output.Table{Columns: []string{"CURRENT", "NAME", "SERVER", "IDENTITY"}, NoHeaders: noHeaders}
			for _, c := range f.Contexts {
				current := " "
				if c.Name == f.CurrentContext {
					current = "*"
				}
				t.Add(current, c.Name, c.Server, c.Identity)
			}
			if t.Len() == 0 {
				fmt.Fprintf(a.env.Err, "No contexts in %s.\n", path)
			}
			return t.Write(a.env.Out)
		},
	}
	cmd.Flags().BoolVar(&noHeaders, "no-headers", false, "leave the line with the column names out")
	return cmd
}

func (a *app) useContextCommand() *cobra.Command {
	return &cobra.Command{
		Use: "use-context NAME", Short: "Make a context the current one", Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.updateContexts(func(path string, f *clientconfig.File) error {
				if _, ok := f.Find(args[0]); !ok {
					return exit.With(exit.NotFound, f.Missing(args[0], path))
				}
				f.CurrentContext = args[0]
				return nil
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.env.Out, "Switched to context %q.\n", args[0])
			return err
		},
		ValidArgsFunction: a.completeContexts,
	}
}

func (a *app) setContextCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set-context NAME --server HOST:PORT --identity DIR", Short: "Add or change a context", Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			identity, err := absolute(a.identity)
			if err != nil {
				return err
			}
			had := false
			err = a.updateContexts(func(_ string, f *clientconfig.File) error {
				var c clientconfig.Context
				c, had = f.Find(args[0])
				c.Name, c.Server, c.Identity = args[0], cmp.Or(a.server, c.Server), cmp.Or(identity, c.Identity)
				f.Contexts = slices.DeleteFunc(f.Contexts, func(o clientconfig.Context) bool { return o.Name == c.Name })
				f.Contexts = append(f.Contexts, c)
				f.CurrentContext = cmp.Or(f.CurrentContext, c.Name)
				if err := f.Validate(); err != nil {
					return exit.Errorf(exit.Usage, "context %q: give --server and --identity: %w", c.Name, err)
				}
				return nil
			})
			if err != nil {
				return err
			}
			word := "created"
			if had {
				word = "changed"
			}
			_, err = fmt.Fprintf(a.env.Out, "Context %q %s.\n", args[0], word)
			return err
		},
		ValidArgsFunction: a.completeContexts,
	}
}

func (a *app) deleteContextCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete-context NAME", Short: "Remove a context; the identity's files stay", Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.updateContexts(func(path string, f *clientconfig.File) error {
				if _, ok := f.Find(args[0]); !ok {
					return exit.With(exit.NotFound, f.Missing(args[0], path))
				}
				f.Contexts = slices.DeleteFunc(f.Contexts, func(o clientconfig.Context) bool { return o.Name == args[0] })
				if f.CurrentContext == args[0] {
					f.CurrentContext = ""
				}
				return nil
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.env.Out, "Context %q removed.\n", args[0])
			return err
		},
		ValidArgsFunction: a.completeContexts,
	}
}

func (a *app) currentContextCommand() *cobra.Command {
	return &cobra.Command{
		Use: "current-context", Short: "Show the current context's name", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			path, f, err := a.contexts()
			if err != nil {
				return err
			}
			if f.CurrentContext == "" {
				return exit.Errorf(exit.NotFound, "no current context in %s", path)
			}
			_, err = fmt.Fprintln(a.env.Out, f.CurrentContext)
			return err
		},
	}
}

func (a *app) viewCommand() *cobra.Command {
	return &cobra.Command{
		Use: "view", Short: "Show the contexts file; it holds no secrets", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, f, err := a.contexts()
			if err != nil {
				return err
			}
			b, err := f.Marshal()
			if err != nil {
				return err
			}
			_, err = a.env.Out.Write(b)
			return err
		},
	}
}
