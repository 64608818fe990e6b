package command

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
)

func (a *app) deleteCommand() *cobra.Command {
	cmd := parent("delete", "Remove objects", "Remove objects by name. On a terminal you are asked first; elsewhere --yes is needed.")
	for _, k := range kind.All() {
		if k.Delete == nil {
			continue
		}
		var (
			yes    bool
			reason string
		)
		below := &cobra.Command{
			Use:     k.Singular + " " + k.Called() + "...",
			Aliases: append([]string{k.Plural}, k.Aliases...),
			Short:   "Remove " + k.Plural,
			Long:    "Remove one " + k.Singular + " or more. For each of them: " + k.DeleteHint + ".",
			Args:    usage(cobra.MinimumNArgs(1)),
			RunE: func(cmd *cobra.Command, names []string) error {
				return a.remove(cmd, k, names, reason, yes)
			},
			ValidArgsFunction: a.completeNames(k),
		}
		below.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
		if k.Singular == "deployment" || k.Singular == "agent" {
			below.Flags().StringVar(&reason, "reason", "", "why, for the audit record")
		}
		cmd.AddCommand(below)
	}
	return cmd
}

func (a *app) remove(cmd *cobra.Command, k *kind.Kind, names []string, reason string, yes bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	if !yes {
		ok, err := a.asked(fmt.Sprintf("Delete %s %s? (%s)", k.Singular, strings.Join(names, ", "), k.DeleteHint))
		if err != nil {
			return err
		}
		if !ok {
			return exit.Errorf(exit.Interrupted, "nothing was deleted")
		}
	}
	var errs []error
	for _, name := range names {
		name = k.Bare(name)
		if err := k.Delete(cmd.Context(), c, name, reason); err != nil {
			errs = append(errs, fmt.Errorf("%s/%s: %w", k.Singular, name, err))
			continue
		}
		fmt.Fprintf(a.env.Out, "%s/%s deleted\n", k.Singular, name)
	}
	if len(errs) == 0 {
		return nil
	}
	return exit.With(exit.Of(errs[0]), errors.Join(errs...))
}
