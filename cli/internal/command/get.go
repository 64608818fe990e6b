package command

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/manifest"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// getOptions are the flags of every get.
type getOptions struct {
	format    output.Format
	noHeaders bool
	limit     int
}

func (a *app) getCommand() *cobra.Command {
	cmd := parent("get", "Show objects of one kind",
		`Show objects of one kind, as a table or for machines.

-o table  the columns most asked for; -o wide has more of them
-o json   the API's own JSON with the field names of the proto files; a list is {"items": [...]}
-o yaml   for authorities, profiles, identities and deployments: documents that "sallyport apply"
          takes unchanged; for all others what -o json shows, as YAML
-o name   one kind/name per line, which "describe", "get" and the other commands take as a name

Lists are fetched to their end, page by page; --limit ends them sooner.`)
	for _, k := range kind.All() {
		cmd.AddCommand(a.getKindCommand(k))
	}
	return cmd
}

func (a *app) getKindCommand(k *kind.Kind) *cobra.Command {
	o := getOptions{format: output.FormatTable}
	cmd := &cobra.Command{
		Use:     k.Plural + " [NAME...]",
		Aliases: append([]string{k.Singular}, k.Aliases...),
		Short:   "Show " + k.Plural,
		RunE: func(cmd *cobra.Command, names []string) error {
			if o.limit < 0 {
				return exit.Errorf(exit.Usage, "--limit %d: want 0 for all, or more", o.limit)
			}
			return a.get(cmd, k, o, names)
		},
		ValidArgsFunction: a.completeNames(k),
	}
	fs := cmd.Flags()
	fs.VarP(&o.format, "output", "o", "how to show it: "+strings.Join(output.Formats, ", "))
	fs.BoolVar(&o.noHeaders, "no-headers", false, "leave the line with the column names out")
	fs.IntVar(&o.limit, "limit", 0, "show at most this many; 0 means all")
	k.Flags(fs)
	completeWords(cmd)
	return cmd
}

func (a *app) get(cmd *cobra.Command, k *kind.Kind, o getOptions, names []string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	var found []proto.Message
	var missing error
	for _, name := range names {
		m, err := k.Get(cmd.Context(), c, k.Bare(name))
		if notFound(err) && len(names) > 1 { // show the others first
			if missing == nil {
				missing = err
			}
			continue
		}
		if err != nil {
			return err
		}
		found = append(found, m)
	}
	if len(names) == 0 {
		err := k.Each(cmd.Context(), c, o.limit, func(m proto.Message) bool { found = append(found, m); return true })
		if err != nil {
			return err
		}
	}
	if err := a.show(k, o, found, len(names) == 1); err != nil {
		return err
	}
	if len(found) == 0 && missing == nil && (o.format == output.FormatTable || o.format == output.FormatWide) {
		fmt.Fprintf(a.env.Err, "No %s found.\n", k.Plural)
	}
	return missing
}

// show prints the objects; one is a single object asked for by name.
func (a *app) show(k *kind.Kind, o getOptions, ms []proto.Message, one bool) error {
	w := a.env.Out
	switch o.format {
	case output.FormatJSON:
		return output.WriteJSON(w, !one, ms)
	case output.FormatYAML:
		if !k.Appliable {
			return output.WriteYAML(w, !one, ms)
		}
		b, err := manifest.Marshal(ms...)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	case output.FormatName:
		for _, m := range ms {
			if _, err := fmt.Fprintf(w, "%s/%s\n", k.Singular, output.Clean(k.Name(m))); err != nil {
				return err
			}
		}
		return nil
	}
	t := table(k.Columns, o.format == output.FormatWide, a.now(), ms)
	t.NoHeaders = o.noHeaders
	return t.Write(w)
}
