package command

import (
	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/internal/config"

	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/serve"
)

func (a *app) serveCommand() *cobra.Command {
	var file, data, listen, domain string
	cmd := &cobra.Command{
		Use:   "serve --data DIR",
		Short: "Run all services in this process, on one port",
		Long: `Run all services in this process, on one port, with an event broker and databases
of their own. All state is kept in DIR, which the first start makes (mode 0700) along
with a trust domain, its keys, and an operator's credential in DIR/operator. The
command line works at once: a context named after the trust domain is added to your
contexts ("sallyport config"), and DIR/operator/config.yaml has it too, to be used by
SALLYPORT_CONFIG=DIR/operator/config.yaml.

Once it is ready it says so in one line on standard output; the log goes to standard
error. SIGTERM or SIGINT ends it in good order, a second one at once.

--config names a file with more settings; flags win over it. See
docs/reference/configuration.md.

What DIR holds ("sallyport backup" takes what must be kept of it, while serve runs):

  sallyport.json   what the directory is: format, trust domain
  kek              the key that encrypts CA keys, account keys and the root key
                   (kept elsewhere by "kek:" in the configuration, a copy of DIR alone is of no use)
  trust/           the trust domain's root certificate and its encrypted key
  operator/        the operator's credential, made anew from trust/ when it is missing
  *.db             the services' databases (SQLite)
  nats/            events on their way between services
  audit/           the audit log (log/), its public key (verifier) and its signing key
  secrets/         files that authorities name, such as EAB keys
  lock, clock      held while serve runs; the latest time known, so that a clock set back is noticed`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var cfg serve.Config
			if file != "" {
				if err := config.Load(file, &cfg); err != nil {
					return exit.With(exit.Usage, err)
				}
			}
			for _, f := range []struct{ flag, into *string }{{&data, &cfg.Data}, {&listen, &cfg.Listen}, {&domain, &cfg.TrustDomain}} {
				if *f.flag != "" {
					*f.into = *f.flag
				}
			}
			contexts, err := clientconfig.Path(a.env.Getenv)
			if err != nil {
				contexts = "" // a service account has no home; the own file is enough
			}
			return serve.Run(cmd.Context(), cfg, serve.Environment{Out: a.env.Out, Err: a.env.Err, Contexts: contexts, Now: a.now})
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file")
	cmd.Flags().StringVar(&data, "data", "", "directory for all state; made with mode 0700")
	cmd.Flags().StringVar(&listen, "listen", "", "host:port to listen on; without it "+serve.DefaultListen)
	cmd.Flags().StringVar(&domain, "trust-domain", "", "name of a new installation's trust domain; without it "+serve.DefaultTrustDomain)
	_ = cmd.MarkFlagDirname("data")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml", "json")
	return cmd
}
