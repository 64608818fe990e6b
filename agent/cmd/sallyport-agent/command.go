package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/sallyport-pki/sallyport/agent"
	"github.com/sallyport-pki/sallyport/agent/internal/disk"
	"github.com/sallyport-pki/sallyport/agent/internal/enroll"
	"github.com/sallyport-pki/sallyport/agent/internal/scan"
	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/pki"
)

// The exit codes besides boot's.
const (
	exitNotEnrolled = 3
	exitTroubles    = 4
)

const long = `sallyport-agent keeps the TLS certificates of this host.

It connects out to the Sallyport control plane, never the other way round. When a
certificate is assigned to this host, it makes the private key here, sends a CSR,
checks what comes back against the key, installs both as one, reloads the server,
and connects to it to see that the new certificate is the one served. If it is
not, the old pair is put back. Private keys never leave the host.

What it may touch stands in this host's own configuration and nowhere else: the
control plane can name a file below a folder that is allowed there, and a hook
that is defined there. It cannot make this host run a command.

  1. Write /etc/sallyport/agent.yaml (owned by root, not writable by others):

       server: sallyport.example:8443
       connectors:
         nginx:
           allow: [/etc/nginx/tls]

  2. sallyport-agent check          is the configuration right, what may be touched?
  3. sallyport-agent enroll         with a join token from an operator
  4. sallyport-agent run            as a service, for ever
  5. sallyport-agent status         how does it stand?

Exit codes: 0 done, 1 it went wrong, 2 configuration or command line is wrong,
3 this host is not enrolled, 4 "check" has found something that cannot work.`

// env is what the program gets from outside.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	token          string // SALLYPORT_JOIN_TOKEN
}

// coded is an error with an exit code.
type coded struct {
	error
	code int
}

func (c coded) ExitCode() int { return c.code }
func (c coded) Unwrap() error { return c.error }

// app is what the commands share.
type app struct {
	env
	config string
}

func command(e env) *cobra.Command {
	a := &app{env: e}
	root := &cobra.Command{
		Use: "sallyport-agent", Short: "Keeps the TLS certificates of this host", Long: long,
		SilenceErrors: true, SilenceUsage: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded{err, boot.ExitConfig} })
	root.PersistentFlags().StringVar(&a.config, "config", agent.DefaultConfig, "this host's configuration")
	root.AddCommand(a.enroll(), a.run(), a.check(), a.scan(), a.status(), a.version())
	return root
}

// agent makes the agent of the configuration.
func (a *app) agent() (*agent.Agent, error) {
	cfg, err := agent.Load(a.config)
	if err != nil {
		return nil, err
	}
	log, err := cfg.Log.New(a.stderr)
	if err != nil {
		return nil, coded{err, boot.ExitConfig}
	}
	made, err := agent.New(cfg, agent.Deps{Log: log})
	if err != nil {
		return nil, coded{fmt.Errorf("%s: %w", a.config, err), boot.ExitConfig}
	}
	return made, nil
}

func (a *app) run() *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Work until told to stop", Args: noArgs,
		Long: `Run works until SIGTERM or SIGINT: it keeps the connection to the control plane,
does what is assigned, looks at intervals whether all that was installed is still
served, and scans this host for certificates. An installation that has begun is
brought to its end before it stops; one that was cut off by a crash is brought to
its end at the next start.

It goes on working while the control plane cannot be reached, and sends what it
has to report later. Without an identity it enrols with token_file of the
configuration, if there is one.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := a.agent()
			if err != nil {
				return err
			}
			return notEnrolled(made.Run(cmd.Context()))
		},
	}
}

func notEnrolled(err error) error {
	if errors.Is(err, enroll.ErrNotEnrolled) {
		return coded{err, exitNotEnrolled}
	}
	return err
}

func (a *app) enroll() *cobra.Command {
	var file string
	var again bool
	cmd := &cobra.Command{
		Use: "enroll", Short: "Get this host its identity, with a join token", Args: noArgs,
		Long: `Enroll trades a join token for this host's identity. An operator makes the token:

    sallyport token create --host web1

