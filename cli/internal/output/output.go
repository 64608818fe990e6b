// Package output prints what the operator's command shows: tables, proto JSON,
// YAML, ages. It guarantees that text which came from hosts or certificates
// cannot command the terminal it is shown on, and that the same objects give
// the same bytes.
package output

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"
)

// Format is what -o takes.
type Format string

// The formats.
const (
	FormatTable Format = "table"
	FormatWide  Format = "wide"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
	FormatName  Format = "name"
)

// Formats are all of them, as help shows them.
var Formats = []string{string(FormatTable), string(FormatWide), string(FormatJSON), string(FormatYAML), string(FormatName)}

// String, Set and Type make a Format a flag.
func (f *Format) String() string { return string(*f) }

// Set refuses a format that is none.
func (f *Format) Set(s string) error {
	if !slices.Contains(Formats, s) {
		return fmt.Errorf("unknown format %q: want one of %s", s, strings.Join(Formats, ", "))
	}
	*f = Format(s)
	return nil
}

// Type names the flag's value in help.
func (f *Format) Type() string { return "format" }

// Terminal says whether w is a terminal.
func Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Width is the terminal's width, 0 when w is none.
func Width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}
