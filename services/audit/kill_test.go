package audit_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	"github.com/sallyport-pki/sallyport/internal/config"
	"github.com/sallyport-pki/sallyport/services/audit"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/event"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
)

const killDir, killBroker = "SALLYPORT_TEST_KILL_DIR", "SALLYPORT_TEST_KILL_BROKER"

func killConfig(dir string) audit.Config {
	return audit.Config{
		Database:           db.Config{Driver: db.SQLite, DSN: filepath.Join(dir, "index.db")},
		Directory:          filepath.Join(dir, "audit"),
		CheckpointInterval: config.Duration(100 * time.Millisecond),
	}
}

// TestKilledChild is the child of TestKilledAtAnyMoment: a whole service that runs until it is killed.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return // nothing to do: this is no test of its own
	}
	conn, err := nats.Connect(os.Getenv(killBroker))
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.New(t.Context(), killConfig(dir), audit.Deps{Source: servicetest.TrustDomain(t).Service("audit"), NATS: conn, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(s.Run(t.Context()))
}

// listeningBroker is a broker that another process can reach, on loopback.
func listeningBroker(t *testing.T) string {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("NATS is not ready")
	}
	return srv.ClientURL()
}

// checkpointSize reads the size without verifying: the test's own question is only whether it grew.
func checkpointSize(dir string) string {
	data, _ := os.ReadFile(filepath.Join(dir, "log", "checkpoint"))
	if lines := bytes.SplitN(data, []byte("\n"), 3); len(lines) == 3 {
		return fmt.Sprintf("%020s", lines[1])
	}
	return ""
}

// worldAt is a world around a broker that listens.
func worldAt(t *testing.T, dir, url string) (*world, *nats.Conn) {
	t.Helper()
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := event.EnsureStreams(t.Context(), js, event.StreamLimits{}); err != nil {
		t.Fatal(err)
	}
	return &world{t: t, js: js, domain: servicetest.TrustDomain(t), config: killConfig(dir)}, conn
}

// TestKilledAtAnyMoment kills the service again and again while facts come, and looks for exactly one record of each, in the
// log, the index and the stream of records.
func TestKilledAtAnyMoment(t *testing.T) {
	dir, url := t.TempDir(), listeningBroker(t)
	w, conn := worldAt(t, dir, url)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var most atomic.Int64 // facts: however long a child takes to begin, no more than can be looked through in the end
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if int64(w.n) < most.Load() {
					w.publish(w.facts(1 + w.n%40)...)
				}
			}
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for n := range 8 {
		before := checkpointSize(w.config.Directory)
		most.Add(1200)
		child := exec.Command(self, "-test.run=^TestKilledChild$")
		child.Env = append(os.Environ(), killDir+"="+dir, killBroker+"="+url)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 { // the others are killed while they begin, too
			eventually(t, "the child has recorded something", func() bool { return checkpointSize(w.config.Directory) > before })
		}
		<-time.After(time.Duration(rnd.Int64N(int64(700 * time.Millisecond))))
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
	}
	cancel()
	wg.Wait()

	s, err := audit.New(t.Context(), w.config, audit.Deps{Source: w.domain.Service("audit"), NATS: conn, Log: servicetest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	r := w.run(s)
	r.await(t, w.n)
	// What a killed process had taken comes again later, so the order is not that of publication.
	exported, err := r.client.ExportRecords(t.Context(), &auditv1.ExportRecordsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	data, _ := export(t, exported)
	logged := bytes.Split(data, []byte("\n"))
	eventually(t, "every record is published", func() bool {
		return w.lines(0, func(position uint64, line []byte) bool { return bytes.Equal(line, logged[position]) }) >= uint64(w.n)
	})
	key := r.key(t)
	r.stop()
	if report := w.verify(key); report.Records != uint64(w.n) {
		t.Errorf("%d facts, %d records", w.n, report.Records)
	}
	t.Logf("%d facts", w.n)
}
