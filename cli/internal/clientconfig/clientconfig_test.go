package clientconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func env(vars map[string]string) func(string) string {
	return func(k string) string { return vars[k] }
}

func TestPath(t *testing.T) {
	for _, c := range []struct {
		vars map[string]string
		want string
	}{
		{map[string]string{"SALLYPORT_CONFIG": "/x/c", "HOME": "/h"}, "/x/c"},
		{map[string]string{"XDG_CONFIG_HOME": "/xdg", "HOME": "/h"}, "/xdg/sallyport/config.yaml"},
		{map[string]string{"HOME": "/h"}, "/h/.config/sallyport/config.yaml"},
		{nil, ""},
	} {
		got, err := Path(env(c.vars))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v: %q, %v", c.vars, got, err)
		}
	}
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sub", "config.yaml")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if text != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLoadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"contexts: [{name: a, server: 'h:1'}]":                                                     "contexts[0].identity: missing",
		"contexts: [{server: 'h:1', identity: x}]":                                                 "contexts[0].name: missing",
		"contexts: [{name: a, identity: x}]":                                                       "contexts[0].server: missing: host:port",
		"contexts: [{name: a, identity: x, server: h}]":                                            `contexts[0].server: "h": want host:port`,
		"contexts: [{name: a, identity: x, servers: {audit: 'h:1'}}]":                              "servers does not name all services",
		"contexts: [{name: a, identity: x, server: 'h:1', servers: {mail: 'h:1'}}]":                `servers: "mail" is no service`,
		"contexts: [{name: a, identity: x, server: 'h:1', servers: {audit: 'h'}}]":                 `servers.audit: "h": want host:port`,
		"contexts: [{name: a, identity: x, server: 'h:1'}, {name: a, identity: x, server: 'h:1'}]": `contexts[1].name: "a" stands twice`,
		"current-context: a": `config.yaml:1: current-context: unknown field: did you mean "current_context"?`,
	} {
		_, err := Load(file(t, text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	path := file(t, "current_context: a\ncontexts: [{name: a, server: 'h:1', servers: {audit: 'k:2'}, identity: me}]\n")
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := f.Find("a")
	if c = c.Resolved(path); !ok || c.Identity != filepath.Join(filepath.Dir(path), "me") {
		t.Errorf("got %+v", c)
	}
	if c.Address("audit") != "k:2" || c.Address("issuer") != "h:1" {
		t.Errorf("addresses %s, %s", c.Address("audit"), c.Address("issuer"))
	}
	if f, err := Load(filepath.Join(t.TempDir(), "none")); err != nil || len(f.Contexts) != 0 {
		t.Errorf("a file that is not there: %+v, %v", f, err)
	}
}

func TestPut(t *testing.T) {
	mine, theirs := t.TempDir(), t.TempDir()
	const other = "contexts:\n  - name: other\n    server: h:1\n    identity: /else\n"
	for name, c := range map[string]struct {
		before  string
		want    string
		changed bool
		taken   bool
	}{
		"no file":                   {"", "current_context: td\ncontexts:\n  - name: td\n    server: new:1\n    identity: " + mine + "\n", true, false},
		"others stay":               {"current_context: other\n" + other, "current_context: other\n" + other + "  - name: td\n    server: new:1\n    identity: " + mine + "\n", true, false},
		"moved":                     {"current_context: td\ncontexts:\n  - name: td\n    server: old:1\n    identity: " + mine + "\n", "current_context: td\ncontexts:\n  - name: td\n    server: new:1\n    identity: " + mine + "\n", true, false},
		"as it is":                  {"current_context: td\ncontexts: [{name: td, server: 'new:1', identity: " + mine + "}]\n", "current_context: td\ncontexts: [{name: td, server: 'new:1', identity: " + mine + "}]\n", false, false},
		"another's":                 {"contexts: [{name: td, server: 'h:1', identity: " + theirs + "}]\n", "contexts: [{name: td, server: 'h:1', identity: " + theirs + "}]\n", false, true},
		"another's that is no more": {"contexts: [{name: td, server: 'h:1', identity: /no/such/dir}]\n", "current_context: td\ncontexts:\n  - name: td\n    server: new:1\n    identity: " + mine + "\n", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.before)
			changed, err := Put(path, Context{Name: "td", Server: "new:1", Identity: mine})
			var taken *Taken
			if changed != c.changed || errors.As(err, &taken) != c.taken || (err != nil) != c.taken {
				t.Errorf("changed %v, %v", changed, err)
			}
			if diff := cmp.Diff(c.want, read(t, path)); diff != "" {
				t.Error(diff)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.changed && info.Mode().Perm() != 0o600 {
				t.Errorf("mode %o", info.Mode().Perm())
			}
		})
	}
}

func TestPutsAtOnceDoNotUndoEachOther(t *testing.T) {
	path := file(t, "")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := Put(path, Context{Name: fmt.Sprint(i), Server: "h:1", Identity: "/x"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f, err := Load(path)
	if err != nil || len(f.Contexts) != 20 {
		t.Errorf("%d contexts, %v", len(f.Contexts), err)
	}
}

func TestPutLeavesWhatItCannotRead(t *testing.T) {
	path := file(t, "not: {a contexts file")
	if _, err := Put(path, Context{Name: "td", Server: "h:1", Identity: "/x"}); err == nil {
		t.Error("written over")
	}
	if got := read(t, path); got != "not: {a contexts file" {
		t.Errorf("became %q", got)
	}
}

func TestSaveKeepsALink(t *testing.T) {
	target := file(t, "contexts: []\n")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := (&File{CurrentContext: "x"}).Save(link); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Readlink(link); err != nil {
		t.Error("the link was replaced")
	}
	if !strings.Contains(read(t, target), "current_context: x") {
		t.Error("the file was not written")
	}
}
