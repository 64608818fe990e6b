// Package files is the connector for software that reads PEM files and is
// reloaded, if at all, by a hook of the host's own configuration.
//
// It guarantees nothing about the software but what the handshake with it
// shows; a target without an address to verify ends as "installed, cannot see".
package files

import (
	"context"

	"github.com/sallyport-pki/sallyport/agent/internal/connector"
	"github.com/sallyport-pki/sallyport/agent/internal/connector/pemfile"
)

// Name is what targets call the connector.
const Name = "files"

// The settings of a target, besides verify and server_name. There must be a
// file for the leaf and one for the key.
const (
	SettingCertificate = "certificate" // the certificate and its chain
	SettingKey         = "key"         // the private key, PKCS#8
	SettingLeaf        = "leaf"        // the certificate without its chain
	SettingChain       = "chain"       // the chain without the certificate
	SettingCombined    = "combined"    // certificate, chain and key
	SettingReload      = "reload"      // name of the hook that reloads the software
)

var parts = map[string]pemfile.Part{
	SettingCertificate: pemfile.Certificate, SettingKey: pemfile.Key, SettingLeaf: pemfile.Leaf,
	SettingChain: pemfile.Chain, SettingCombined: pemfile.Combined,
}

// Config is the host's configuration of the connector.
type Config struct {
	pemfile.Config `yaml:",inline"`
}

// Connector writes files on this host.
type Connector struct {
	rules pemfile.Rules
	hooks pemfile.Hooks
}

var _ connector.Connector = (*Connector)(nil)

// New makes the connector of a validated configuration.
func New(cfg Config, hooks pemfile.Hooks) (*Connector, error) {
	rules, err := cfg.Rules()
	if err != nil {
		return nil, err
	}
	return &Connector{rules: rules, hooks: hooks}, nil
}

// At gives the place that the settings name.
func (c *Connector) At(settings map[string]string) (connector.Place, error) {
	s := connector.ReadSettings(settings)
	paths := map[pemfile.Part]string{}
	for setting, part := range parts {
		paths[part] = s.Take(setting)
	}
	hook, err := c.hooks.Find(s.Take(SettingReload))
	if err != nil {
		return nil, err
	}
	listener, err := connector.ReadListener(s)
	if err != nil {
		return nil, err
	}
	if err := s.Done(SettingCertificate, SettingKey, SettingLeaf, SettingChain, SettingCombined, SettingReload,
		connector.SettingVerify, connector.SettingServerName); err != nil {
		return nil, err
	}
	set, err := pemfile.NewSet(c.rules, paths)
	if err != nil {
		return nil, err
	}
	return &pemfile.Place{Set: set, Server: pemfile.Daemon{Hook: hook}, Listener: listener}, nil
}

// Check looks whether the connector can work on this host.
func (c *Connector) Check(ctx context.Context) []string {
	out := c.rules.Troubles()
	for _, name := range c.hooks.Names() {
		hook := c.hooks[name]
		for _, t := range (pemfile.Daemon{Hook: &hook}).Troubles(ctx) {
			out = append(out, name+": "+t)
		}
	}
	return out
}

// Touches says what an assignment may touch.
func (c *Connector) Touches() []string {
	out := pemfile.Daemon{}.Touches(c.rules)
	for _, name := range c.hooks.Names() {
		hook := c.hooks[name]
		out = append(out, "may run hook "+name+": "+hook.String())
	}
	return out
}
