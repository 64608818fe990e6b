package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	heading = regexp.MustCompile(`^## (sallyport [a-z -]+)$`)
	also    = regexp.MustCompile(`^Also: (.+)$`)
	mention = regexp.MustCompile(`\bsallyport((?: [a-z][a-z-]*)+)(/?)`)
	code    = regexp.MustCompile("(?s)```.*?```|`[^`\n]+`")
)

// TestCommandsExist looks for commands that the pages name and the program does not have.
func TestCommandsExist(t *testing.T) {
	reference, err := os.ReadFile(filepath.Join(root(t), "docs/reference/commands.md"))
	must(t, err)
	known, parents := map[string]bool{}, map[string]bool{}
	var last string
	for line := range strings.Lines(string(reference)) {
		line = strings.TrimSpace(line)
		if h := heading.FindStringSubmatch(line); h != nil {
			last = h[1]
			known[last] = true
			parents[last[:strings.LastIndex(last, " ")]] = true
		}
		if a := also.FindStringSubmatch(line); a != nil {
			for alias := range strings.SplitSeq(a[1], ", ") {
				known[last[:strings.LastIndex(last, " ")+1]+alias] = true
			}
		}
	}
	if len(known) < 50 {
		t.Fatalf("only %d commands found in the reference", len(known))
	}
	pages, err := filepath.Glob(filepath.Join(root(t), "docs/*.md"))
	must(t, err)
	checked := 0
	for _, page := range append(pages, filepath.Join(root(t), "README.md")) {
		data, err := os.ReadFile(page)
		must(t, err)
		for _, block := range code.FindAllString(string(data), -1) {
			for _, m := range mention.FindAllStringSubmatch(block, -1) {
				words := strings.Fields(m[1])
				path := "sallyport " + words[0]
				if m[2] == "/" || words[0] == "help" || words[0] == "completion" {
					continue
				}
				if known[path] && parents[path] && len(words) > 1 {
					path += " " + words[1]
				}
				checked++
				if !known[path] {
					t.Errorf("%s: there is no command %q", filepath.Base(page), path)
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d commands checked", checked)
	}
}
