package command

import (
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/cli/internal/describe"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
)

func (a *app) describeCommand() *cobra.Command {
	cmd := parent("describe", "Show one object with what belongs to it",
		"Show one object with what belongs to it, for people. Programs use \"get -o json\".")
	funcs := describe.Funcs()
	kinds := kind.All()
	for _, name := range slices.Sorted(maps.Keys(funcs)) {
		k, ok := kind.Find(kinds, name)
		if !ok {
			continue
		}
		cmd.AddCommand(&cobra.Command{
			Use: k.Singular + " " + k.Called(), Aliases: append([]string{k.Plural}, k.Aliases...), Short: "Show one " + k.Singular + " with what belongs to it",
			Args: usage(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.connect()
				if err != nil {
					return err
				}
				p := &describe.Page{Now: a.now()}
				if err := funcs[name](cmd.Context(), c, p, k.Bare(args[0])); err != nil {
					return err
				}
				return p.Write(a.env.Out)
			},
			ValidArgsFunction: a.completeOne(k),
		})
	}
	return cmd
}
