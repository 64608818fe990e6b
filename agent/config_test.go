//go:build linux

package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-pki/sallyport/internal/config"
)

func load(t testing.TB, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

const full = `
server: sallyport.example:8443
state_dir: /var/lib/x
host: Web1.Example
token_file: /etc/sallyport/token
proxy: http://proxy:3128
proxy_credentials_file: /etc/sallyport/proxy
log: {level: debug, format: json}
connectors:
  nginx: {allow: [/etc/nginx/tls], binary: /opt/nginx, config: /opt/nginx.conf, reload: reload-nginx, owner: root, group: "0", key_mode: "0640"}
  haproxy: {allow: [/etc/haproxy/tls], pid_file: /run/h.pid}
  files: {allow: [/srv/app/tls]}
hooks:
  reload-nginx: {command: [/usr/bin/systemctl, reload, nginx]}
  reload-app: {command: [/usr/local/bin/reload-app], timeout: 10s, user: nobody}
http01: {listen: ":80"}
verify: {interval: 10m, wait: 20s}
scan: {paths: [/etc/ssl], exclude: [/etc/ssl/certs], listeners: loopback, exclude_ports: [22], interval: 1d}
`

func TestLoad(t *testing.T) {
	c, err := load(t, full)
	if err != nil {
		t.Fatal(err)
	}
	if c.Host != "web1.example" || c.Hooks["reload-nginx"].Timeout.Std() != 30*time.Second || c.Hooks["reload-app"].Timeout.Std() != 10*time.Second ||
		c.Connectors.Nginx.PIDFile != "" || c.Connectors.HAProxy.Binary != "/usr/sbin/haproxy" || c.Connectors.Nginx.KeyMode != 0o640 ||
		c.Scan.Interval.Std() != 24*time.Hour {
		t.Errorf("%+v", c)
	}
	c, err = load(t, "server: s:1\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.StateDir != "/var/lib/sallyport-agent" || c.Host == "" || c.Verify.Interval.Std() != 5*time.Minute || c.Verify.Wait.Std() != 15*time.Second ||
		c.Scan.Listeners != "auto" || c.Connectors.Nginx != nil {
		t.Errorf("%+v", c)
	}
}

func TestLoadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "server",
		"server: x":                          "not host:port",
		"server: s:1\nserver: s:2":           "given twice",
		"server: s:1\nport: 2":               "port: unknown field",
		"server: s:1\nstate_dir: x":          "state_dir",
		"server: s:1\nproxy: http://u:p@h:1": "proxy_credentials_file",
		"server: s:1\nproxy_credentials_file: /x":                                  "there is no proxy",
		"server: s:1\nlog: {level: loud}":                                          "level",
		"server: s:1\nconnectors: {apache: {}}":                                    "connectors.apache: unknown field",
		"server: s:1\nconnectors: {nginx: {}}":                                     "allow",
		"server: s:1\nconnectors: {nginx: {allow: []}}":                            "allow",
		"server: s:1\nconnectors: {nginx: {allow: [x]}}":                           "absolute path",
		"server: s:1\nconnectors: {nginx: {allow: [/]}}":                           "below the root",
		"server: s:1\nconnectors: {nginx: {allow: [/etc/../x]}}":                   "plain absolute path",
		"server: s:1\nconnectors: {nginx: {allow: [/x], binary: nginx}}":           "binary",
		"server: s:1\nconnectors: {nginx: {allow: [/x], pid_file: /p, reload: r}}": "one of them",
		"server: s:1\nconnectors: {files: {allow: [/x], key_mode: \"0644\"}}":      "others may do nothing",
		"server: s:1\nconnectors: {files: {allow: [/x], key_mode: \"rw\"}}":        "not a file mode",
		"server: s:1\nhooks: {r: {command: []}}":                                   "hooks.r: the command is empty",
		"server: s:1\nhooks: {r: {command: [systemctl, reload]}}":                  "absolute path",
		"server: s:1\nhooks: {r: {command: /bin/true}}":                            "want a list",
		"server: s:1\nhooks: {R r: {command: [/bin/true]}}":                        "lower-case",
		"server: s:1\nhooks: {r: {command: [/bin/true], timeout: 1d}}":             "at most",
		"server: s:1\nhttp01: {listen: \":80\", webroot: /w}":                      "not both",
		"server: s:1\nhttp01: {listen: \"80\"}":                                    "http01.listen",
		"server: s:1\nverify: {wait: 10m}":                                         "at most",
		"server: s:1\nscan: {listeners: all}":                                      "auto, loopback or off",
		"server: s:1\nscan: {paths: [x]}":                                          "absolute path",
		"server: s:1\nscan: {exclude_ports: [70000]}":                              "exclude_ports",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	// What is only seen when the agent is made.
	for text, want := range map[string]string{
		"server: s:1\nconnectors: {nginx: {allow: [/x], reload: nobody}}": "no hook",
		"server: s:1\nconnectors: {files: {allow: [/x], owner: no-such}}": "no-such",
		"server: s:1\nproxy: ftp://x:1":                                   "proxy",
	} {
		c, err := load(t, text)
		if err == nil {
			_, err = New(c, Deps{Log: slog.New(slog.DiscardHandler)})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestConfigOfOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, []byte("server: s:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o644: true, 0o664: false, 0o646: false, 0o666: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); (err == nil) != ok {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 0); err != nil {
			return // an unprivileged user namespace cannot make the file another's
		}
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Error(err)
		}
	}
	if _, err := Load(dir); err == nil {
		t.Error("a folder was taken for a configuration")
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(full)
	f.Add("server: s:1\nhooks: {r: {command: [/bin/true]}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		if config.Decode("agent.yaml", []byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		for _, h := range c.Hooks {
			if len(h.Command) == 0 || !filepath.IsAbs(h.Command[0]) || h.Timeout <= 0 {
				t.Errorf("%+v", h)
			}
		}
		for _, folder := range allowed(c) {
			if !filepath.IsAbs(folder) || folder == "/" {
				t.Errorf("%q is allowed", folder)
			}
		}
	})
}

func allowed(c Config) (all []string) {
	if n := c.Connectors.Nginx; n != nil {
		all = append(all, n.Allow...)
	}
	if h := c.Connectors.HAProxy; h != nil {
		all = append(all, h.Allow...)
	}
	if f := c.Connectors.Files; f != nil {
		all = append(all, f.Allow...)
	}
	return all
}
