package command

import (
	"os"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func table(columns []kind.Column, wide bool, now time.Time, ms []proto.Message) *output.Table {
	t := &output.Table{}
	var shown []kind.Column
	for _, c := range columns {
		if c.Wide && !wide {
			continue
		}
		shown = append(shown, c)
		t.Columns = append(t.Columns, c.Header)
	}
	for _, m := range ms {
		cells := make([]string, len(shown))
		for i, c := range shown {
			cells[i] = c.Cell(m, now)
		}
		t.Add(cells...)
	}
	return t
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
