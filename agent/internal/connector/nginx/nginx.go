// Package nginx is the connector for nginx: a PEM file with the certificate
// and its chain, another with the key.
//
// It guarantees that no nginx loads a configuration which nginx finds wrong, and
// that connections under way are finished by the old workers. The master that
// gets SIGHUP checks the configuration itself and goes on with the old one where
// it is wrong (nginx, "Controlling nginx", "Changing Configuration"), so "nginx
// -t" is asked meanwhile, for its words; before the host's own hook is run, it is
// asked first.
package nginx

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
const Name = "nginx"

// The settings of a target, besides verify and server_name.
const (
	SettingCertificate = "certificate" // file of the certificate and its chain (ssl_certificate)
	SettingKey         = "key"         // file of the key (ssl_certificate_key)
)

const checkTimeout = 30 * time.Second

// worker is what an nginx worker calls itself until its master has told it to go, which closes its listeners. After a reload
// that is 100 ms after the new workers were started: for so long both accept.
const worker = "nginx: worker process"

// Config is the host's configuration of the connector.
type Config struct {
	pemfile.Config `yaml:",inline"`
	// Binary is the path of nginx; default /usr/sbin/nginx.
	Binary string `yaml:"binary"`
	// Main is the path of its main configuration; default /etc/nginx/nginx.conf.
	Main string `yaml:"config"`
	// PIDFile holds the master's process id; default /run/nginx.pid. The master is
	// told to reload by SIGHUP.
	PIDFile string `yaml:"pid_file"`
	// Reload names a hook that reloads nginx instead.
	Reload string `yaml:"reload"`
}

// Validate checks the configuration and fills in the defaults.
func (c *Config) Validate() error {
	if c.Reload != "" && c.PIDFile != "" {
		return errors.New("pid_file and reload: give one of them")
	}
	c.Binary = or(c.Binary, "/usr/sbin/nginx")
	c.Main = or(c.Main, "/etc/nginx/nginx.conf")
	if c.Reload == "" {
		c.PIDFile = or(c.PIDFile, "/run/nginx.pid")
	}
	for name, path := range map[string]string{"binary": c.Binary, "config": c.Main, "pid_file": or(c.PIDFile, "/")} {
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

// Connector is nginx on this host.
type Connector struct {
	rules  pemfile.Rules
	daemon pemfile.Daemon
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
		ChecksFirst: true,
		Judge:       &command.Command{Args: []string{cfg.Binary, "-t", "-q", "-c", cfg.Main}, Timeout: checkTimeout},
		Hook:        hook,
	}
	if hook == nil {
		d.Process, d.Signal = &process.Server{PIDFile: cfg.PIDFile, Program: cfg.Binary, Worker: worker}, process.HUP
	}
	return &Connector{rules: rules, daemon: d}, nil
}

// At gives the place that the settings name.
func (c *Connector) At(settings map[string]string) (connector.Place, error) {
	s := connector.ReadSettings(settings)
	paths := map[pemfile.Part]string{pemfile.Certificate: s.Need(SettingCertificate), pemfile.Key: s.Need(SettingKey)}
	listener, err := connector.ReadListener(s)
	if err != nil {
		return nil, err
	}
	if err := s.Done(SettingCertificate, SettingKey, connector.SettingVerify, connector.SettingServerName); err != nil {
		return nil, err
	}
	set, err := pemfile.NewSet(c.rules, paths)
	if err != nil {
		return nil, err
	}
	return &pemfile.Place{Set: set, Server: c.daemon, Listener: listener}, nil
}

// Check looks whether the connector can work on this host.
func (c *Connector) Check(ctx context.Context) []string {
	return append(c.rules.Troubles(), c.daemon.Troubles(ctx)...)
}

// Touches says what an assignment may touch.
func (c *Connector) Touches() []string { return c.daemon.Touches(c.rules) }
