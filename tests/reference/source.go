package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

const module = "github.com/sallyport-pki/sallyport/"

// packages reads source folders once each.
type packages struct {
	root  string
	known map[string]*pkg
}

// pkg is the source of one package.
type pkg struct {
	dir   string
	types map[string]*ast.TypeSpec
	docs  map[string]string
	files map[string]*ast.File // by the name of a type
}

func (p *packages) load(dir string) (*pkg, error) {
	if have := p.known[dir]; have != nil {
		return have, nil
	}
	files, err := filepath.Glob(filepath.Join(p.root, dir, "*.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("%s: no Go files", dir)
	}
	out := &pkg{dir: dir, types: map[string]*ast.TypeSpec{}, docs: map[string]string{}, files: map[string]*ast.File{}}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, data, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		if !forLinux(file) {
			continue
		}
		for _, d := range file.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				if ts, ok := spec.(*ast.TypeSpec); ok {
					out.types[ts.Name.Name], out.files[ts.Name.Name] = ts, file
					if doc := ts.Doc; doc != nil {
						out.docs[ts.Name.Name] = doc.Text()
					} else {
						out.docs[ts.Name.Name] = gen.Doc.Text()
					}
				}
			}
		}
	}
	p.known[dir] = out
	return out, nil
}

func forLinux(file *ast.File) bool {
	for _, group := range file.Comments {
		if group.Pos() > file.Package {
			break
		}
		for _, c := range group.List {
			if expr, err := constraint.Parse(c.Text); err == nil && !expr.Eval(func(tag string) bool { return tag == "linux" || tag == "unix" }) {
				return false
			}
		}
	}
	return true
}

// structure is a struct with its comment.
type structure struct {
	pkg  *pkg
	name string
	doc  string
	typ  *ast.StructType
}

func (p *packages) structOf(dir, name string) (*structure, error) {
	found, err := p.load(dir)
	if err != nil {
		return nil, err
	}
	ts := found.types[name]
	if ts == nil {
		return nil, fmt.Errorf("%s has no type %s", dir, name)
	}
	st, ok := ts.Type.(*ast.StructType)
	if !ok {
		return nil, fmt.Errorf("%s.%s is no struct", dir, name)
	}
	doc := cell(found.docs[name])
	if rest, ok := strings.CutPrefix(doc, name+" is "); ok { // stands where the field has no comment of its own
		doc = strings.ToUpper(rest[:1]) + rest[1:]
	}
	return &structure{pkg: found, name: name, doc: doc, typ: st}, nil
}

// field is one field as it stands in a file.
type field struct {
	name   string // in Go
	key    string // in YAML
	inline bool
	doc    string
	typ    ast.Expr
}

// step stands between the field and what is below it.
func (f field) step() string {
	switch f.typ.(type) {
	case *ast.ArrayType:
		return "[]"
	case *ast.MapType:
		return ".NAME"
	}
	return ""
}

var exported = regexp.MustCompile(`\b[A-Z][A-Za-z0-9]*\b`)

// fields gives those that a file may have. A field without a comment that follows one belongs to the comment before it.
func (s *structure) fields() ([]field, error) {
	var out []field
	keys := map[string]string{}
	var before string
	for _, f := range s.typ.Fields.List {
		tag := ""
		if f.Tag != nil {
			text, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				return nil, fmt.Errorf("%s.%s: %w", s.pkg.dir, s.name, err)
			}
			tag = reflect.StructTag(text).Get("yaml")
		}
		key, options, _ := strings.Cut(tag, ",")
		if key == "-" {
			continue
		}
		one := field{key: key, inline: strings.Contains(options, "inline"), doc: cell(f.Doc.Text()), typ: f.Type}
		if len(f.Names) > 1 || tag == "" {
			return nil, fmt.Errorf("%s: a field of %s has no yaml key of its own", s.pkg.dir, s.name)
		}
		if len(f.Names) == 1 {
			one.name = f.Names[0].Name
			keys[one.name] = key
		}
		if one.doc == "" && before != "" {
			one.doc = "See `" + before + "`."
		} else if one.doc != "" && !one.inline {
			before = key
		}
		out = append(out, one)
	}
	for i := range out {
		out[i].doc = exported.ReplaceAllStringFunc(out[i].doc, func(word string) string {
			if key, ok := keys[word]; ok && key != "" {
				return "`" + key + "`"
			}
			return word
		})
	}
	return out, nil
}

