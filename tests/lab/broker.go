package lab

import (
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Broker is a NATS server inside this process, run by a configuration file as nats-server would be.
type Broker struct {
	config string
	server *server.Server
}

// NATS starts a broker by the configuration file and waits until it takes connections. Stop it and Start it again as you like.
func (l *Lab) NATS(config string) (*Broker, error) {
	b := &Broker{config: config}
	l.OnClose(b.Stop)
	return b, b.Start()
}

// Start reads the configuration anew.
func (b *Broker) Start() error {
	options, err := server.ProcessConfigFile(b.config)
	if err != nil {
		return fmt.Errorf("reading %s: %w", b.config, err)
	}
	if !options.JetStream || !options.SyncAlways || !options.TLSMap {
		return errors.New("the broker must have JetStream, sync always, and users by their certificates")
	}
	options.NoSigs, options.NoLog = true, true
	if b.server, err = server.NewServer(options); err != nil {
		return err
	}
	b.server.Start()
	if !b.server.ReadyForConnections(30*time.Second) || !b.server.JetStreamEnabled() {
		return errors.New("the broker takes no connections")
	}
	return nil
}

// Stop ends it in good order and waits.
func (b *Broker) Stop() {
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
		b.server = nil
	}
}
