// Command sallyport-inventory is the inventory service as a program of its own. Its configuration file has the fields of
// daemon.Config and inventory.Config.
package main

import (
	"context"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/services/internal/daemon"
	"github.com/sallyport-pki/sallyport/services/inventory"
)

type configuration struct {
	Daemon    daemon.Config    `yaml:",inline"`
	Inventory inventory.Config `yaml:",inline"`
}

func (c configuration) Validate() error {
	return config.All(c.Daemon.Validate(), c.Inventory.Validate())
}

func main() { daemon.Main(inventory.Name, run) }

func run(ctx context.Context, file string) error {
	var c configuration
	if err := config.Load(file, &c); err != nil {
		return err
	}
	return daemon.Run(ctx, c.Daemon, daemon.Spec{
		Name:    inventory.Name,
		Methods: inventory.Methods(),
		Config:  c,
		Build: func(ctx context.Context, p daemon.Parts) (daemon.Service, error) {
			return inventory.New(ctx, c.Inventory, inventory.Deps{Source: p.Source, NATS: p.NATS, Log: p.Log, Monitor: p.Monitor})
		},
	})
}
