// Command sallyport-deployer is the deployer service as a program of its own. Its configuration file has the fields of
// daemon.Config and deployer.Config, the authority that signs agents' identities, and peers.
package main

import (
	"context"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/services/deployer"
	"github.com/sallyport-pki/sallyport/services/internal/daemon"
)

func main() { daemon.Main(deployer.Name, run) }

func run(ctx context.Context, file string) error {
	var c configuration
	if err := config.Load(file, &c); err != nil {
		return err
	}
	return daemon.Run(ctx, c.Daemon, daemon.Spec{
		Name:    deployer.Name,
		Methods: deployer.Methods(),
		Config:  c,
		Build: func(ctx context.Context, p daemon.Parts) (daemon.Service, error) {
			authority, err := c.Authority.load()
			if err != nil {
				return nil, err
			}
			issuer, err := p.Dial("issuer", c.Peers.Issuer)
			if err != nil {
				return nil, err
			}
			inventory, err := p.Dial("inventory", c.Peers.Inventory)
			if err != nil {
				return nil, err
			}
			return deployer.New(ctx, c.Deployer, deployer.Deps{
				Source: p.Source, NATS: p.NATS, AgentCA: authority, Issuer: issuer, Inventory: inventory, Log: p.Log, Monitor: p.Monitor,
			})
		},
	})
}
