package command

import (
	"fmt"

	"github.com/spf13/cobra"

	issuerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func (a *app) requestCommand() *cobra.Command {
	requests, _ := kind.Find(kind.All(), "request")
	list := a.getKindCommand(requests)
	list.Use, list.Aliases, list.Short = "list [ID...]", []string{"ls"}, "Show requests for certificates"
	var (
		reason string
		yes    bool
	)
	cancel := &cobra.Command{
		Use:   "cancel ID",
		Short: "Give up a request that has no certificate yet",
		Long: `Give up a request that has no certificate yet. Nothing more is asked of the CA for it.
If a deployment still needs the certificate, the deployer begins a new request by
itself. A request that is issued or refused cannot be cancelled (exit code 4).`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := requests.Bare(args[0])
			c, err := a.connect()
			if err != nil {
				return err
			}
			if !yes {
				ok, err := a.asked(fmt.Sprintf("Cancel request %s?", output.Clean(id)))
				if err != nil {
					return err
				}
				if !ok {
					return exit.Errorf(exit.Interrupted, "nothing was cancelled")
				}
			}
			if _, err := c.Issuer().CancelRequest(cmd.Context(), &issuerv1.CancelRequestRequest{RequestId: id, Reason: reason}); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.env.Out, "request/%s cancelled\n", output.Clean(id))
			return err
		},
		ValidArgsFunction: a.completeOne(requests),
	}
	cancel.Flags().StringVar(&reason, "reason", "", "why, for the audit record")
	cancel.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return parent("request", "Show and cancel requests for certificates", "", list, cancel)
}
