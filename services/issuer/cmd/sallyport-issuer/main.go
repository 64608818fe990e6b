// Command sallyport-issuer is the issuer service as a program of its own. Its configuration file has the fields of
// daemon.Config and issuer.Config, and peers.
package main

import (
	"context"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/services/internal/daemon"
	"github.com/sallyport-pki/sallyport/services/issuer"
)

type configuration struct {
	Daemon daemon.Config `yaml:",inline"`
	Issuer issuer.Config `yaml:",inline"`
	// Peers are the other services.
	Peers peers `yaml:"peers"`
}

type peers struct {
	// Inventory answers what names an identity may have: "host:port", required.
	Inventory string `yaml:"inventory"`
}

func (c configuration) Validate() error {
	return config.All(c.Daemon.Validate(), daemon.CheckPeer("peers.inventory", c.Peers.Inventory), c.Issuer.Validate())
}

func main() { daemon.Main(issuer.Name, run) }

func run(ctx context.Context, file string) error {
	var c configuration
	if err := config.Load(file, &c); err != nil {
		return err
	}
	return daemon.Run(ctx, c.Daemon, daemon.Spec{
		Name:    issuer.Name,
		Methods: issuer.Methods(),
		Config:  c,
		Build: func(ctx context.Context, p daemon.Parts) (daemon.Service, error) {
			inventory, err := p.Dial("inventory", c.Peers.Inventory)
			if err != nil {
				return nil, err
			}
			return issuer.New(ctx, c.Issuer, issuer.Deps{Source: p.Source, NATS: p.NATS, Inventory: inventory, Log: p.Log, Monitor: p.Monitor})
		},
	})
}
