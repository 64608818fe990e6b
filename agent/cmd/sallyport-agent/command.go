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
	exitNotRunning  = 5
)

const long = `sallyport-agent keeps the TLS certificates of this host.

It connects out to the Sallyport control plane; nothing connects in. When a
certificate is assigned to this host, the agent
  - makes the private key here and sends a CSR (a signed wish for a certificate),
  - checks that the certificate belongs to the key,
  - installs both as one pair and reloads the server,
  - connects to the server to see that the new certificate is served.
If it is not served, the agent puts the old pair back. Private keys never leave
the host.

Only this host's own configuration says what the agent may touch: the folders that
may be written, and the commands (hooks) that may be run. The control plane can
choose among them. It cannot make this host run anything else.

Set a host up:

  1. Write /etc/sallyport/agent.yaml (owned by root, not writable by others):

       server: sallyport.example:8443
       connectors:
         nginx:
           allow: [/etc/nginx/tls]

  2. sallyport-agent check                           can the configuration work? what may be touched?
  3. sallyport-agent enroll --token-file web-1.token with a join token from an operator
  4. sallyport-agent run                             as a service (deploy/systemd/sallyport-agent.service)
  5. sallyport-agent status                          is it connected? what is installed?

Exit codes: 0 done; 1 something went wrong; 2 the configuration or the command
line is wrong; 3 this host is not enrolled; 4 "check" has found something that
cannot work; 5 "status" has found that no agent runs.`

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
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return coded{fmt.Errorf("%w: see \"%s --help\"", err, cmd.CommandPath()), boot.ExitConfig}
	})
	root.PersistentFlags().StringVar(&a.config, "config", agent.DefaultConfig, "this host's configuration file")
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
		Use: "run", Short: "Keep this host's certificates, until told to stop", Args: noArgs,
		Long: `Run works until SIGTERM or SIGINT. It keeps the connection to the control plane,
does what is assigned, looks every few minutes whether all that was installed is
still served, and scans this host for certificates. When it is told to stop, it
first ends an installation that has begun. An installation that a crash has cut
off is ended at the next start.

Run goes on working while the control plane cannot be reached, and reports later.
On a host that is not enrolled it enrols with token_file of the configuration, if
that is set; else it ends with code 3.`,
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

    sallyport token create --host web-1 --quiet >web-1.token

The token is a secret, so it is not taken from the command line, where others
could see it. It is read from --token-file, or from the environment variable
SALLYPORT_JOIN_TOKEN, or from standard input.

The token names the control plane: the agent sends nothing to any other server.
If the connection breaks, run the command again with the same token. A host that
is enrolled already stays as it is. --again gives up the identity that it has: use
it after an operator has removed the agent ("sallyport agent remove").`,
		Example: "  sallyport-agent enroll --token-file web-1.token\n  sallyport-agent enroll --again --token-file web-1.token",
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
		Long: `Check reads the configuration. Then each enabled connector looks whether it can work
on this host: folders, programs, the server's own check of its configuration, the
running server. Check prints what an assignment may touch. It contacts nobody. In
each allowed folder it makes an empty file and removes it; it changes nothing else.

Exit code 2: the configuration is wrong. 4: the configuration is right, but
something on this host cannot work; the lines with TROUBLE say what.`,
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
				return coded{fmt.Errorf("%d things cannot work: see the lines with TROUBLE", troubles), exitTroubles}
			}
			fmt.Fprintln(a.stdout, "all is well")
			return nil
		},
	}
}

func (a *app) scan() *cobra.Command {
	return &cobra.Command{
		Use: "scan", Short: "Print the certificates that a scan of this host finds", Args: noArgs,
		Long: `Scan looks once for certificates in files and at TLS listeners of this host, as the
running agent does from time to time, and prints what the agent would report. It
sends nothing to the control plane. It opens a TLS handshake with each listener and
sends nothing more.`,
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
		Use: "status", Short: "Show identity, connection and targets of this host", Args: noArgs,
		Long: `Status reads the agent's state folder and prints
  identity  who this host is, and until when
  server    how the agent stands with the control plane: CONNECTED, LOCKED (by an
            operator), REFUSED, AWAY (cannot be reached), STOPPED or NOT RUNNING;
            since when, why, what to do, and when the agent tries again
  waiting   what the agent has not reported yet
and one line for each target: what is assigned, and how far it is.

"last heard" is written every half minute at most. That it was unlocked, an agent
learns at its next try. Status works without a running agent and disturbs none.

Exit code 0: an agent runs, however it stands (a script sees that by --output json);
3: this host is not enrolled; 5: it is, and no agent runs.`,
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
				err = printStatus(a.stdout, st, time.Now())
			default:
				return coded{fmt.Errorf("--output %q: want table, json or yaml", output), boot.ExitConfig}
			}
			switch {
			case err != nil:
				return err
			case st.Identity == nil:
				return notEnrolled(enroll.ErrNotEnrolled)
			case !st.Running:
				return coded{errors.New("no agent runs on this host: start it, as a service with \"systemctl start sallyport-agent\""), exitNotRunning}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "how to show it: table, json or yaml")
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

// past is a time that the agent has written down. The clock may have been set back since.
func past(t, now time.Time) string {
	if t.After(now) {
		return t.UTC().Format(time.RFC3339) + " (ahead of this host's clock)"
	}
	return t.UTC().Format(time.RFC3339)
}

func printServer(out io.Writer, s *agent.ServerStatus, now time.Time) {
	if s == nil {
		return
	}
	fmt.Fprintf(out, "server     %s: %s", s.Address, strings.ToUpper(s.State))
	if !s.Since.IsZero() {
		fmt.Fprintf(out, " since %s", past(s.Since, now))
	}
	if !s.Heard.IsZero() {
		fmt.Fprintf(out, ", last heard %s", past(s.Heard, now))
	}
	if !s.Next.IsZero() {
		in := "now"
		if s.Next.After(now) {
			in = "in " + s.Next.Sub(now).Round(time.Second).String()
		}
		fmt.Fprintf(out, ", next try %s (%s)", s.Next.UTC().Format(time.RFC3339), in)
	}
	fmt.Fprintln(out)
	if s.Message != "" {
		fmt.Fprintf(out, "  why      %s\n", harmless(strings.TrimSpace(s.Reason+" "+s.Message)))
	}
	if s.Advice != "" {
		fmt.Fprintf(out, "  do       %s\n", s.Advice)
	}
}

func printStatus(out io.Writer, st *agent.Status, now time.Time) error {
	if st.Identity != nil {
		fmt.Fprintf(out, "identity   %s, until %s, renewed from %s\n", st.Identity.ID,
			st.Identity.Expires.UTC().Format(time.RFC3339), st.Identity.RenewAt.UTC().Format(time.RFC3339))
	}
	printServer(out, st.Server, now)
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
	if len(args) == 0 {
		return nil
	}
	what := "not expected here"
	if cmd.HasSubCommands() {
		what = "no command of this program"
	}
	return coded{fmt.Errorf("%q is %s: see \"%s --help\"", args[0], what, cmd.CommandPath()), boot.ExitConfig}
}
