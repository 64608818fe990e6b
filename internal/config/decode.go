package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

type decoder struct{ file string }

func (d *decoder) errorf(n *yaml.Node, path, format string, args ...any) error {
	return &Error{File: d.file, Line: n.Line, Field: path, Message: fmt.Sprintf(format, args...)}
}

// value decodes n into v, which is settable. Null leaves v as it is.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, depth int) error {
	switch {
	case depth > maxDepth:
		return d.errorf(n, path, "nested deeper than %d levels", maxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return d.errorf(n, path, "anchors and aliases (& and *) are not supported: write it out")
	case isNull(n):
		return nil
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return d.value(n, v.Elem(), path, depth)
	}
	switch u := v.Addr().Interface().(type) {
	case yaml.Unmarshaler:
		return d.own(n, path, u.UnmarshalYAML(n))
	case encoding.TextUnmarshaler:
		if n.Kind != yaml.ScalarNode {
			return d.errorf(n, path, "want text, found %s", describe(n))
		}
		return d.own(n, path, u.UnmarshalText([]byte(n.Value)))
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.structure(n, v, path, depth)
	case reflect.Map:
		return d.mapping(n, v, path, depth)
	case reflect.Slice, reflect.Array:
		return d.sequence(n, v, path, depth)
	case reflect.Interface:
		if v.NumMethod() > 0 {
			return fmt.Errorf("config: cannot decode into %s", v.Type())
		}
		return d.untyped(n, v, path, depth)
	}
	return d.scalar(n, v, path)
}