// cell makes a comment fit into a table.
func cell(comment string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;").Replace(strings.Join(strings.Fields(comment), " "))
}

// resolve follows pointers, lists and mappings to a named type: where it is declared, and how it is called.
func (p *packages) resolve(from *pkg, t ast.Expr) (*pkg, string, error) {
	switch t := t.(type) {
	case *ast.StarExpr:
		return p.resolve(from, t.X)
	case *ast.ArrayType:
		return p.resolve(from, t.Elt)
	case *ast.MapType:
		return p.resolve(from, t.Value)
	case *ast.Ident:
		return from, t.Name, nil
	case *ast.SelectorExpr:
		base, ok := t.X.(*ast.Ident)
		if !ok {
			return nil, "", errors.New("a type that is no name")
		}
		dir, err := importOf(from, base.Name)
		if err != nil {
			return nil, "", err
		}
		to, err := p.load(dir)
		return to, t.Sel.Name, err
	}
	return nil, "", fmt.Errorf("a type of the kind %T", t)
}

// importOf finds the folder of an imported package of ours by the name it has in from.
func importOf(from *pkg, name string) (string, error) {
	for _, file := range from.files {
		for _, spec := range file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return "", err
			}
			dir, ours := strings.CutPrefix(path, module)
			alias := filepath.Base(path)
			if spec.Name != nil {
				alias = spec.Name.Name
			}
			if ours && alias == name {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %q is no package of ours", from.dir, name)
}

// below gives the struct that a field holds, or holds several of; nil for plain values.
func (p *packages) below(from *pkg, t ast.Expr) (*structure, error) {
	to, name, err := p.resolve(from, t)
	if err != nil {
		return nil, err
	}
	if ts := to.types[name]; ts == nil {
		return nil, nil //nolint:nilnil // a predeclared type
	} else if _, ok := ts.Type.(*ast.StructType); !ok {
		return nil, nil //nolint:nilnil // no struct
	}
	return p.structOf(to.dir, name)
}

var plain = map[string]string{
	"string": "text", "bool": "true or false", "float64": "number",
	"int": "whole number", "int32": "whole number", "int64": "whole number", "uint16": "whole number", "uint32": "whole number",
}

// named are types that read a text of their own.
var named = map[string]string{
	"internal/config.Duration":              "duration",
	"agent/internal/connector/pemfile.Mode": "mode, such as \"0640\"",
}

// describe says what to write for a type.
func (p *packages) describe(from *pkg, t ast.Expr) (string, error) {
	switch t := t.(type) {
	case *ast.ArrayType:
		of, err := p.describe(from, t.Elt)
		return "list of " + of, err
	case *ast.MapType:
		of, err := p.describe(from, t.Value)
		return "mapping of name to " + of, err
	case *ast.StarExpr:
		return p.describe(from, t.X)
	}
	to, name, err := p.resolve(from, t)
	if err != nil {
		return "", err
	}
	if word, ok := named[to.dir+"."+name]; ok {
		return word, nil
	}
	ts := to.types[name]
	if ts == nil {
		if word, ok := plain[name]; ok {
			return word, nil
		}
		return "", fmt.Errorf("the type %s is not known here", name)
	}
	if _, ok := ts.Type.(*ast.StructType); ok {
		return "mapping", nil
	}
	return "", fmt.Errorf("%s.%s: say in tests/reference how it is written", to.dir, name)
}
