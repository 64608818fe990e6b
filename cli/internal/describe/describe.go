// Package describe shows one object with what belongs to it: fetched from
// several services and laid out for a person. Its form may change from version
// to version; programs use the API or "get -o json".
package describe

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// Func describes one object by name.
type Func func(ctx context.Context, c *connect.Client, p *Page, name string) error

// Funcs are the kinds that can be described, by their singular name.
func Funcs() map[string]Func {
	return map[string]Func{
		"deployment": deployment, "certificate": certificate, "host": host, "identity": identity,
		"authority": authority, "profile": profile, "request": request, "agent": agent,
	}
}

// Page collects what is shown.
type Page struct {
	Now   time.Time
	lines []line
}

type line struct {
	indent int
	label  string
	value  string
	raw    []string // a table, already laid out
}

// Field adds a labelled value; an empty one is left out. It returns the page
// so that short pages read as one expression.
func (p *Page) Field(label, value string) *Page { return p.field(0, label, value) }

func (p *Page) field(indent int, label, value string) *Page {
	if value != "" {
		p.lines = append(p.lines, line{indent: indent, label: label, value: output.Clean(value)})
	}
	return p
}

// Time adds a time with how far it is from now.
func (p *Page) Time(label string, t *timestamppb.Timestamp) *Page {
	return p.Field(label, output.Stamp(p.Now, t))
}

// Section adds a heading.
func (p *Page) Section(title string) *Page {
	p.lines = append(p.lines, line{label: title})
	return p
}

// Table adds a table under a heading; none when it has no rows.
func (p *Page) Table(title string, t *output.Table) error {
	if t.Len() == 0 {
		p.Field(title, "none")
		return nil
	}
	var b strings.Builder
	if err := t.Write(&b); err != nil {
		return err
	}
	p.Section(title)
	p.lines = append(p.lines, line{raw: strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")})
	return nil
}

// Write lays the page out: values stand under each other.
func (p *Page) Write(w io.Writer) error {
	width := 0
	for _, l := range p.lines {
		if l.value != "" {
			width = max(width, 2*l.indent+len(l.label)+1)
		}
	}
	var b strings.Builder
	for _, l := range p.lines {
		pad := strings.Repeat("  ", l.indent)
		switch {
		case l.raw != nil:
			for _, r := range l.raw {
				fmt.Fprintf(&b, "  %s\n", r)
			}
		case l.value == "":
			fmt.Fprintf(&b, "%s%s:\n", pad, l.label)
		default:
			fmt.Fprintf(&b, "%s%-*s %s\n", pad, width-2*l.indent, l.label+":", l.value)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
