package command

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// TestArguments gives every command too few arguments and too many: what is missing, or one too many, is named in one line, with the
// code for usage, and nothing is done.
func TestArguments(t *testing.T) {
	root := (&app{env: Environment{Getenv: func(string) string { return "" }}, now: time.Now}).root()
	run := func(args []string, want ...string) {
		t.Helper()
		var out, told bytes.Buffer
		code := Main(Environment{In: strings.NewReader(""), Out: &out, Err: &told, Getenv: func(string) string { return "" }, Args: args})
		line := told.String()
		for _, w := range want {
			if !strings.Contains(line, w) {
				t.Errorf("%q: %q has no %q", args, line, w)
			}
		}
		if code != int(exit.Usage) || strings.Count(line, "\n") != 1 || out.Len() > 0 {
			t.Errorf("%q: code %d, %q, %q", args, code, line, out.String())
		}
	}
	few, many := 0, 0
	walkCommands(root, func(cmd *cobra.Command) {
		if cmd.Args == nil {
			return
		}
		path := strings.Fields(cmd.CommandPath())[1:]
		if cmd.Args(cmd, nil) != nil {
			few++
			word := operand(cmd.Use)
			if word != strings.ToUpper(word) || word == "" {
				t.Errorf("%q stands for an argument of %s", word, cmd.CommandPath())
			}
			run(path, `sallyport: "`+cmd.CommandPath()+`" needs `+word+", as in: "+cmd.CommandPath()+" ")
		}
		if cmd.Args(cmd, []string{"a", "b"}) != nil {
			many++
			run(slices.Concat(path, []string{"unheard-of", "unheard-of"}), `sallyport: "unheard-of" is no`, cmd.CommandPath())
		}
	})
	if few < 20 || many < 40 {
		t.Errorf("only %d commands want arguments, and %d no more", few, many)
	}
	run([]string{"restore", "--data", "x"}, `needs FILE, as in: sallyport restore `)
	run([]string{"trust", "issue"}, `needs KIND/NAME, as in: sallyport trust issue `)
	run([]string{"audit", "verify"}, `needs DIR|EXPORT|PROOF, as in: sallyport audit verify `)
	run([]string{"backup", "verfy"}, `"verfy" is no command of "sallyport backup": did you mean "verify"?`)
}
