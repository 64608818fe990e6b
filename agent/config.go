package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/sallyport-pki/sallyport/agent/internal/connector/command"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/files"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/haproxy"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/nginx"
	"github.com/sallyport-pki/sallyport/internal/boot"
	"github.com/sallyport-pki/sallyport/internal/config"
)

// Config is the host's own configuration: what the agent may touch on this
// host, and how. It is read at start only. What it does not allow, no control
// plane can make the agent do.
type Config struct {
	// Server is host:port of the control plane.
	Server string `yaml:"server"`
	// StateDir is where identity, keys, desired state and unsent reports are kept
	// (0700). Default /var/lib/sallyport-agent.
	StateDir string `yaml:"state_dir"`
	// Host is the name to enrol as; default this machine's host name. It is fixed
	// by enrolment.
	Host string `yaml:"host"`
	// TokenFile is a join token to enrol with when "run" finds no identity.
	TokenFile string `yaml:"token_file"`
	// Proxy is the HTTP proxy to go through by CONNECT: http://host:port or
	// https://host:port. Default: none; the environment is not looked at.
	Proxy string `yaml:"proxy"`
	// ProxyCredentialsFile holds "user:password" for the proxy.
	ProxyCredentialsFile string `yaml:"proxy_credentials_file"`
	// Log says what is logged, to standard error.
	Log boot.LogConfig `yaml:"log"`
	// Connectors say which kinds of server software assignments may touch. One
	// that is not here is not enabled.
	Connectors Connectors `yaml:"connectors"`
	// Hooks are the commands that assignments (connector files) and connectors may
	// name. Nothing else is ever run on behalf of an assignment.
	Hooks map[string]Hook `yaml:"hooks"`
	// HTTP01 says how ACME HTTP-01 challenges are answered.
	HTTP01 HTTP01 `yaml:"http01"`
	// Verify says how it is seen what is served.
	Verify Verify `yaml:"verify"`
	// Scan says where to look for certificates.
	Scan Scan `yaml:"scan"`
}

// Connectors are those that can be enabled.
type Connectors struct {
	Nginx   *nginx.Config   `yaml:"nginx"`
	HAProxy *haproxy.Config `yaml:"haproxy"`
	Files   *files.Config   `yaml:"files"`
}

// Hook is a command.
type Hook struct {
	// Command is the program, an absolute path, and its arguments. No shell is
	// involved, and nothing is added to it.
	Command []string `yaml:"command"`
	// Timeout ends it, with all it has started. Default 30s.
	Timeout config.Duration `yaml:"timeout"`
	// User is the account it runs as; default the agent's own.
	User string `yaml:"user"`
}

// HTTP01 is at most one of two ways. With neither, challenges are reported as
// not ready.
type HTTP01 struct {
	// Listen is the address to listen on, such as ":80", for as long as there is a
	// challenge and no longer.
	Listen string `yaml:"listen"`
	// Webroot is the folder that another server answers from on port 80.
	Webroot string `yaml:"webroot"`
}

// Verify is about looking at what is served.
type Verify struct {
	// Interval is how often everything installed is looked at again, for drift;
	// spread by a tenth. Default 5m.
	Interval config.Duration `yaml:"interval"`
	// Wait is how long a server may take to serve a new certificate after its
	// reload; then the old one is put back. Default 15s.
	Wait config.Duration `yaml:"wait"`
}

// Scan is about finding certificates on this host.
type Scan struct {
	// Paths are folders and files to look through, besides the folders that
	// connectors allow and the files that nginx's and HAProxy's configurations
	// name. Default: none.
	Paths []string `yaml:"paths"`
	// Exclude are folders and files to leave alone.
	Exclude []string `yaml:"exclude"`
	// Listeners is auto (all listening sockets of this host, the default),
	// loopback (those that can be reached on loopback) or off.
	Listeners string `yaml:"listeners"`
	// ExcludePorts are ports never to connect to.
	ExcludePorts []uint16 `yaml:"exclude_ports"`
	// Interval is the time between scans; spread by a tenth. Default: what the
	// server says, else 12h.
	Interval config.Duration `yaml:"interval"`
}

