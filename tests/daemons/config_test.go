package daemons

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-pki/sallyport/agent"
	"github.com/sallyport-pki/sallyport/tests/lab"
)

// TestEveryFileIsUsed keeps deploy/config to what these tests run.
func TestEveryFileIsUsed(t *testing.T) {
	found, err := filepath.Glob(filepath.Join(repository(t), "deploy/config/*"))
	must(t, err)
	var names []string
	for _, path := range found {
		names = append(names, filepath.Base(path))
	}
	want := []string{"agent.yaml", "audit.yaml", "contexts.yaml", "deployer.yaml", "inventory.yaml", "issuer.yaml", "nats-cluster.conf", "nats.conf", "serve.yaml"}
	if !slices.Equal(names, want) {
		t.Errorf("there is %v, tested are %v", names, want)
	}
}

// TestAgentFile reads agent.yaml as it is, and with all that it has as comments.
func TestAgentFile(t *testing.T) {
	for name, text := range map[string]string{"as it is": read(t, "agent.yaml"), "with everything": uncomment(t, read(t, "agent.yaml"), "proxy:", "proxy_credentials_file:")} {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		cfg, err := agent.Load(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if cfg.Connectors.Nginx == nil || cfg.Connectors.Files == nil || len(cfg.Hooks) != 1 || cfg.HTTP01.Listen != ":80" {
			t.Errorf("%s: read as %+v", name, cfg)
		}
	}
}

// TestServeFile runs serve by serve.yaml, and again with the database that it has as a comment.
func TestServeFile(t *testing.T) {
	l := newLab(t)
	dsn, err := l.Postgres(t.Context(), "postgres")
	must(t, err)
	for name, text := range map[string]string{"sqlite": read(t, "serve.yaml"), "postgres": uncomment(t, read(t, "serve.yaml"), "database:", "  driver:", "  dsn:")} {
		t.Run(name, func(t *testing.T) {
			listen := address(t)
			data := filepath.Join(l.Dir, name)
			text := text
			for from, to := range map[string]string{"/var/lib/sallyport": data, "0.0.0.0:8443": listen, "127.0.0.1:9464": address(t)} {
				if !strings.Contains(text, from) {
					t.Fatalf("serve.yaml does not have %s any more", from)
				}
				text = strings.ReplaceAll(text, from, to)
			}
			text = strings.ReplaceAll(text, "host=postgres.example.com user=sallyport dbname=sallyport", dsn)
			file := filepath.Join(l.Dir, name+".yaml")
			must(t, os.WriteFile(file, []byte(text), 0o600))
			proc, err := l.Start(lab.Command{Name: name, Path: filepath.Join(l.Bin, "sallyport"), Args: []string{"serve", "--config", file}})
			must(t, err)
			p := &plant{Lab: l, t: t, context: filepath.Join(data, "operator", "config.yaml")}
			must(t, lab.Await(t.Context(), patience, "serve", func() error {
				_, err := p.cli(t.Context(), "get", "agents")
				return err
			}, proc))
			p.awaitAll()
			must(t, proc.Stop())
			if proc.ExitCode() != 0 {
				t.Errorf("it ended with code %d", proc.ExitCode())
			}
		})
	}
}

// TestWrongCommand: what starting again does not mend ends with code 2, so that no supervisor tries for ever.
func TestWrongCommand(t *testing.T) {
	l := newLab(t)
	folder := t.TempDir()
	missing, empty, noToken := filepath.Join(folder, "missing"), filepath.Join(folder, "empty"), filepath.Join(folder, "token")
	must(t, os.WriteFile(empty, nil, 0o600))
	must(t, os.WriteFile(noToken, []byte("spj1.x"), 0o600))
	enroller := filepath.Join(folder, "agent.yaml")
	must(t, os.WriteFile(enroller, []byte("server: 127.0.0.1:1\nstate_dir: "+filepath.Join(folder, "state")), 0o600))
	for program, commands := range map[string][]string{
		"sallyport-issuer": {""}, "sallyport-audit": {""}, "sallyport-deployer": {""}, "sallyport-inventory": {""},
		"sallyport": {"serve", "backup", "restore", "backup verify"}, "sallyport-agent": {"run", "check", "status", "enroll"},
	} {
		for _, command := range commands {
			for file, what := range map[string]string{missing: "no such file", folder: "directory|plain file", empty: ""} {
				args := append(strings.Fields(command), "--config", file)
				if command == "restore" || command == "backup verify" {
					args = append(args, file)
				}
				wrong(t, l, what, program, args...)
			}
		}
	}
	for file, what := range map[string]string{missing: "no such file", folder: "plain file", empty: "no join token", noToken: "incomplete"} {
		wrong(t, l, what, "sallyport-agent", "enroll", "--config", enroller, "--token-file", file)
	}
}

// wrong wants code 2 and a line that says what is wrong.
func wrong(t *testing.T, l *lab.Lab, what, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(l.Bin, program), args...)
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 2 || !regexp.MustCompile(what).Match(out) {
		t.Errorf("%s %s: code %d (%v), want 2 and %q: %s", program, strings.Join(args, " "), code, err, what, out)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository(t), "deploy/config", name))
	must(t, err)
	return string(data)
}

// uncomment makes settings of lines that are comments.
func uncomment(t *testing.T, text string, settings ...string) string {
	t.Helper()
	for _, s := range settings {
		if strings.Count(text, "\n# "+s) != 1 {
			t.Fatalf("there is not one line \"# %s\"", s)
		}
		text = strings.Replace(text, "\n# "+s, "\n"+s, 1)
	}
	return text
}
