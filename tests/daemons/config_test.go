package daemons

import (
	"os"
	"path/filepath"
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
