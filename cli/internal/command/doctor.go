package command

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/internal/config"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
	"github.com/sallyport-pki/sallyport/cli/internal/clientconfig"
	"github.com/sallyport-pki/sallyport/cli/internal/doctor"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func (a *app) doctorCommand() *cobra.Command {
	var (
		format = doctorFormat(output.FormatTable)
		all    bool
		file   string
		grace  = span{config.Duration(10 * time.Second)}
	)
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check that everything fits together",
		Long: `Check the running services: whether every event of every store is in the audit log once,
each assignment has its request, its certificate and its place, nothing is stuck, and the
audit log continues the one of the last run. Doctor asks as an operator. It changes nothing.

Work under way gets time: a problem is only what was wrong at every look during --grace.
Each problem is shown with what to do. docs/doctor.md lists the rules.

Exit code 0: all is well. 14: something is wrong. 15: nothing is known to be wrong, but
something could not be checked.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if file == "" {
				if file, err = a.keptCheckpoint(); err != nil {
					return err
				}
			}
			before, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return exit.With(exit.Usage, fmt.Errorf("reading what the last run kept: %w", err))
			}
			show := a.stage()
			report, err := doctor.Run(cmd.Context(), doctor.Config{
				Services: doctor.Services{Issuer: c.Issuer(), Deployer: c.Deployer(), Inventory: c.Inventory(), Audit: c.Audit()},
				Grace:    grace.Std(), Full: all, Kept: before, Tell: show.tell, Now: a.now,
			})
			show.end()
			if err != nil {
				return err
			}
			if report.Keep != nil {
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					return fmt.Errorf("keeping the checkpoint: %w", err)
				}
				if err := atomicfile.Write(file, report.Keep, 0o600); err != nil {
					return full(fmt.Errorf("keeping the checkpoint: %w", err))
				}
			}
			if err := a.writeDoctor(string(format), report); err != nil {
				return err
			}
			return diagnosis(report)
		},
	}
	cmd.Flags().VarP(&format, "output", "o", "table, json or yaml")
	cmd.Flags().BoolVar(&all, "full", false, "also let the databases check their files, and verify every record of the audit log")
	cmd.Flags().Var(&grace, "grace", "how long what looks wrong may still be on its way")
	cmd.Flags().StringVar(&file, "keep", "", "file that keeps the audit log's checkpoint from one run to the next; by default beside the contexts, one for each server")
	completeWords(cmd)
	return cmd
}

// keptCheckpoint is where the checkpoint of this server's log is kept.
func (a *app) keptCheckpoint() (string, error) {
	path, err := clientconfig.Path(a.env.Getenv)
	if err != nil {
		return "", exit.With(exit.Usage, err)
	}
	at, err := a.place()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(at.Address("audit")))
	return filepath.Join(filepath.Dir(path), "doctor-"+hex.EncodeToString(sum[:8])+".json"), nil
}

func diagnosis(r doctor.Report) error {
	problems, unseen := 0, 0
	for _, c := range r.Checks {
		problems += len(c.Problems)
		if c.State == doctor.CannotSee {
			unseen++
		}
	}
	switch r.State {
	case doctor.Wrong:
		return exit.Errorf(exit.Unsound, "%d problems found, each at %d looks; docs/doctor.md explains the rules", problems, r.Looks)
	case doctor.CannotSee:
		return exit.Errorf(exit.Unseen, "nothing is known to be wrong, but %d checks could not be made", unseen)
	case doctor.OK:
	}
	return nil
}

// maxShown bounds the problems that a table shows of one check.
const maxShown = 20

func (a *app) writeDoctor(format string, r doctor.Report) error {
	if format != string(output.FormatTable) {
		return output.WriteValue(a.env.Out, output.Format(format), r)
	}
	t := &output.Table{Columns: []string{"CHECK", "STATE", "WHAT"}}
	for _, c := range r.Checks {
		what := c.Summary
		if len(c.Problems) > 0 {
			what = strings.TrimPrefix(fmt.Sprintf("%s; %d problems", c.Summary, len(c.Problems)), "; ")
		}
		t.Add(c.Name, string(c.State), what)
	}
	if err := t.Write(a.env.Out); err != nil {
		return err
	}
	for _, c := range r.Checks {
		for i, p := range c.Problems {
			if i == maxShown {
				fmt.Fprintf(a.env.Out, "\n%s: %d more (-o json shows all)\n", c.Name, len(c.Problems)-i)
				break
			}
			if _, err := fmt.Fprintf(a.env.Out, "\n%s (%s, %s)\n  %s\n  What to do: %s\n", output.Clean(p.Subject), p.Service, p.Rule, output.Clean(p.Message), p.Remedy); err != nil {
				return err
			}
		}
	}
	return nil
}

// doctorFormat is how a report is shown.
type doctorFormat output.Format

// Set refuses what is none.
func (f *doctorFormat) Set(s string) error {
	for _, word := range f.Words() {
		if s == word {
			*f = doctorFormat(s)
			return nil
		}
	}
	return fmt.Errorf("unknown format %q: want table, json or yaml", s)
}

func (f *doctorFormat) Type() string    { return "format" }
func (f *doctorFormat) String() string  { return string(*f) }
func (f *doctorFormat) Words() []string { return []string{"table", "json", "yaml"} }
