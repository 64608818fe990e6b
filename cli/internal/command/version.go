package command

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/internal/boot"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show which build this is", Args: usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.env.Out, program, boot.Version())
			return err
		},
	}
}

// exitCodesTopic is help without a command.
func exitCodesTopic() *cobra.Command {
	cmd := &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean"}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		t := &output.Table{Columns: []string{"CODE", "MEANING"}}
		for _, r := range exit.Table {
			t.Add(fmt.Sprint(int(r.Code)), r.Meaning)
		}
		_ = t.Write(cmd.OutOrStdout())
	})
	return cmd
}

// absolute leaves an empty path empty.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %s: %w", path, err)
	}
	return abs, nil
}
