package serve

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/sallyport-pki/sallyport/services/audit"

	"github.com/sallyport-pki/sallyport/cli/internal/exit"
)

// brokerReady bounds how long the broker may take once its store is open.
const brokerReady = 10 * time.Second

// broker is the NATS server inside the process: JetStream in files, fsync on
// every write, no listener.
type broker struct {
	server *server.Server
	conns  []*nats.Conn
}

func startBroker(ctx context.Context, dir string, log *slog.Logger) (*broker, error) {
	s, err := server.NewServer(&server.Options{
		ServerName: "sallyport",
		DontListen: true,
		JetStream:  true,
		StoreDir:   dir,
		SyncAlways: true,
		NoSigs:     true,
	})
	if err != nil {
		return nil, exit.Errorf(exit.Data, "opening the event store %s: %w: restore it from the backup; or remove it, and events that no service had taken yet are lost", dir, err)
	}
	said := &brokerLog{log: log}
	s.SetLoggerV2(said, false, false, false)
	b := &broker{server: s}
	s.Start() // opens the store before it returns
	if said.fatal != "" || !s.ReadyForConnections(brokerReady) || !s.JetStreamEnabled() {
		b.stop()
		return nil, surroundings(exit.Errorf(exit.Data, "opening the event store %s: %s: restore it from the backup; or remove it, and events that no service had taken yet are lost", dir, cmp.Or(said.fatal, "it does not get ready")))
	}
	own, err := b.connect("streams")
	if err == nil {
		err = audit.EnsureStreams(ctx, own)
	}
	if err != nil {
		b.stop()
		return nil, surroundings(fmt.Errorf("opening the event store %s: %w", dir, err))
	}
	return b, nil
}

// connect gives a connection of its own to each service.
func (b *broker) connect(name string) (*nats.Conn, error) {
	c, err := nats.Connect("", nats.InProcessServer(b.server), nats.Name("sallyport-"+name))
	if err != nil {
		return nil, fmt.Errorf("connecting %s to the event broker: %w", name, err)
	}
	b.conns = append(b.conns, c)
	return c, nil
}

// health is an error once the store could not be written: the broker then takes
// nothing more, for as long as it runs.
func (b *broker) health() error {
	return judge(b.server.Healthz(&server.HealthzOptions{Details: true}))
}

func judge(h *server.HealthStatus) error {
	for _, e := range h.Errors {
		// That it is not ready for connections within a millisecond says that this process was not given the time to look: it
		// has no listener, and was ready when it started.
		if e.Type != server.HealthzErrorConn {
			return surroundings(exit.Errorf(exit.General, "the event store does not work (see the kernel log): %s: start again; what was acknowledged is on disk, and events that wait are published then", e.Error))
		}
	}
	return nil
}

func (b *broker) stop() {
	for _, c := range b.conns {
		c.Close()
	}
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// brokerLog passes the broker's complaints on; its notices are of no use to an
// operator of Sallyport.
type brokerLog struct {
	log   *slog.Logger
	fatal string // why it could not start
}

func (l *brokerLog) tell(level slog.Level, format string, v []any) {
	l.log.Log(context.Background(), level, fmt.Sprintf("nats: "+format, v...)) //nolint:sloglint // a callback without a context
}

// Fatalf is called by Start before it gives up.
func (l *brokerLog) Fatalf(format string, v ...any)  { l.fatal = fmt.Sprintf(format, v...) }
func (l *brokerLog) Errorf(format string, v ...any)  { l.tell(slog.LevelError, format, v) }
func (l *brokerLog) Warnf(format string, v ...any)   { l.tell(slog.LevelWarn, format, v) }
func (l *brokerLog) Noticef(format string, v ...any) { l.tell(slog.LevelDebug, format, v) }
func (l *brokerLog) Debugf(string, ...any)           {}
func (l *brokerLog) Tracef(string, ...any)           {}
