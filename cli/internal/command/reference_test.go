package command

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
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

// TestExamples runs the arguments of every example through the parser: each command that does something has one, and it is right.
func TestExamples(t *testing.T) {
	newRoot := func() *cobra.Command {
		return (&app{env: Environment{Getenv: func(string) string { return "" }}, now: time.Now}).root()
	}
	seen := 0
	walkCommands(newRoot(), func(cmd *cobra.Command) {
		if examples[cmd.CommandPath()] != "" {
			seen++
		} else if !cmd.HasSubCommands() {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			line, _, _ = strings.Cut(line, " >")
			args := quoted.FindAllString(strings.TrimSpace(line), -1)
			for i := range args {
				args[i] = strings.Trim(args[i], `"`)
			}
			root := newRoot() // flags keep what they were given
			found, rest, err := root.Find(args[1:])
			if err != nil || found.CommandPath() != cmd.CommandPath() {
				t.Errorf("%q is an example of %s: %v", line, cmd.CommandPath(), err)
				continue
			}
			err = found.ParseFlags(rest)
			if err == nil && found.Args != nil {
				err = found.ValidateArgs(found.Flags().Args())
			}
			if err == nil {
				err = found.ValidateRequiredFlags()
			}
			if err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	})
	if seen != len(examples) {
		t.Errorf("%d of %d examples belong to a command", seen, len(examples))
	}
}

var quoted = regexp.MustCompile(`"[^"]*"|\S+`)
