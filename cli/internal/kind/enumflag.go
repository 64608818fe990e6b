package kind

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// enum is an enum of the API.
type enum interface {
	~int32
	protoreflect.Enum
}

// enumFlag takes one word of an enum.
type enumFlag[E enum] struct{ v E }

func (f *enumFlag[E]) String() string { return output.Word(f.v) }

func (f *enumFlag[E]) Set(s string) error {
	n, err := output.ParseWord(f.v.Descriptor(), s)
	f.v = E(n)
	return err
}

func (f *enumFlag[E]) Type() string { return "word" }

// enumsFlag takes several, by commas or by repeating the flag.
type enumsFlag[E enum] struct{ vs []E }

func (f *enumsFlag[E]) String() string {
	var all []string
	for _, v := range f.vs {
		all = append(all, output.Word(v))
	}
	return strings.Join(all, ",")
}

func (f *enumsFlag[E]) Set(s string) error {
	for one := range strings.SplitSeq(s, ",") {
		var e enumFlag[E]
		if err := e.Set(strings.TrimSpace(one)); err != nil {
			return err
		}
		f.vs = append(f.vs, e.v)
	}
	return nil
}

func (f *enumsFlag[E]) Type() string { return "words" }

// Words lists what a flag of this kind takes, for completion.
func (f *enumsFlag[E]) Words() []string {
	var zero E
	return output.Words(zero.Descriptor())
}

// Words lists what a flag of this kind takes, for completion.
func (f *enumFlag[E]) Words() []string { return output.Words(f.v.Descriptor()) }
