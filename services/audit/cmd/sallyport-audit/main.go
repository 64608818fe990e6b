// Command sallyport-audit is the audit service as a program of its own. Its configuration file has the fields of
// daemon.Config and audit.Config.
package main

import (
	"context"

	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/internal/daemon"
)

type configuration struct {
	Daemon daemon.Config `yaml:",inline"`
	Audit  audit.Config  `yaml:",inline"`
}

func (c configuration) Validate() error {
	return config.All(c.Daemon.Validate(), c.Audit.Validate())
}

func main() { daemon.Main(audit.Name, run) }

func run(ctx context.Context, file string) error {
	var c configuration
	if err := config.Load(file, &c); err != nil {
		return err
	}
	return daemon.Run(ctx, c.Daemon, daemon.Spec{
		Name:    audit.Name,
		Methods: audit.Methods(),
		Config:  c,
		Build: func(ctx context.Context, p daemon.Parts) (daemon.Service, error) {
			return audit.New(ctx, c.Audit, audit.Deps{Source: p.Source, NATS: p.NATS, Log: p.Log, Monitor: p.Monitor})
		},
	})
}
