// Reference writes docs/reference/configuration.md from the comments of the configuration structs, so that the page says what
// the code says. It fails on a field that nobody has explained.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	root := flag.String("root", ".", "the repository's `folder`")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	page, err := configuration(root)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "docs/reference/configuration.md"), page, 0o644)
}

// section is one heading of the page with the fields of one struct.
type section struct {
	title string
	dir   string // of the package
	typ   string
	intro string // Markdown
}

// programs are the files that somebody writes.
var programs = []section{
	{"sallyport serve", "cli/internal/serve", "Config",
		"`sallyport serve --config FILE`; `--data` and `--listen` on the command line go before the file. Example: [serve.yaml](../../deploy/config/serve.yaml). All of it is read at start only."},
	{"sallyport-agent", "agent", "Config",
		"`sallyport-agent run --config FILE`, by default `/etc/sallyport/agent.yaml`. Example: [agent.yaml](../../deploy/config/agent.yaml). It is the host's own configuration: what the agent may touch on this host, and how. What it does not allow, no control plane can make the agent do. It is read at start only."},
	{"sallyport-inventory", "services/inventory/cmd/sallyport-inventory", "configuration", daemonIntro("inventory")},
	{"sallyport-issuer", "services/issuer/cmd/sallyport-issuer", "configuration", daemonIntro("issuer")},
	{"sallyport-deployer", "services/deployer/cmd/sallyport-deployer", "configuration", daemonIntro("deployer")},
	{"sallyport-audit", "services/audit/cmd/sallyport-audit", "configuration", daemonIntro("audit")},
}

func daemonIntro(name string) string {
	return fmt.Sprintf("`sallyport-%[1]s --config FILE`, by default `/etc/sallyport/%[1]s.yaml`. Example: [%[1]s.yaml](../../deploy/config/%[1]s.yaml).", name)
}

// parts are structs that stand in several files: they get a heading of their own and are referred to.
var parts = []section{
	{"Every daemon", "services/internal/daemon", "Config", "What all four daemons have at the top level of their files. It is read at start only."},
	{"Inventory", "services/inventory", "Config", "At the top level of inventory.yaml, and under `inventory` in the file of serve. It is read at start only."},
	{"Issuer", "services/issuer", "Config", "At the top level of issuer.yaml, and under `issuer` in the file of serve, where `database` and `key_encryption_key` are filled in. It is read at start only."},
	{"Deployer", "services/deployer", "Config", "At the top level of deployer.yaml, and under `deployer` in the file of serve. It is read at start only."},
	{"Audit", "services/audit", "Config", "At the top level of audit.yaml, and under `audit` in the file of serve, where `directory` is filled in. It is read at start only."},
	{"Database", "services/internal/db", "Config", "Where a service keeps its data. It is opened at start only; a new schema version is applied then."},
	{"Limits", "internal/rpc", "Limits", "What one caller can take. It is read at start only."},
	{"Log", "internal/boot", "LogConfig", "What goes to standard error. It is read at start only."},
}

var contexts = section{"Contexts of the command line", "cli/internal/clientconfig", "File",
	"`$SALLYPORT_CONFIG`, else `sallyport/config.yaml` in `$XDG_CONFIG_HOME` or `~/.config`. `sallyport config` edits it, and `sallyport serve` adds its own context."}

const head = `# Configuration

<!-- Written by tests/reference from the comments in the code ("make docs"). Do not edit. -->

Files are YAML, and so may be JSON. They are read strictly: an unknown field, a field given twice, a value of the wrong type, an
anchor or a merge key is refused with file, line and field, and the program ends with exit code 2, as it does when there is no such
file or it may not read it. What is left out has the default that is named here; where none is named, it is off or empty. Durations are written like ` + "`90d`, `36h`, `10m`, `500ms`" + `;
a day is 24 hours. A secret never stands in a file: only the path of a file with it does.

Each program checks its whole file before it does anything else, and says in one line what is wrong in each part of it.
`

func configuration(root string) ([]byte, error) {
	w := &writer{packages: packages{root: root, known: map[string]*pkg{}}}
	w.WriteString(head)
	for _, s := range programs {
		w.section(s)
	}
	w.section(contexts)
	w.WriteString("\n# Parts of several files\n")
	for _, s := range parts {
		w.section(s)
	}
	return w.Bytes(), errors.Join(w.errs...)
}

// writer makes the page and gathers what is wrong.
type writer struct {
	bytes.Buffer
	packages packages
	errs     []error
}

func (w *writer) section(s section) {
	st, err := w.packages.structOf(s.dir, s.typ)
	if err != nil {
		w.errs = append(w.errs, err)
		return
	}
	fmt.Fprintf(w, "\n## %s\n%s\n", s.title, s.intro)
	var rows bytes.Buffer
	w.rows(&rows, st, "")
	if rows.Len() > 0 {
		fmt.Fprintf(w, "\n| field | type | |\n|---|---|---|\n%s", rows.Bytes())
	}
}

// rows writes the fields of a struct, and those below them.
func (w *writer) rows(out *bytes.Buffer, st *structure, prefix string) {
	fields, err := st.fields()
	if err != nil {
		w.errs = append(w.errs, err)
		return
	}
	for _, f := range fields {
		below, err := w.packages.below(st.pkg, f.typ)
		if err != nil {
			w.errs = append(w.errs, fmt.Errorf("%s.%s: %w", st.name, f.name, err))
			continue
		}
		part := partOf(below)
		switch {
		case f.inline && part != nil:
			fmt.Fprintf(out, "| all of [%s](#%s) | | At the top level of this file. |\n", part.title, anchor(part.title))
			continue
		case f.inline:
			w.rows(out, below, prefix)
			continue
		}
		kind, err := w.packages.describe(st.pkg, f.typ)
		if err != nil {
			w.errs = append(w.errs, fmt.Errorf("%s.%s: %w", st.name, f.name, err))
			continue
		}
		doc := f.doc
		if doc == "" && below != nil {
			doc = below.doc
		}
		if doc == "" && part == nil {
			w.errs = append(w.errs, fmt.Errorf("%s: the field %s.%s has no comment", st.pkg.dir, st.name, f.name))
			continue
		}
		if part != nil {
			fmt.Fprintf(out, "| `%s%s` | [%s](#%s) | %s |\n", prefix, f.key, kind, anchor(part.title), doc)
			continue
		}
		fmt.Fprintf(out, "| `%s%s` | %s | %s |\n", prefix, f.key, kind, doc)
		if below != nil {
			w.rows(out, below, prefix+f.key+f.step()+".")
		}
	}
}

func partOf(st *structure) *section {
	for i, p := range parts {
		if st != nil && st.pkg.dir == p.dir && st.name == p.typ {
			return &parts[i]
		}
	}
	return nil
}

// anchor is the address of a heading within the page.
func anchor(title string) string { return strings.ReplaceAll(strings.ToLower(title), " ", "-") }
