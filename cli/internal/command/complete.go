package command

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

const (
	// completeBound is how long a person at a prompt waits for names.
	completeBound = 2 * time.Second
	completeMost  = 500
)

// completeNames offers the names of the objects there are. Whatever goes wrong
// shows as no offers: a prompt is no place for errors.
func (a *app) completeNames(k *kind.Kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeBound)
		defer cancel()
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		err = k.Each(ctx, c, completeMost, func(m proto.Message) bool {
			if name := k.Name(m); strings.HasPrefix(name, begun) && !slices.Contains(args, name) {
				names = append(names, output.Clean(name))
			}
			return true
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeOne is completeNames for commands that take one name.
func (a *app) completeOne(k *kind.Kind) cobra.CompletionFunc {
	names := a.completeNames(k)
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(cmd, args, begun)
	}
}

// completeWords offers the words of the flags that take a fixed set of them.
func completeWords(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		var words []string
		switch v := f.Value.(type) {
		case *output.Format:
			words = output.Formats
		case interface{ Words() []string }:
			words = v.Words()
		default:
			return
		}
		// The only error is a flag that is not there.
		_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	})
}

// completeContexts offers the names of the contexts.
func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	path, err := clientconfig.Path(a.env.Getenv)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	f, err := clientconfig.Load(path)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return f.Names(), cobra.ShellCompDirectiveNoFileComp
}
