package command

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// requestID makes an idempotency key.
func requestID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (a *app) tokenCommand() *cobra.Command {
	tokens, _ := kind.Find(kind.All(), "token")
	list := a.getKindCommand(tokens)
	list.Use, list.Aliases, list.Short = "list", []string{"ls"}, "Show join tokens"

	revoke := &cobra.Command{
		Use:   "revoke ID...",
		Short: "Make join tokens useless",
		Args:  usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, ids []string) error {
			return a.remove(cmd, tokens, ids, "", true)
		},
		ValidArgsFunction: a.completeNames(tokens),
	}
	return parent("token", "Let agents in: one-time join tokens",
		`A join token lets one agent enrol, once. It carries the hash of the trust
domain's root, so the agent knows the server before it sends anything.`,
		a.tokenCreateCommand(), list, revoke)
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var (
		host  string
		ttl   span
		quiet bool
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a join token; its secret is shown this once",
		Long: `Make a join token for one agent. The token is a secret. It alone goes to standard
output; what to do with it goes to standard error.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			q := &deployerv1.CreateJoinTokenRequest{Host: host}
			if ttl.Duration > 0 {
				q.Ttl = durationpb.New(ttl.Std())
			}
			r, err := c.Deployer().CreateJoinToken(cmd.Context(), q)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(a.env.Out, r.GetToken()); err != nil {
				return err
			}
			if !quiet {
				a.explainToken(r)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "the only host that may use it; without it any one host may")
	cmd.Flags().Var(&ttl, "ttl", "how long it is valid, at most 7d (default 1h)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the token and nothing else")
	return cmd
}

func (a *app) explainToken(r *deployerv1.CreateJoinTokenResponse) {
	who := "one agent"
	if h := r.GetJoinToken().GetHost(); h != "" {
		who = "the agent on " + h
	}
	at, err := a.place()
	if err != nil {
		return
	}
	fmt.Fprintf(a.env.Err, "Token %s lets %s in until %s. On the host, with \"server: %s\" in the agent's configuration:\n  sallyport-agent enroll --token-file FILE\n",
		r.GetJoinToken().GetId(), who, r.GetJoinToken().GetExpires().AsTime().Local().Format(time.DateTime), at.Address("deployer"))
}

func (a *app) agentCommand() *cobra.Command {
	agents, _ := kind.Find(kind.All(), "agent")
	list := a.getKindCommand(agents)
	list.Use, list.Aliases, list.Short = "list [HOST...]", []string{"ls"}, "Show agents"
	verb := func(use, short, done string, run func(cmd *cobra.Command, host, reason string) error) *cobra.Command {
		var reason string
		cmd := &cobra.Command{
			Use: use + " HOST", Short: short, Args: usage(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error {
				host := agents.Bare(args[0])
				if err := run(cmd, host, reason); err != nil {
					return err
				}
				_, err := fmt.Fprintf(a.env.Out, "agent/%s %s\n", output.Clean(host), done)
				return err
			},
			ValidArgsFunction: a.completeOne(agents),
		}
		cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit record")
		return cmd
	}
	lock := verb("lock", "Refuse an agent from now on; its connection ends within seconds", "locked", func(cmd *cobra.Command, host, reason string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		_, err = c.Deployer().LockAgent(cmd.Context(), &deployerv1.LockAgentRequest{Host: host, Reason: reason})
		return err
	})
	unlock := verb("unlock", "Let a locked agent work again", "unlocked", func(cmd *cobra.Command, host, reason string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		_, err = c.Deployer().UnlockAgent(cmd.Context(), &deployerv1.UnlockAgentRequest{Host: host, Reason: reason})
		return err
	})
	var yes bool
	remove := verb("remove", "Forget an agent for good; its host may enrol again with a new token", "removed", func(cmd *cobra.Command, host, reason string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if !yes {
			ok, err := a.asked(fmt.Sprintf("Remove agent %s? (%s)", host, agents.DeleteHint))
			if err != nil {
				return err
			}
			if !ok {
				return exit.Errorf(exit.Interrupted, "nothing was removed")
			}
		}
		return agents.Delete(cmd.Context(), c, host, reason)
	})
	remove.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return parent("agent", "Lock, unlock and remove agents", "", list, lock, unlock, remove)
}
