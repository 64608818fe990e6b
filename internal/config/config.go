// Package config reads YAML (and so JSON) strictly: configuration files of the
// daemons, the agent and the command line, and the documents an operator
// applies. Nothing in a file is passed over in silence: an unknown field, a
// field given twice, a value of the wrong type or a reference (anchor, merge
// key) is an error that names file, line and field.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	maxSize      = 4 << 20
	maxDocuments = 10_000
	maxDepth     = 64
)

// Error is one thing wrong in a file. Line is 0 where no line is known, Field
// is "" where it is not about one.
type Error struct {
	File    string
	Line    int
	Field   string // path such as targets[2].host
	Message string
	Err     error // what it comes from, if anything
}

// Unwrap gives what it comes from.
func (e *Error) Unwrap() error { return e.Err }

// Error gives "FILE:LINE: FIELD: what is wrong".
func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, e.Line)
	}
	if e.Field != "" {
		s += ": " + e.Field
	}
	return s + ": " + e.Message
}

// Validator is what a configuration with rules between its fields has.
type Validator interface{ Validate() error }

// All joins what is wrong in the parts of a configuration into one error of one line; nil where nothing is.
func All(errs ...error) error {
	var wrong []string
	for _, err := range errs {
		if err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(wrong, "; and "))
}

// Load reads the file at path into the struct that into points to, which may
// hold defaults already, and validates it.
func Load(path string, into any) error {
	fi, err := os.Stat(path)
	if err != nil {
		return unreadable(path, err)
	}
	if fi.Size() > maxSize {
		return &Error{File: path, Message: fmt.Sprintf("larger than %d bytes", maxSize)}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return unreadable(path, err)
	}
	if err := Decode(path, data, into); err != nil {
		return err
	}
	if v, ok := into.(Validator); ok {
		if err := v.Validate(); err != nil {
			return &Error{File: path, Message: err.Error()}
		}
	}
	return nil
}

// unreadable is an *Error too: a file that is not there is as wrong as one with a mistake in it.
func unreadable(path string, err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err // the path stands before it
	}
	return &Error{File: path, Message: "the configuration cannot be read: " + err.Error(), Err: err}
}

// Decode reads exactly one YAML document, or none, into the struct that into
// points to. Struct fields are named by `yaml` tags, else by their lower-cased
// name. Errors are of type *Error.
func Decode(file string, data []byte, into any) error {
	nodes, err := parse(file, data)
	if err != nil {
		return err
	}
	if len(nodes) > 1 {
		return &Error{File: file, Line: nodes[1].Line, Message: "a second document (---): only one is wanted here"}
	}
	if len(nodes) == 0 {
		return nil
	}
	return decodeNode(file, nodes[0], into)
}

func decodeNode(file string, n *yaml.Node, into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return fmt.Errorf("config: decoding into %T, want a pointer", into)
	}
	d := decoder{file: file}
	return d.value(n, v.Elem(), "", 0)
}

// parse gives the root node of each document that is not empty.
func parse(file string, data []byte) ([]*yaml.Node, error) {
	if len(data) > maxSize {
		return nil, &Error{File: file, Message: fmt.Sprintf("larger than %d bytes", maxSize)}
	}
	if err := checkText(file, data); err != nil {
		return nil, err
	}
	var nodes []*yaml.Node
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return nodes, nil
		}
		if err != nil {
			return nil, syntaxError(file, err)
		}
		if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 || isNull(doc.Content[0]) {
			continue
		}
		if len(nodes) == maxDocuments {
			return nil, &Error{File: file, Line: doc.Line, Message: fmt.Sprintf("more than %d documents", maxDocuments)}
		}
		nodes = append(nodes, doc.Content[0])
	}
}