The token is a secret and is never taken from the command line, where others
could see it. It is read from --token-file, or from the environment variable
SALLYPORT_JOIN_TOKEN, or from standard input.

The token names the control plane: nothing is sent to a server that is not the
one the token was made for. The key is made and stored here first, so a broken
connection costs nothing: run it again. A host that is enrolled already stays as
it is; --again gives up the identity it has, for a host whose agent was removed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := a.agent()
			if err != nil {
				return err
			}
			token, err := a.joinToken(file)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			id, fresh, err := made.Enroll(ctx, token, again)
			if err != nil {
				return err
			}
			word, hint := "enrolled as", ""
			if !fresh {
				word, hint = "enrolled already, as", "; --again gives that up for a new one"
			}
			fmt.Fprintf(a.stdout, "%s %s, until %s%s\n", word, id.ID, id.Expires.UTC().Format(time.RFC3339), hint)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "token-file", "", `file with the join token; "-" is standard input`)
	cmd.Flags().BoolVar(&again, "again", false, "give up the identity this host has")
	return cmd
}

const maxToken = 4 << 10

func (a *app) joinToken(file string) (identity.JoinToken, error) {
	text := a.token
	switch {
	case file != "" && file != "-":
		data, err := disk.ReadPath(file, maxToken)
		if err != nil {
			return identity.JoinToken{}, coded{fmt.Errorf("reading the join token: %w", err), boot.ExitConfig}
		}
		text = string(data)
	case file == "-" || text == "":
		data, err := io.ReadAll(io.LimitReader(a.stdin, maxToken))
		if err != nil {
			return identity.JoinToken{}, fmt.Errorf("reading the join token: %w", err)
		}
		text = string(data)
	}
	if strings.TrimSpace(text) == "" {
		return identity.JoinToken{}, coded{errors.New("no join token: give --token-file, SALLYPORT_JOIN_TOKEN, or standard input"), boot.ExitConfig}
	}
	token, err := identity.ParseJoinToken(text)
	if err != nil {
		return token, coded{err, boot.ExitConfig}
	}
	return token, nil
}

func (a *app) check() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "See whether the configuration can work, and what assignments may touch", Args: noArgs,
		Long: `Check reads the configuration, has each enabled connector look whether it can work
on this host (folders, programs, the server's own check of its configuration,
the running server), and says what an assignment may touch. It changes nothing,
but for an empty file it makes and removes in each allowed folder, and talks to
nobody.

It exits with 2 if the configuration is wrong, and with 4 if it is right but
something on this host cannot work.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := a.agent()
			if err != nil {
				return err
			}
			troubles := 0
			for _, c := range made.Check(cmd.Context()) {
				fmt.Fprintf(a.stdout, "connector %s\n", c.Connector)
				for _, t := range c.Touches {
					fmt.Fprintf(a.stdout, "  %s\n", t)
				}
				for _, t := range c.Troubles {
					troubles++
					fmt.Fprintf(a.stdout, "  TROUBLE: %s\n", t)
				}
			}
			if troubles > 0 {
				return coded{fmt.Errorf("%d things cannot work", troubles), exitTroubles}
			}
			fmt.Fprintln(a.stdout, "all is well")
			return nil
		},
	}
}

func (a *app) scan() *cobra.Command {
	return &cobra.Command{
		Use: "scan", Short: "Print the certificates a scan of this host sees", Args: noArgs,
		Long: `Scan looks once for certificates in files and behind TLS listeners of this host,
