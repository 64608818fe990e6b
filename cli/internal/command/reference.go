package command

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
)

func (a *app) explainCommand() *cobra.Command {
	var names []string
	for _, k := range manifest.Kinds {
		names = append(names, strings.ToLower(string(k)))
	}
	return &cobra.Command{
		Use:   "explain KIND[.FIELD]",
		Short: "Show the fields of a document for apply",
		Long:  "Show the fields that a document for \"sallyport apply\" may have: " + strings.Join(names, ", ") + ".\nWith a field, such as deployment.targets, show that alone.",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			name, path, _ := strings.Cut(args[0], ".")
			k, ok := manifestKind(name)
			if !ok {
				return exit.Errorf(exit.Usage, "%q has no documents: want one of %s", name, strings.Join(names, ", "))
			}
			doc, fields, _ := manifest.Reference(k)
			title := fmt.Sprintf("%s: %s", k, doc)
			for path != "" {
				var step string
				step, path, _ = strings.Cut(path, ".")
				i := slices.IndexFunc(fields, func(f manifest.Field) bool { return f.Name == step })
				if i < 0 {
					return exit.Errorf(exit.Usage, "%s has no field %q: see \"sallyport explain %s\"", args[0], step, name)
				}
				title, fields = fmt.Sprintf("%s (%s): %s", args[0], fields[i].Type, fields[i].Doc), fields[i].Fields
			}
			var b bytes.Buffer
			fmt.Fprintln(&b, title)
			explainFields(&b, fields, "  ")
			_, err := a.env.Out.Write(b.Bytes())
			return err
		},
		ValidArgs: names,
	}
}

func manifestKind(name string) (manifest.Kind, bool) {
	k, ok := kind.Find(kind.All(), strings.ToLower(name))
	if !ok {
		return "", false
	}
	for _, m := range manifest.Kinds {
		if strings.EqualFold(string(m), k.Singular) {
			return m, true
		}
	}
	return "", false
}

func explainFields(w io.Writer, fields []manifest.Field, indent string) {
	for _, f := range fields {
		required := ""
		if f.Required {
			required = ", required"
		}
		fmt.Fprintf(w, "%s%s  <%s%s>\n%s    %s\n", indent, f.Name, f.Type, required, indent, f.Doc)
		explainFields(w, f.Fields, indent+"    ")
	}
}

// docsCommand writes the reference that is committed under docs/reference.
func (a *app) docsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "docs DIR", Short: "Write the reference pages", Hidden: true, Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			for name, page := range referencePages(cmd.Root()) {
				if err := os.MkdirAll(args[0], 0o755); err != nil {
					return fmt.Errorf("writing the reference: %w", err)
				}
				if err := os.WriteFile(filepath.Join(args[0], name), page, 0o644); err != nil {
					return fmt.Errorf("writing the reference: %w", err)
				}
			}
			return nil
		},
	}
}

// referencePages are the pages by file name.
func referencePages(root *cobra.Command) map[string][]byte {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return map[string][]byte{"manifests.md": manifestsPage(), "commands.md": commandsPage(root)}
}

const generated = "<!-- Written by \"sallyport docs\". Do not edit. -->\n"

func manifestsPage() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Documents for sallyport apply

%s
One file may hold many documents, parted by `+"`---`"+`. Fields are named as in the API; an unknown field, a wrong type or a
wrong value is refused with file, line and field. Anchors, aliases and merge keys are not supported. Durations are written
like `+"`90d`, `36h`, `10m`"+`; a day is 24 hours. `+"`sallyport get KIND NAME -o yaml`"+` prints a document that apply takes
unchanged, and `+"`sallyport explain KIND`"+` shows this page in the terminal.

`+"```yaml\n%s```\n", generated, manifest.Example)
	for _, k := range manifest.Kinds {
		doc, fields, _ := manifest.Reference(k)
		fmt.Fprintf(&b, "\n## %s\n%s\n\n| field | type | |\n|---|---|---|\n", k, doc)
		fieldRows(&b, fields, "")
	}
	return b.Bytes()
}

func fieldRows(w io.Writer, fields []manifest.Field, prefix string) {
	for _, f := range fields {
		required := ""
		if f.Required {
			required = "**Required.** "
		}
		fmt.Fprintf(w, "| `%s%s` | %s | %s%s |\n", prefix, f.Name, f.Type, required, f.Doc)
		below := prefix + f.Name + "."
		if strings.HasPrefix(f.Type, "list of object") {
			below = prefix + f.Name + "[]."
		}
		fieldRows(w, f.Fields, below)
	}
}

// otherPrograms are the exit codes of the programs that are not this one.
const otherPrograms = `
The other programs have these:

| code | sallyport-agent | sallyport-issuer, -deployer, -inventory, -audit |
|---|---|---|
| 0 | done, or stopped in good order | stopped in good order |
| 1 | something went wrong | something went wrong: a supervisor should start it again |
| 2 | the configuration or the command line is wrong | the same: starting it again does not help |
| 3 | this host is not enrolled | |
| 4 | check: something cannot work | |
| 5 | status: no agent runs on this host | |
`

func commandsPage(root *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Commands\n\n%s\nEvery command also takes:\n\n```\n%s```\n", generated, root.PersistentFlags().FlagUsages())
	fmt.Fprint(&b, "\n## Exit codes\n\n| code | meaning |\n|---|---|\n")
	for _, r := range exit.Table {
		fmt.Fprintf(&b, "| %d | %s |\n", int(r.Code), r.Meaning)
	}
	fmt.Fprint(&b, otherPrograms)
	walkCommands(root, func(cmd *cobra.Command) {
		fmt.Fprintf(&b, "\n## %s\n%s.\n", cmd.CommandPath(), strings.TrimSuffix(cmd.Short, "."))
		if !cmd.HasSubCommands() || cmd.Example != "" {
			fmt.Fprintf(&b, "\n```\n%s\n```\n", cmd.UseLine())
		}
		if len(cmd.Aliases) > 0 {
			fmt.Fprintf(&b, "\nAlso: %s\n", strings.Join(cmd.Aliases, ", "))
		}
		if cmd.Long != "" {
			fmt.Fprintf(&b, "\n```text\n%s\n```\n", strings.TrimSpace(cmd.Long))
		}
		if cmd.Example != "" {
			fmt.Fprintf(&b, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimSpace(cmd.Example), "\n  ", "\n"))
		}
		if flags := ownFlags(cmd); flags.HasAvailableFlags() {
			fmt.Fprintf(&b, "\n```\n%s```\n", flags.FlagUsages())
		}
	})
	return b.Bytes()
}

// ownFlags are a command's flags without help, which all have.
func ownFlags(cmd *cobra.Command) *pflag.FlagSet {
	own := pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && cmd.HasParent() {
			own.AddFlag(f)
		}
	})
	return own
}

func walkCommands(cmd *cobra.Command, visit func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		visit(c)
		walkCommands(c, visit)
	}
}
