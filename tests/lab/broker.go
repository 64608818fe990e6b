package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Broker is a NATS server inside this process, run by a configuration file as nats-server would be.
type Broker struct {
	config, log string
	server      *server.Server
}

// NATS starts a broker by the configuration file and waits until it takes connections. Stop it and Start it again as you like.
func (l *Lab) NATS(config string) (*Broker, error) {
	b := &Broker{config: config, log: filepath.Join(l.Dir, "broker.log")}
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
	options.NoSigs = true
	if b.server, err = server.NewServer(options); err != nil {
		return err
	}
	b.server.SetLoggerV2(brokerLog(b.log), false, false, false)
	b.server.Start()
	if !b.server.ReadyForConnections(time.Minute) || !b.server.JetStreamEnabled() {
		said, _ := os.ReadFile(b.log)
		return fmt.Errorf("the broker takes no connections:\n%s", said)
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

// brokerLog is a file. Nothing that is said here ends the process.
type brokerLog string

func (l brokerLog) write(level, format string, v ...any) {
	f, err := os.OpenFile(string(l), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), level, fmt.Sprintf(format, v...))
}

func (l brokerLog) Noticef(format string, v ...any) { l.write("NOTICE", format, v...) }
func (l brokerLog) Warnf(format string, v ...any)   { l.write("WARN", format, v...) }
func (l brokerLog) Errorf(format string, v ...any)  { l.write("ERROR", format, v...) }
func (l brokerLog) Fatalf(format string, v ...any)  { l.write("FATAL", format, v...) }
func (l brokerLog) Debugf(string, ...any)           {}
func (l brokerLog) Tracef(string, ...any)           {}