as the running agent does at intervals, and prints what it would report. It
sends nothing to the control plane; a listener gets the opening of a TLS
handshake and nothing more.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := a.agent()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "WHERE\tNAME ASKED\tSUBJECT\tNAMES\tEXPIRES\tFINGERPRINT")
			err = made.Scan(cmd.Context(), func(s scan.Sighting) error {
				chain, err := pki.ParseChainDER(s.Chain)
				if err != nil {
					return nil // shown by no listener and no file that the scan takes
				}
				f := pki.Facts(chain[0])
				_, err = fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\t%s\t%.16s\n", s.Role, s.Location, s.ServerName, f.Subject,
					strings.Join(f.Names.Strings(), ","), f.NotAfter.Format(time.DateOnly), f.Fingerprint)
				return err
			})
			return errors.Join(err, w.Flush())
		},
	}
}

func (a *app) status() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status", Short: "Show how this host stands, by the agent's state", Args: noArgs,
		Long: `Status reads the agent's state folder: who this host is, what is assigned to it and
how far that has come, and what waits to be reported; and how the agent stands
with the control plane: connected, locked by an operator, refused, away or
stopped, since when, why, what to do, and when it tries again. "last heard" is
written every half minute at most; an agent that was killed could not say so,
and is heard no more. Status needs no running agent and disturbs none. It exits with 3 if this host is not enrolled.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := a.agent()
			if err != nil {
				return err
			}
			st, err := made.Status(cmd.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				enc := json.NewEncoder(a.stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(st)
			case "yaml":
				err = printYAML(a.stdout, st)
			case "table":
				err = printStatus(a.stdout, st)
			default:
				return coded{fmt.Errorf("--output %q: want table, json or yaml", output), boot.ExitConfig}
			}
			if err == nil && st.Identity == nil {
				return notEnrolled(enroll.ErrNotEnrolled)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

// printYAML prints what JSON says, in the same order.
func printYAML(out io.Writer, st *agent.Status) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil { // JSON is YAML
		return err
	}
	plain(&doc)
	return yaml.NewEncoder(out).Encode(&doc)
}

func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

// harmless is a text of the server's without what would move the cursor or colour the terminal.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

func printServer(out io.Writer, s *agent.ServerStatus) {
	if s == nil {
		return
	}
	fmt.Fprintf(out, "server     %s: %s since %s", s.Address, strings.ToUpper(s.State), s.Since.UTC().Format(time.RFC3339))
	if !s.Heard.IsZero() {
		fmt.Fprintf(out, ", last heard %s", s.Heard.UTC().Format(time.RFC3339))
	}
	if !s.Next.IsZero() {
		fmt.Fprintf(out, ", next try %s", s.Next.UTC().Format(time.RFC3339))
	}
	fmt.Fprintln(out)
	if s.Message != "" {
		fmt.Fprintf(out, "  why      %s\n", harmless(strings.TrimSpace(s.Reason+" "+s.Message)))
	}
	if s.Advice != "" {
		fmt.Fprintf(out, "  do       %s\n", s.Advice)
	}
}

func printStatus(out io.Writer, st *agent.Status) error {
	if st.Identity != nil {
		fmt.Fprintf(out, "identity   %s, until %s, renewed from %s\n", st.Identity.ID,
			st.Identity.Expires.UTC().Format(time.RFC3339), st.Identity.RenewAt.UTC().Format(time.RFC3339))
	}
	printServer(out, st.Server)
	fmt.Fprintf(out, "waiting    %d reports, %d keys, %d challenges\n", st.Unsent, st.PendingKeys, st.Challenges)
	if len(st.Assignments) == 0 {
		fmt.Fprintln(out, "nothing is assigned")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "TARGET\tCONNECTOR\tGENERATION\tATTEMPT\tSTATE\tREASON\tADDRESS\tSERVED")
	for _, s := range st.Assignments {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%.16s\n", s.Target, s.Connector, s.Generation, s.Attempt, s.State, s.Reason, s.Address, s.Served)
	}
	return w.Flush()
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.stdout, boot.Version())
			return err
		},
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return coded{err, boot.ExitConfig}
	}
	return nil
}
