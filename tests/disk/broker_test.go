package disk

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestBrokerCut cuts the power under a broker alone. With a sync of every write nothing is lost that it has acknowledged; with
// its own default it is: the setting is what serve and deploy/config stand on.
func TestBrokerCut(t *testing.T) {
	for _, always := range []bool{true, false} {
		t.Run(fmt.Sprintf("always %v", always), func(t *testing.T) {
			s := newVolume(t)
			must(t, s.volume.Sync())
			dir := filepath.Join(s.Dir, "nats")
			broker, js, conn := startBroker(t, dir, always)
			ok(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.FileStorage}))(t)
			const n = 200
			for range n {
				ok(js.Publish(t.Context(), "s", []byte("acknowledged")))(t)
			}
			must(t, s.volume.Cut())
			conn.Close()
			broker.Shutdown()
			broker.WaitForShutdown()
			must(t, s.volume.Unmount())
			must(t, s.volume.Mount())
			broker, js, conn = startBroker(t, dir, always)
			defer broker.WaitForShutdown()
			defer broker.Shutdown()
			defer conn.Close()
			kept := uint64(0)
			if stream, err := js.Stream(t.Context(), "S"); err == nil {
				kept = stream.CachedInfo().State.Msgs
			}
			t.Logf("%d of %d messages are there", kept, n)
			if (kept == n) != always {
				t.Errorf("%d of %d acknowledged messages are there", kept, n)
			}
		})
	}
}

func startBroker(t *testing.T, dir string, always bool) (*server.Server, jetstream.JetStream, *nats.Conn) {
	t.Helper()
	broker := ok(server.NewServer(&server.Options{
		ServerName: "sallyport", DontListen: true, JetStream: true, StoreDir: dir, SyncAlways: always, NoSigs: true, NoLog: true,
		JetStreamMaxStore: 64 << 20, JetStreamMaxMemory: 16 << 20,
	}))(t)
	broker.Start()
	if !broker.ReadyForConnections(time.Minute) {
		t.Fatal("the broker is not ready")
	}
	conn := ok(nats.Connect("", nats.InProcessServer(broker)))(t)
	return broker, ok(jetstream.New(conn))(t), conn
}