// own gives the error of a type's own decoding its place, unless it has one.
func (d *decoder) own(n *yaml.Node, path string, err error) error {
	switch e := err.(type) { //nolint:errorlint // only an unwrapped one is a place already
	case nil:
		return nil
	case *Error:
		e.File = d.file
		return e
	case *yaml.TypeError:
		return d.errorf(n, path, "%s", strings.Join(e.Errors, "; "))
	}
	return d.errorf(n, path, "%s", err)
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string, depth int) error {
	if n.Kind != yaml.MappingNode {
		return d.errorf(n, path, "want fields, found %s", describe(n))
	}
	fields := fieldsOf(v.Type())
	return d.pairs(n, path, func(key string, kn, vn *yaml.Node) error {
		index, ok := fields[key]
		if !ok {
			return d.errorf(kn, join(path, key), "unknown field%s", suggest(key, fields))
		}
		f, err := v.FieldByIndexErr(index)
		if err != nil {
			return fmt.Errorf("config: %s: %w", v.Type(), err)
		}
		return d.value(vn, f, join(path, key), depth+1)
	})
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string, depth int) error {
	if n.Kind != yaml.MappingNode {
		return d.errorf(n, path, "want a mapping, found %s", describe(n))
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	return d.pairs(n, path, func(key string, kn, vn *yaml.Node) error {
		k := reflect.New(v.Type().Key()).Elem()
		if err := d.value(kn, k, join(path, key), depth+1); err != nil {
			return err
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(vn, e, join(path, key), depth+1); err != nil {
			return err
		}
		v.SetMapIndex(k, e)
		return nil
	})
}

func (d *decoder) pairs(n *yaml.Node, path string, each func(key string, kn, vn *yaml.Node) error) error {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		kn, vn := n.Content[i], n.Content[i+1]
		if kn.Kind != yaml.ScalarNode {
			return d.errorf(kn, path, "want a name before the colon, found %s", describe(kn))
		}
		if kn.Tag == "!!merge" {
			return d.errorf(kn, path, "merge keys (<<) are not supported: write it out")
		}
		if line, dup := seen[kn.Value]; dup {
			return d.errorf(kn, join(path, kn.Value), "given twice, first on line %d", line)
		}
		seen[kn.Value] = kn.Line
		if err := each(kn.Value, kn, vn); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string, depth int) error {
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
		return fmt.Errorf("config: cannot decode into %s", v.Type())
	}
	if n.Kind != yaml.SequenceNode {
		return d.errorf(n, path, "want a list, found %s", describe(n))
	}
	if v.Kind() == reflect.Array {
		if len(n.Content) != v.Len() {
			return d.errorf(n, path, "want %d items, found %d", v.Len(), len(n.Content))
		}
	} else {
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	}
	for i, item := range n.Content {
		if err := d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// untyped checks n by the same rules and leaves the making to yaml.
func (d *decoder) untyped(n *yaml.Node, v reflect.Value, path string, depth int) error {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		if err := d.mapping(n, reflect.ValueOf(&m).Elem(), path, depth); err != nil {
			return err
		}
		v.Set(reflect.ValueOf(m))
	case yaml.SequenceNode:
		var s []any
		if err := d.sequence(n, reflect.ValueOf(&s).Elem(), path, depth); err != nil {
			return err
		}
		v.Set(reflect.ValueOf(s))
	default:
		var x any
		if err := n.Decode(&x); err != nil {
			return d.errorf(n, path, "cannot be read")
		}
		if x != nil {
			v.Set(reflect.ValueOf(x))
		}
	}
	return nil
}

// scalar wants the type written to be the type of the field: 8080 is no text
// unless quoted, and "8080" is no number.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) error {
	want := map[reflect.Kind]string{reflect.String: "text", reflect.Bool: "true or false", reflect.Float32: "a number", reflect.Float64: "a number"}[v.Kind()]
	if want == "" {
		want = "a whole number"
	}
	if n.Kind != yaml.ScalarNode {
		return d.errorf(n, path, "want %s, found %s", want, describe(n))
	}
	switch {
	case v.Kind() == reflect.String:
		if n.Tag != "!!str" && n.Tag != "!!timestamp" {
			return d.errorf(n, path, "want text, found %s: put it in quotes", describe(n))
		}
		v.SetString(n.Value)
		return nil
	case v.Kind() == reflect.Bool:
		if n.Tag != "!!bool" {
			return d.errorf(n, path, "want true or false, found %s", describe(n))
		}
	case v.CanInt() || v.CanUint():
		if n.Tag != "!!int" {
			return d.errorf(n, path, "want a whole number, found %s", describe(n))
		}
	case v.CanFloat():
		if n.Tag != "!!int" && n.Tag != "!!float" {
			return d.errorf(n, path, "want a number, found %s", describe(n))
		}
	default:
		return fmt.Errorf("config: cannot decode into %s", v.Type())
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		return d.errorf(n, path, "%s is out of range", describe(n))
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if isNull(n) {
		return "nothing"
	}
	s := n.Value
	if len(s) > 40 {
		s = s[:40] + "..."
	}
	return strconv.Quote(s)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// fieldsOf gives the field names of a struct (or pointer to one) with their
// indexes; embedded structs marked inline, or without a tag, belong to it.
func fieldsOf(t reflect.Type) map[string][]int {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	fields := map[string][]int{}
	if t.Kind() != reflect.Struct {
		return fields
	}
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("yaml")
		name, opts, _ := strings.Cut(tag, ",")
		switch {
		case tag == "-" || !f.IsExported() && !f.Anonymous:
			continue
		case strings.Contains(opts, "inline") || f.Anonymous && name == "":
			for sub, index := range fieldsOf(f.Type) {
				fields[sub] = append([]int{i}, index...)
			}
			continue
		case name == "":
			name = strings.ToLower(f.Name)
		}
		fields[name] = []int{i}
	}
	return fields
}

// suggest names the nearest known field, or all when there are few.
func suggest(key string, fields map[string][]int) string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	best, bestAt := "", max(2, len(key)/3)+1
	for _, name := range names {
		if dist := distance(strings.ToLower(key), name); dist < bestAt {
			best, bestAt = name, dist
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf(": did you mean %q?", best)
	case len(names) > 0 && len(names) <= 12:
		return ": known are " + strings.Join(names, ", ")
	}
	return ""
}

// distance is Levenshtein's, cut off for long words.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}