// checkText refuses what yaml would refuse without saying where: bytes that are
// not UTF-8, and characters outside YAML 1.2's set (section 5.1).
func checkText(file string, data []byte) error {
	line := 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return &Error{File: file, Line: line, Message: "not UTF-8 text"}
		case r == '\n':
			line++
		case r == '\t', r == '\r', r == 0x85, r == 0xfeff && i == 0:
		case r < 0x20, r >= 0x7f && r < 0xa0, r == 0xfeff, r == 0xfffe, r == 0xffff:
			return &Error{File: file, Line: line, Message: fmt.Sprintf("the character %U may not stand here", r)}
		}
		i += size
	}
	return nil
}

// syntaxError takes the line out of "yaml: line 3: did not find ..."; yaml
// leaves it out where it is the first.
func syntaxError(file string, err error) error {
	e := &Error{File: file, Line: 1, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	var line int
	if n, _ := fmt.Sscanf(e.Message, "line %d:", &line); n == 1 {
		_, rest, _ := strings.Cut(e.Message, ": ")
		e.Line, e.Message = line, rest
	}
	return e
}

// Document is one of several in a file.
type Document struct {
	File string
	Line int
	Kind string // the field "kind"
	Name string // the field "name"
	node *yaml.Node
}

// Documents splits a file of documents, each a mapping with the string fields
// kind and name.
func Documents(file string, data []byte) ([]Document, error) {
	nodes, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	docs := make([]Document, 0, len(nodes))
	for _, n := range nodes {
		d := Document{File: file, Line: n.Line, node: n}
		if n.Kind != yaml.MappingNode {
			return nil, &Error{File: file, Line: n.Line, Message: "want a mapping with the fields kind and name, found " + describe(n)}
		}
		for field, into := range map[string]*string{"kind": &d.Kind, "name": &d.Name} {
			v := lookup(n, field)
			if v == nil || v.Kind != yaml.ScalarNode || v.Value == "" || isNull(v) {
				line := n.Line
				if v != nil {
					line = v.Line
				}
				return nil, &Error{File: file, Line: line, Field: field, Message: "each document needs one"}
			}
			*into = v.Value
		}
		docs = append(docs, d)
	}
	return docs, nil
}

// Decode reads the document strictly into the struct that into points to. The
// fields kind and name need no place in the struct.
func (d Document) Decode(into any) error {
	if d.node == nil {
		return fmt.Errorf("config: decoding an empty document")
	}
	n := *d.node
	n.Content = nil
	known := fieldsOf(reflect.TypeOf(into))
	for i := 0; i+1 < len(d.node.Content); i += 2 {
		key := d.node.Content[i]
		if _, ok := known[key.Value]; !ok && (key.Value == "kind" || key.Value == "name") {
			continue
		}
		n.Content = append(n.Content, key, d.node.Content[i+1])
	}
	return decodeNode(d.File, &n, into)
}

// Errorf makes an error about a field of the document, for rules that only the
// caller knows; it finds the line of the field, given as a path such as
// targets[2].host.
func (d Document) Errorf(field, format string, args ...any) error {
	e := &Error{File: d.File, Line: d.Line, Field: field, Message: fmt.Sprintf(format, args...)}
	if n := find(d.node, field); n != nil {
		e.Line = n.Line
	}
	return e
}

func lookup(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// find follows a path as far as it goes and gives the last node on it.
func find(n *yaml.Node, path string) *yaml.Node {
	for path != "" && n != nil {
		var step string
		if rest, ok := strings.CutPrefix(path, "["); ok {
			step, path, _ = strings.Cut(rest, "]")
			var i int
			if _, err := fmt.Sscanf(step, "%d", &i); err != nil || n.Kind != yaml.SequenceNode || i < 0 || i >= len(n.Content) {
				return n
			}
			n, path = n.Content[i], strings.TrimPrefix(path, ".")
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		step, path = path[:end], strings.TrimPrefix(path[end:], ".")
		next := lookup(n, step)
		if n.Kind != yaml.MappingNode || next == nil {
			return n
		}
		n = next
	}
	return n
}
