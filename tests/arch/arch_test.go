// Package arch holds the structure of the repository to its own rules: imports, seams, package
// comments, the method table, and what the protos may never carry.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/sallyport-pki/sallyport/"

// source is one parsed Go file of ours that is not generated.
type source struct {
	path string // relative to the repository's root
	dir  string
	file *ast.File
	text string
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.work")); err != nil {
		t.Fatalf("the repository's root is not where it was: %v", err)
	}
	return dir
}

func sources(t *testing.T) []source {
	t.Helper()
	top := root(t)
	var found []source
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "gen" || name == "testdata" || (name != "." && strings.HasPrefix(name, ".")) || name == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, data, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		found = append(found, source{path: rel, dir: filepath.Dir(rel), file: file, text: string(data)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 100 {
		t.Fatalf("only %d Go files found: the walk is broken", len(found))
	}
	return found
}

func (s source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// TestPackageComments fails on a package that does not say what it guarantees.
func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment: say what it guarantees and what it leaves to others", dir)
		}
	}
}

// mayImport says which of our modules a module may import; what is not listed is forbidden.
var mayImport = map[string][]string{
	"internal":           {},
	"auditlog":           {},
	"services/internal":  {"gen", "internal"},
	"services/inventory": {"gen", "internal", "services/internal"},
	"services/issuer":    {"gen", "internal", "services/internal"},
	"services/deployer":  {"gen", "internal", "services/internal"},
	"services/audit":     {"gen", "internal", "services/internal", "auditlog"},
	"agent":              {"gen", "internal"},
	"pebbletest":         {},
	"docs/examples":      {"gen"},
	"cli":                {"gen", "internal", "auditlog", "services/inventory", "services/issuer", "services/deployer", "services/audit"},
	"tests":              {"gen", "internal", "auditlog", "pebbletest", "agent", "cli", "services/inventory", "services/issuer", "services/deployer", "services/audit"},
}

// inTestsAlso is what tests of a module may import besides.
var inTestsAlso = map[string][]string{
	"services/issuer": {"pebbletest"},
}

func owner(path string) string {
	best := ""
	for m := range mayImport {
		if (path == m || strings.HasPrefix(path, m+"/")) && len(m) > len(best) {
			best = m
		}
	}
	if path == "gen" || strings.HasPrefix(path, "gen/") {
		return "gen"
	}
	return best
}

// TestImports holds the import table of docs/architecture.md.
func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		from := owner(s.dir)
		if from == "" {
			t.Errorf("%s belongs to no module of the import table", s.path)
			continue
		}
		for _, spec := range s.file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			rel, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			to := owner(rel)
			if to == from || slices.Contains(mayImport[from], to) || (s.test() && slices.Contains(inTestsAlso[from], to)) {
				continue
			}
			t.Errorf("%s imports %s: %s may import %v only", s.path, path, from, mayImport[from])
		}
	}
}

// TestDomainImports keeps storage, events and wire types out of what decides.
func TestDomainImports(t *testing.T) {
	domains := []string{
		"services/issuer/internal/issuance", "services/issuer/internal/profile",
		"services/deployer/internal/rollout", "services/deployer/internal/renewal",
		"services/inventory/internal/finding", "services/inventory/internal/registry",
	}
	seen := map[string]bool{}
	for _, s := range sources(t) {
		if !slices.Contains(domains, s.dir) || s.test() {
			continue
		}
		seen[s.dir] = true
		for _, spec := range s.file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			for _, banned := range []string{module + "gen", "database/sql", "github.com/nats-io", "google.golang.org/grpc"} {
				if strings.HasPrefix(path, banned) {
					t.Errorf("%s imports %s: the domain decides, it does not store or translate", s.path, path)
				}
			}
		}
	}
	for _, d := range domains {
		if !seen[d] {
			t.Errorf("%s is gone: mend this table", d)
		}
	}
}

// TestSeams allows a service's root package its five names and what its Config and Deps are made of.
func TestSeams(t *testing.T) {
	functions := []string{"New", "Methods", "EnsureStreams"}
	parts := configParts(t)
	methods := []string{"Register", "Run", "Close", "OnDenied", "Deny", "Traces", "Validate"}
	for _, s := range sources(t) {
		service, ok := strings.CutPrefix(s.dir, "services/")
		if !ok || s.test() || strings.Contains(service, "/") || service == "internal" {
			continue
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				allowed := functions
				if d.Recv != nil {
					allowed = methods
				}
				if d.Name.IsExported() && !slices.Contains(allowed, d.Name.Name) {
					t.Errorf("%s exports %s: a service's seam is Config, Deps, New, Register, Run and what the server needs of them", s.path, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.IsExported() && !slices.Contains([]string{"Config", "Deps", "Service"}, ts.Name.Name) && !parts[service+"."+ts.Name.Name] {
						t.Errorf("%s exports type %s", s.path, ts.Name.Name)
					}
				}
			}
		}
	}
}

// configParts are the types that fields of each service's Config have.
func configParts(t *testing.T) map[string]bool {
	parts := map[string]bool{}
	for _, s := range sources(t) {
		service, ok := strings.CutPrefix(s.dir, "services/")
		if !ok || strings.Contains(service, "/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			ts, ok := n.(*ast.TypeSpec)
			if !ok || ts.Name.Name != "Config" {
				return true
			}
			ast.Inspect(ts.Type, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					parts[service+"."+id.Name] = true
				}
				return true
			})
			return false
		})
	}
	return parts
}

// TestMains keeps programs thin and exits in one place.
func TestMains(t *testing.T) {
	exit := regexp.MustCompile(`\bos\.Exit\(|\blog\.Fatal`)
	for _, s := range sources(t) {
		if s.test() || strings.HasSuffix(s.dir, "test") {
			continue
		}
		main := s.file.Name.Name == "main"
		if main && filepath.Base(s.path) == "main.go" && strings.Contains(s.dir, "/cmd/") {
			if lines := strings.Count(s.text, "\n"); lines > 80 {
				t.Errorf("%s has %d lines: a main loads its configuration and calls the seam, in 80 lines at most", s.path, lines)
			}
			continue
		}
		if !main && s.dir != "internal/boot" && exit.MatchString(s.text) {
			t.Errorf("%s ends the process: only a main may", s.path)
		}
	}
}