const (
	// DefaultConfig is where the configuration is looked for.
	DefaultConfig = "/etc/sallyport/agent.yaml"

	defaultState  = "/var/lib/sallyport-agent"
	defaultHook   = 30 * time.Second
	longestHook   = 5 * time.Minute
	defaultVerify = 5 * time.Minute
	defaultWait   = 15 * time.Second
	longestWait   = time.Minute
)

var hookName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Load reads the configuration at path. It refuses a file that somebody else
// than root or the agent's own user could have written: it says which commands
// are run.
func Load(path string) (Config, error) {
	var cfg Config
	if err := trusted(path); err != nil {
		return cfg, &config.Error{File: path, Message: err.Error()}
	}
	return cfg, config.Load(path, &cfg)
}

// Validate checks the configuration and fills in the defaults.
func (c *Config) Validate() error {
	host, port, err := net.SplitHostPort(c.Server)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("server: %q is not host:port", c.Server)
	}
	if c.StateDir == "" {
		c.StateDir = defaultState
	}
	if c.Host == "" {
		if c.Host, err = os.Hostname(); err != nil {
			return fmt.Errorf("host: %w", err)
		}
	}
	c.Host = strings.ToLower(c.Host)
	for field, path := range map[string]string{
		"state_dir": c.StateDir, "token_file": c.TokenFile, "proxy_credentials_file": c.ProxyCredentialsFile, "http01.webroot": c.HTTP01.Webroot,
	} {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q is not an absolute path", field, path)
		}
	}
	if c.ProxyCredentialsFile != "" && c.Proxy == "" {
		return errors.New("proxy_credentials_file: there is no proxy")
	}
	if strings.Contains(c.Proxy, "@") {
		return errors.New("proxy: put user and password into proxy_credentials_file")
	}
	for _, check := range []func() error{c.Log.Validate, c.HTTP01.validate, c.Verify.validate, c.Scan.validate, c.validateHooks, c.validateConnectors} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validateHooks() error {
	for name, h := range c.Hooks {
		if !hookName.MatchString(name) {
			return fmt.Errorf("hooks: %q: want lower-case letters, digits and dashes", name)
		}
		if h.Timeout == 0 {
			h.Timeout = config.Duration(defaultHook)
			c.Hooks[name] = h
		}
		if h.Timeout.Std() > longestHook {
			return fmt.Errorf("hooks.%s: timeout: at most %s", name, longestHook)
		}
		if err := h.command().Validate(); err != nil {
			return fmt.Errorf("hooks.%s: %w", name, err)
		}
	}
	return nil
}

func (h Hook) command() command.Command {
	return command.Command{Args: h.Command, Timeout: h.Timeout.Std(), User: h.User}
}

func (c *Config) validateConnectors() error {
	if n := c.Connectors.Nginx; n != nil {
		if err := n.Validate(); err != nil {
			return fmt.Errorf("connectors.nginx: %w", err)
		}
	}
	if h := c.Connectors.HAProxy; h != nil {
		if err := h.Validate(); err != nil {
			return fmt.Errorf("connectors.haproxy: %w", err)
		}
	}
	if f := c.Connectors.Files; f != nil {
		if err := f.Validate(); err != nil {
			return fmt.Errorf("connectors.files: %w", err)
		}
	}
	return nil
}

func (h *HTTP01) validate() error {
	if h.Listen != "" && h.Webroot != "" {
		return errors.New("http01: give listen or webroot, not both")
	}
	if h.Listen != "" {
		if _, _, err := net.SplitHostPort(h.Listen); err != nil {
			return fmt.Errorf("http01.listen: %q is not [host]:port", h.Listen)
		}
	}
	return nil
}

func (v *Verify) validate() error {
	if v.Interval == 0 {
		v.Interval = config.Duration(defaultVerify)
	}
	if v.Wait == 0 {
		v.Wait = config.Duration(defaultWait)
	}
	if v.Wait.Std() > longestWait {
		return fmt.Errorf("verify.wait: at most %s", longestWait)
	}
	return nil
}

func (s *Scan) validate() error {
	for _, path := range append(append([]string(nil), s.Paths...), s.Exclude...) {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("scan: %q is not an absolute path", path)
		}
	}
	switch s.Listeners {
	case "":
		s.Listeners = "auto"
	case "auto", "loopback", "off":
	default:
		return fmt.Errorf("scan.listeners: %q: want auto, loopback or off", s.Listeners)
	}
	return nil
}
