package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/internal/identity"

	"github.com/sallyport-pki/sallyport/cli/internal/datadir"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/trust"
)

func (a *app) trustCommand() *cobra.Command {
	return parent("trust", "Make trust domains and identities for operators and separate daemons",
		`A trust domain is a root key and the identities it signs (SPIFFE X.509-SVIDs).
"sallyport serve" makes its own. For daemons that run separately, and for more
operators, this makes files: svid.pem, svid-key.pem and bundle.pem in a directory
that the daemon's identity.dir or an operator's context names.`,
		a.trustInitCommand(), a.trustIssueCommand(), a.trustRenewCommand())
}

func (a *app) trustInitCommand() *cobra.Command {
	var dir, domain string
	cmd := &cobra.Command{
		Use: "init --dir DIR --trust-domain NAME", Short: "Make a trust domain for separate daemons", Args: usage(cobra.NoArgs),
		Long: `Make a trust domain: DIR/` + trust.FileRoot + ` and DIR/` + trust.FileKey + `. The key is not encrypted: DIR has
mode 0700 and the key 0600; keep it where only the deployer (which signs the agents'
identities with it) and you can read it.`,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" || domain == "" {
				return exit.Errorf(exit.Usage, "give --dir and --trust-domain")
			}
			td, err := spiffeid.TrustDomainFromString(domain)
			if err != nil {
				return exit.Errorf(exit.Usage, "--trust-domain %q: %w", domain, err)
			}
			if _, err := trust.Create(dir, td, nil, a.now); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.env.Out, "Made the trust domain %s in %s. Next: sallyport trust issue --dir %s service/issuer --out DIR\n", td.Name(), dir, dir)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make")
	cmd.Flags().StringVar(&domain, "trust-domain", "", "name, such as sallyport.example.com")
	return cmd
}

func (a *app) trustIssueCommand() *cobra.Command {
	var (
		dir, data, kek, out string
		ttl                 span
		dns                 []string
	)
	ttl.Duration = config.Duration(30 * 24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "issue (--data DIR | --dir DIR) KIND/NAME --out DIR",
		Short: "Make an identity: operator/NAME, service/NAME or agent/HOST",
		Long: `Make a key and an SVID for an operator (operator/alice), a daemon (service/issuer,
service/nats, ...) or an agent, and write svid.pem, svid-key.pem and bundle.pem.
The root is that of "sallyport serve" (--data) or of "sallyport trust init" (--dir).
Issuing again into the same directory renews; a running daemon takes the new files up.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if (dir == "") == (data == "") || out == "" {
				return exit.Errorf(exit.Usage, "give one of --data and --dir, and --out")
			}
			ca, err := a.openRoot(dir, data, kek)
			if err != nil {
				return err
			}
			id, err := parseID(ca.TrustDomain(), args[0])
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			if ttl.Duration == 0 {
				return exit.Errorf(exit.Usage, "--ttl must not be 0")
			}
			cert, err := trust.WriteIdentity(out, ca, id, ttl.Std(), dns...)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.env.Out, "Wrote %s to %s, valid until %s.\n", id, out, cert.NotAfter.UTC().Format(time.RFC3339))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of \"trust init\"")
	cmd.Flags().StringVar(&data, "data", "", "data directory of \"sallyport serve\"")
	cmd.Flags().StringVar(&kek, "kek", "", "key-encryption key, when it does not lie in the data directory")
	cmd.Flags().StringVar(&out, "out", "", "directory to write to")
	cmd.Flags().Var(&ttl, "ttl", "how long it is valid")
	cmd.Flags().StringArrayVar(&dns, "dns", nil, "DNS name to add to a service's, for peers that look at it, such as the brokers of a cluster; may be repeated")
	return cmd
}

func (a *app) trustRenewCommand() *cobra.Command {
	var (
		dir, data, kek string
		ttl            span
	)
	ttl.Duration = config.Duration(30 * 24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "renew (--data DIR | --dir DIR) IDENTITY-DIR...",
		Short: "Renew identities whose life is half over",
		Long: `Renew identities that "sallyport trust issue" made: each IDENTITY-DIR holds one, or
directories that do. One whose life is half over gets a new key and certificate of
the same name and for the same owner; the others stay as they are. Run it daily
(deploy/systemd/sallyport-identities.timer does): running daemons take the new files
up by themselves; tell a NATS server to reload.`,
		Args: usage(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if (dir == "") == (data == "") {
				return exit.Errorf(exit.Usage, "give one of --data and --dir")
			}
			if ttl.Duration == 0 {
				return exit.Errorf(exit.Usage, "--ttl must not be 0")
			}
			ca, err := a.openRoot(dir, data, kek)
			if err != nil {
				return err
			}
			var errs []error
			for _, arg := range args {
				found, err := trust.Identities(arg)
				errs = append(errs, err)
				for _, one := range found {
					errs = append(errs, a.renewIdentity(one, ca, ttl.Std()))
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of \"trust init\"")
	cmd.Flags().StringVar(&data, "data", "", "data directory of \"sallyport serve\"")
	cmd.Flags().StringVar(&kek, "kek", "", "key-encryption key, when it does not lie in the data directory")
	cmd.Flags().Var(&ttl, "ttl", "how long the new ones are valid")
	return cmd
}

func (a *app) renewIdentity(dir string, ca *identity.Authority, ttl time.Duration) error {
	cert, id, renewed, err := trust.Renew(dir, ca, ttl, a.now())
	if err != nil {
		return err
	}
	what := "Kept"
	if renewed {
		what = "Renewed"
	}
	_, err = fmt.Fprintf(a.env.Out, "%s %s in %s, valid until %s.\n", what, id, dir, cert.NotAfter.UTC().Format(time.RFC3339))
	return err
}

func (a *app) openRoot(dir, data, kek string) (*identity.Authority, error) {
	if data != "" {
		dir = filepath.Join(data, datadir.DirTrust)
		if kek == "" {
			kek = filepath.Join(data, datadir.FileKEK)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, trust.FileRoot)); errors.Is(err, fs.ErrNotExist) {
		return nil, exit.Errorf(exit.NotFound, "there is no trust domain in %s: make one by \"sallyport trust init\", or start \"sallyport serve\" once", dir)
	}
	var box *trust.Box
	if kek != "" {
		var err error
		if box, err = trust.OpenBox(kek); err != nil {
			return nil, err
		}
	}
	return trust.Open(dir, box, a.now)
}

// parseID reads KIND/NAME.
func parseID(td spiffeid.TrustDomain, text string) (spiffeid.ID, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok {
		return spiffeid.ID{}, fmt.Errorf("%q: want operator/NAME, service/NAME or agent/HOST", text)
	}
	switch kind {
	case "operator":
		return identity.OperatorID(td, name)
	case "agent":
		return identity.AgentID(td, name)
	case "service":
		if name == "nats" { // the broker calls nobody, so it is no role
			return spiffeid.FromSegments(td, kind, name)
		}
		return identity.ServiceID(td, name)
	}
	return spiffeid.ID{}, fmt.Errorf("%q: want operator/NAME, service/NAME or agent/HOST", text)
}
