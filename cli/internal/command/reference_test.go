package command

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// TestReferenceIsUpToDate: "sallyport docs docs/reference" writes these pages.
func TestReferenceIsUpToDate(t *testing.T) {
	a := &app{env: Environment{Getenv: func(string) string { return "" }}, now: time.Now}
	for name, want := range referencePages(a.root()) {
		got, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "reference", name))
		if err != nil {
			t.Fatalf("%v: run \"sallyport docs docs/reference\"", err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not up to date: run \"sallyport docs docs/reference\"\n%s", name, diff)
		}
	}
}

// TestEveryCommandSaysWhatItDoes fails on a command or flag without help.
func TestEveryCommandSaysWhatItDoes(t *testing.T) {
	a := &app{env: Environment{Getenv: func(string) string { return "" }}, now: time.Now}
	walkCommands(a.root(), func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s says nothing", cmd.CommandPath())
		}
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Args == nil && cmd.ValidArgsFunction == nil {
			t.Errorf("%s takes any arguments", cmd.CommandPath())
		}
	})
}
