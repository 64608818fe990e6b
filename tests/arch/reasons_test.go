package arch

import (
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	reasonWord = regexp.MustCompile(`^[A-Z][A-Z0-9_]{3,}$`)
	reasonRow  = regexp.MustCompile("^\\| `([A-Z0-9_]+)` \\| ([^|]+) \\| ([^|]+) \\| ([^|]+) \\|$")
)

// notReasons are words of the same shape that are no reason of an error. Outside the command line, whose table headings look
// so too, every such word is a reason, or stands here, or begins with SALLYPORT, or names a variable of the environment.
var notReasons = []string{"CERTIFICATE", "COMMIT", "ROLLBACK", "AGENT_STATE_", "REVOCATION_REASON_"}

// component is who gives a reason, as docs/errors.md calls it; "" leaves the folder out.
func component(dir string) string {
	switch {
	case strings.HasSuffix(dir, "test"): // suites and servers for tests
		return ""
	case strings.HasPrefix(dir, "services/internal"):
		return "any service"
	case strings.HasPrefix(dir, "services/"):
		return strings.Split(dir, "/")[1]
	case strings.HasPrefix(dir, "internal/"):
		return "any call"
	case dir == "agent", strings.HasPrefix(dir, "agent/"):
		return "agent"
	case strings.HasPrefix(dir, "cli/"):
		return "command"
	}
	return ""
}

// TestReasons compares the reasons in the code with docs/errors.md, both ways.
func TestReasons(t *testing.T) {
	used := map[string]map[string]bool{} // reason -> who gives it
	seen := map[string]bool{}            // of notReasons
	for _, s := range sources(t) {
		who := component(s.dir)
		if who == "" || s.test() {
			continue
		}
		for _, reason := range reasonsOf(s, seen) {
			if used[reason] == nil {
				used[reason] = map[string]bool{}
			}
			used[reason][who] = true
		}
	}
	if len(used) < 80 {
		t.Fatalf("only %d reasons found: the walk is broken", len(used))
	}
	for _, word := range notReasons {
		if !seen[word] {
			t.Errorf("%q stands no more in the code: mend notReasons", word)
		}
	}

	data, err := os.ReadFile(filepath.Join(root(t), "docs/errors.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for i, line := range strings.Split(string(data), "\n") {
		row := reasonRow.FindStringSubmatch(line)
		if row == nil {
			if strings.HasPrefix(line, "| `") && !strings.HasPrefix(line, "| `kind`") {
				t.Errorf("docs/errors.md:%d: want | `REASON` | where | meaning | what to do |", i+1)
			}
			continue
		}
		reason, where := row[1], row[2]
		if documented[reason] {
			t.Errorf("docs/errors.md:%d: %s stands there twice", i+1, reason)
		}
		documented[reason] = true
		if used[reason] == nil {
			t.Errorf("docs/errors.md:%d: nothing gives %s any more: remove the line", i+1, reason)
			continue
		}
		if want := strings.Join(slices.Sorted(maps.Keys(used[reason])), ", "); where != want {
			t.Errorf("docs/errors.md:%d: %s: where is %q, the code says %q", i+1, reason, where, want)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(used)) {
		if !documented[reason] {
			t.Errorf("docs/errors.md lacks %s (%s): say what it means and what to do", reason, strings.Join(slices.Sorted(maps.Keys(used[reason])), ", "))
		}
	}
}

// reasonsOf gives the reasons that a file names: as the second argument of fault.New, in a field Reason, or in a constant or
// variable whose name begins with Reason. Outside the command line every other word of that shape counts too.
func reasonsOf(s source, seen map[string]bool) []string {
	var found []string
	take := func(e ast.Expr) {
		if word, ok := literal(e); ok && reasonWord.MatchString(word) {
			found = append(found, word)
		}
	}
	strict := strings.HasPrefix(s.dir, "cli/")
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if readsEnvironment(n.Fun) {
				return false
			}
			if isFaultNew(n.Fun, s.dir) && len(n.Args) > 1 {
				take(n.Args[1])
			}
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Reason" {
				take(n.Value)
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				if i < len(n.Values) && strings.HasPrefix(strings.ToLower(name.Name), "reason") {
					take(n.Values[i])
				}
			}
		case *ast.BasicLit:
			if word, ok := literal(n); ok && !strict && reasonWord.MatchString(word) && !strings.HasPrefix(word, "SALLYPORT") {
				if slices.Contains(notReasons, word) {
					seen[word] = true
				} else {
					found = append(found, word)
				}
			}
		}
		return true
	})
	return found
}

func readsEnvironment(f ast.Expr) bool {
	sel, ok := f.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "os" && (sel.Sel.Name == "Getenv" || sel.Sel.Name == "LookupEnv")
}

func isFaultNew(f ast.Expr, dir string) bool {
	switch f := f.(type) {
	case *ast.SelectorExpr:
		pkg, ok := f.X.(*ast.Ident)
		return ok && pkg.Name == "fault" && f.Sel.Name == "New"
	case *ast.Ident:
		return dir == "internal/fault" && f.Name == "New"
	}
	return false
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	word, err := strconv.Unquote(lit.Value)
	return word, err == nil
}
