package servicetest_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
	"github.com/sallyport-pki/sallyport/internal/rpc"
	"github.com/sallyport-pki/sallyport/services/internal/db"
	"github.com/sallyport-pki/sallyport/services/internal/servicetest"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

var migrations = fstest.MapFS{"00100_x.sql": {Data: []byte("-- +goose Up\nCREATE TABLE x (id TEXT);\n")}}

func TestEachStore(t *testing.T) {
	var seen []string
	for range 2 { // the second time on the same server, in another database
		servicetest.EachStore(t, func(t *testing.T, c db.Config) {
			d, err := db.Open(t.Context(), c, migrations, "issuer")
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}()
			err = d.Write(t.Context(), func(ctx context.Context, tx db.Tx) error {
				var n int
				if err := tx.QueryRow(ctx, `SELECT count(*) FROM x`).Scan(&n); err != nil {
					return err
				}
				if n != 0 {
					t.Error("not empty")
				}
				_, err := tx.Exec(ctx, `INSERT INTO x (id) VALUES ('1')`)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, c.Driver)
		})
	}
	if fmt.Sprint(seen) != "[sqlite postgres sqlite postgres]" {
		t.Errorf("ran on %v", seen)
	}
}

// A test process that is killed leaves neither a server nor its files.
func TestPostgresEndsWithTheProcess(t *testing.T) {
	const child = "SALLYPORT_TEST_CHILD"
	if os.Getenv(child) != "" {
		fmt.Println("DSN " + servicetest.Postgres(t).DSN)
		os.Exit(1) // without any cleanup
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPostgresEndsWithTheProcess$")
	cmd.Env = append(os.Environ(), child+"=1")
	out, _ := cmd.CombinedOutput()
	_, dsn, ok := strings.Cut(string(out), "DSN host=")
	if !ok {
		t.Fatalf("no server:\n%s", out)
	}
	dir, _, _ := strings.Cut(dsn, " ")
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", dir)
		}
	}
	if c, err := net.Dial("unix", dir+"/.s.PGSQL.5432"); err == nil {
		c.Close()
		t.Error("the server still runs")
	}
}

func TestBrokerKeepsItsStore(t *testing.T) {
	b := servicetest.NewBroker(t)
	js, err := jetstream.New(b.Connect())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	b.Start()
	js, err = jetstream.New(b.Connect())
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.GetMsg(t.Context(), 1); err != nil || string(m.Data) != "kept" {
		t.Errorf("read back %v, %v", m, err)
	}
}

func TestServe(t *testing.T) {
	d := servicetest.TrustDomain(t)
	var denied atomic.Int32
	s := d.Serve("issuer", rpc.ServerConfig{OnDenied: func(context.Context, rpc.Denial) { denied.Add(1) }}, func(grpc.ServiceRegistrar) {})
	list := func(c *grpc.ClientConn) error {
		_, err := healthpb.NewHealthClient(c).List(t.Context(), &healthpb.HealthListRequest{})
		return err
	}
	for _, who := range []identity.Source{d.Operator("ann"), d.Service("deployer")} {
		if err := list(s.As(who)); err != nil {
			t.Errorf("%s: %v", d.Caller(who), err)
		}
	}
	if err := list(s.As(d.Agent("web-1"))); fault.KindOf(err) != fault.Denied {
		t.Errorf("an agent: %v", err)
	}
	if err := list(s.Anonymous()); fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("anonymous: %v", err)
	}
	if err := list(s.As(servicetest.TrustDomain(t).Operator("eve"))); err == nil {
		t.Error("an operator of another trust domain was let in")
	}
	if _, err := healthpb.NewHealthClient(s.Anonymous()).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("health check: %v", err)
	}
	if denied.Load() != 2 {
		t.Errorf("%d denials reported", denied.Load())
	}
}
