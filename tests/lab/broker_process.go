package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const brokerConfig = "SALLYPORT_LAB_BROKER"

// BrokerMain is run unless this process is to be a broker, which NATSProcess has started: then it is one, until it is told to
// stop. The result is for os.Exit, in TestMain.
func BrokerMain(run func() int) int {
	config := os.Getenv(brokerConfig)
	if config == "" {
		return run()
	}
	if err := runBroker(config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runBroker(config string) error {
	options, err := server.ProcessConfigFile(config)
	if err != nil {
		return fmt.Errorf("reading %s: %w", config, err)
	}
	if !options.JetStream || !options.SyncAlways || !options.TLSMap || options.Cluster.Port != 0 && (!options.Cluster.TLSMap || options.Cluster.Username == "") {
		return errors.New("a broker must have JetStream, sync always, and users and peers by their certificates")
	}
	s, err := server.NewServer(options)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	if err := server.Run(s); err != nil {
		return err
	}
	s.WaitForShutdown()
	return nil
}

// BrokerProcess is a NATS server in a process of its own, which can be killed.
type BrokerProcess struct {
	*Process
	// Address is where it takes clients.
	Address string

	lab     *Lab
	command Command
}

// NATSProcess starts a broker by the configuration file.
func (l *Lab) NATSProcess(ctx context.Context, id, config, address string) (*BrokerProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &BrokerProcess{Address: address, lab: l, command: Command{Name: id, Path: self, Env: []string{brokerConfig + "=" + config, "GORACE=" + os.Getenv("GORACE")}, Dir: filepath.Dir(config)}}
	return b, b.Start(ctx)
}

// Start starts it again after it was stopped or killed, and waits until it takes connections. One that is alone in its cluster
// does, but answers nothing.
func (b *BrokerProcess) Start(ctx context.Context) error {
	p, err := b.lab.Start(b.command)
	if err != nil {
		return err
	}
	b.Process = p
	return Await(ctx, time.Minute, b.Name+" to take connections", func() error {
		conn, err := net.Dial("tcp", b.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	}, p)
}
