package output

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Word is an enum value for people: without its prefix, in lower case, with
// dashes; "" for the unspecified one.
func Word(e protoreflect.Enum) string {
	v := e.Descriptor().Values().ByNumber(e.Number())
	if v == nil {
		return fmt.Sprintf("%d", e.Number())
	}
	if e.Number() == 0 {
		return ""
	}
	return word(e.Descriptor(), v)
}

func word(d protoreflect.EnumDescriptor, v protoreflect.EnumValueDescriptor) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix(d))), "_", "-")
}

// prefix is the enum's name in upper snake case (buf's rule for value names).
func prefix(d protoreflect.EnumDescriptor) string {
	var b strings.Builder
	for i, r := range string(d.Name()) {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String()) + "_"
}

// Words are all values of an enum but the unspecified one.
func Words(d protoreflect.EnumDescriptor) []string {
	var all []string
	for i := 1; i < d.Values().Len(); i++ {
		all = append(all, word(d, d.Values().Get(i)))
	}
	return all
}

// ParseWord finds the value of a word; dashes and underscores are the same.
func ParseWord(d protoreflect.EnumDescriptor, s string) (protoreflect.EnumNumber, error) {
	want := strings.ReplaceAll(strings.ToLower(s), "_", "-")
	for i := 1; i < d.Values().Len(); i++ {
		if v := d.Values().Get(i); word(d, v) == want {
			return v.Number(), nil
		}
	}
	return 0, fmt.Errorf("%q is none: want one of %s", s, strings.Join(Words(d), ", "))
}
