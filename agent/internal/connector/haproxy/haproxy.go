// Package haproxy is the connector for HAProxy in master-worker mode: one PEM
// file with the certificate, its chain and the key.
//
// It guarantees that "haproxy -c" has accepted the new file before the running
// HAProxy is told to reload, by SIGUSR2 to its master or by the host's own
// hook, and that connections under way are finished by the old worker.
//
// Where the host's configuration names HAProxy's runtime socket, a file that
// HAProxy has loaded before is replaced in its memory instead, which starts no
// process and ends no connection: after the same check, and only where it comes
// to the same as a reload. Whatever is in doubt is reloaded.
package haproxy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/command"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/process"
)

// Name is what targets call the connector.
const Name = "haproxy"

// SettingCombined is the one setting of a target besides verify and
// server_name: the file of certificate, chain and key (bind ... ssl crt).
const SettingCombined = "combined"

// asks is what Touches says of how the configuration is checked first.
const asks = "has HAProxy asked that first with one more configuration before it, by which HAProxy's HTTP client trusts nobody: " +
	"a check in which no CAs of the system are read"

const (
	checkTimeout = 30 * time.Second
	settle       = 2 * time.Second
)

// Config is the host's configuration of the connector.
type Config struct {
	pemfile.Config `yaml:",inline"`
	// Binary is the path of HAProxy; default /usr/sbin/haproxy.
	Binary string `yaml:"binary"`
	// Main is the path of its configuration, a file or a folder; default
	// /etc/haproxy/haproxy.cfg.
	Main string `yaml:"config"`
	// PIDFile holds the master's process id; default /run/haproxy.pid. The master
	// is told to reload by SIGUSR2.
	PIDFile string `yaml:"pid_file"`
	// Reload names a hook that reloads HAProxy instead.
	Reload string `yaml:"reload"`
	// Socket is the path of a stats socket of level admin. With it, a certificate
	// that HAProxy has loaded already is replaced in its memory, without a reload.
	// Goes with pid_file, not with a hook. Default: none, every change is a reload.
	Socket string `yaml:"socket"`
}

// Validate checks the configuration and fills in the defaults.
func (c *Config) Validate() error {
	if c.Reload != "" && c.PIDFile != "" {
		return errors.New("pid_file and reload: give one of them")
	}
	if c.Reload != "" && c.Socket != "" {
		return errors.New("socket and reload: give one of them; the socket needs pid_file")
	}
	c.Binary = or(c.Binary, "/usr/sbin/haproxy")
	c.Main = or(c.Main, "/etc/haproxy/haproxy.cfg")
	if c.Reload == "" {
		c.PIDFile = or(c.PIDFile, "/run/haproxy.pid")
	}
	for name, path := range map[string]string{"binary": c.Binary, "config": c.Main, "pid_file": or(c.PIDFile, "/"), "socket": or(c.Socket, "/")} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q is not an absolute path", name, path)
		}
	}
	return c.Config.Validate()
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Connector is HAProxy on this host.
type Connector struct {
	rules  pemfile.Rules
	daemon pemfile.Daemon
	socket *socket // nil where none is configured
}

var _ connector.Connector = (*Connector)(nil)

// New makes the connector of a validated configuration.
func New(cfg Config, hooks pemfile.Hooks) (*Connector, error) {
	rules, err := cfg.Rules()
	if err != nil {
		return nil, err
	}
	hook, err := hooks.Find(cfg.Reload)
	if err != nil {
		return nil, fmt.Errorf("reload: %w", err)
	}
	d := pemfile.Daemon{
		Judge: &check{Command: command.Command{Args: []string{cfg.Binary, "-c", "-f", cfg.Main}, Timeout: checkTimeout}, main: cfg.Main},
		Hook:  hook,
	}
	c := &Connector{rules: rules}
	if hook == nil {
		d.Process, d.Signal = &process.Server{PIDFile: cfg.PIDFile, Program: cfg.Binary, Settle: settle}, process.USR2
		if cfg.Socket != "" {
			c.socket = &socket{path: cfg.Socket, master: *d.Process}
		}
	}
	c.daemon = d
	return c, nil
}

// At gives the place that the settings name.
func (c *Connector) At(settings map[string]string) (connector.Place, error) {
	s := connector.ReadSettings(settings)
	paths := map[pemfile.Part]string{pemfile.Combined: s.Need(SettingCombined)}
	listener, err := connector.ReadListener(s)
	if err != nil {
		return nil, err
	}
	if err := s.Done(SettingCombined, connector.SettingVerify, connector.SettingServerName); err != nil {
		return nil, err
	}
	set, err := pemfile.NewSet(c.rules, paths)
	if err != nil {
		return nil, err
	}
	return &pemfile.Place{Set: set, Server: server{Daemon: c.daemon, socket: c.socket, file: paths[pemfile.Combined]}, Listener: listener}, nil
}

// Check looks whether the connector can work on this host.
func (c *Connector) Check(ctx context.Context) []string {
	troubles := append(c.rules.Troubles(), c.daemon.Troubles(ctx)...)
	if c.socket != nil {
		if err := c.socket.works(ctx); err != nil {
			troubles = append(troubles, fmt.Sprintf("socket: every change will be a reload: %v", err))
		}
	}
	return troubles
}

// Touches says what an assignment may touch.
func (c *Connector) Touches() []string {
	out := append(c.daemon.Touches(c.rules), asks)
	if c.socket != nil {
		out = append(out, "replaces certificates in HAProxy's memory, instead of a reload where that does, through "+c.socket.path)
	}
	return out
}
